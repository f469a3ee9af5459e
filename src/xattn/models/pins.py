"""Projections that are kept: what a decoder makes of a memory that is in use all the time."""

from dataclasses import dataclass

from xattn.memory import Memory
from xattn.models.network import Attended, Network
from xattn.models.state import Projection
from xattn.spec import Form


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pinned:
    projection: Projection
    stamp: str
    """Of the decoder's weights when it was made."""


class Pins:
    """The pinned projections of one network, by key and form."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._held: dict[tuple[str, Form], _Pinned] = {}

    def pin(self, memory: Memory, form: Form) -> Projection:
        """Project ``memory``, and keep the projection until :meth:`unpin`."""
        projection = self._network.project(memory, form=form)
        stamp = self._network.decoder_stamp
        self._held[memory.key.digest, form] = _Pinned(projection=projection, stamp=stamp)
        return projection

    def unpin(self, memory: Memory, form: Form) -> bool:
        """Let a projection go; whether there was one."""
        return self._held.pop((memory.key.digest, form), None) is not None

    def forms_of(self, memory: Memory) -> list[Form]:
        """The forms that a memory is pinned in, as :meth:`instead_of` would find them."""
        if not self._held or memory.mask_S is not None:
            return []
        return [form for digest, form in self._held if digest == memory.key.digest]

    def instead_of(self, memory: Attended, form: Form) -> Attended:
        """The projection that is kept of a memory, or the memory where none is.

        It is made again where the decoder's weights have changed since.
        """
        if not self._held or not isinstance(memory, Memory) or memory.mask_S is not None:
            return memory
        pinned = self._held.get((memory.key.digest, form))
        if pinned is None:
            return memory
        if pinned.stamp != self._network.decoder_stamp:
            return self.pin(memory, form)
        return pinned.projection
