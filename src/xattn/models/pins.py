"""Projections that are kept: what a decoder makes of a memory that is in use all the time."""

from collections.abc import Sequence
from dataclasses import dataclass

from xattn.memory import Memory
from xattn.models.network import Attended, Network, identity_of
from xattn.models.state import Projection
from xattn.spec import Form


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pinned:
    memory: Memory
    projection: Projection
    stamp: str
    """Of the decoder's weights when it was made."""


class Pins:
    """The pinned projections of one network, by form and by key and mask of the memory."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._held: dict[tuple[str, Form], _Pinned] = {}

    def pin(self, memory: Memory, form: Form) -> Projection:
        """Project ``memory``, and keep the projection until :meth:`unpin`."""
        return self._pin(memory, form, self._network.decoder_stamp)

    def _pin(self, memory: Memory, form: Form, stamp: str) -> Projection:
        projection = self._network.project(memory, form=form)
        pinned = _Pinned(memory=memory, projection=projection, stamp=stamp)
        self._held[identity_of(memory), form] = pinned
        return projection

    def unpin(self, memory: Memory, form: Form) -> bool:
        """Let a projection go; whether there was one."""
        return self._held.pop((identity_of(memory), form), None) is not None

    def keeps(self, projection: Projection) -> bool:
        """Whether this very projection is kept; safe to ask from any thread."""
        return any(pinned.projection is projection for pinned in list(self._held.values()))

    @property
    def held(self) -> list[tuple[Memory, Projection]]:
        """All that is kept: memories, and their projections."""
        return [(pinned.memory, pinned.projection) for pinned in list(self._held.values())]

    def forms_of(self, memory: Memory) -> list[Form]:
        """The forms that a memory is pinned in, as :meth:`instead_of` would find them."""
        if not self._held:
            return []
        wanted = identity_of(memory)
        return [form for identity, form in list(self._held) if identity == wanted]

    def instead_of(self, memories: Sequence[Attended], form: Form) -> list[Attended]:
        """The projections that are kept of memories, or the memories where none is.

        They are made again where the decoder's weights have changed since.
        """
        if not self._held:
            return list(memories)
        places = [(identity_of(memory), form) for memory in memories]
        if self._held.keys().isdisjoint(places):
            return list(memories)
        stamp = self._network.decoder_stamp  # once: it costs a look at the weights
        for place in self._held.keys() & set(places):
            if self._held[place].stamp != stamp:
                self._pin(self._held[place].memory, form, stamp)
        kept = [self._held.get(place) for place in places]
        return [
            memory if pinned is None else pinned.projection
            for memory, pinned in zip(memories, kept, strict=True)
        ]
