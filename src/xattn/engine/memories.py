"""Memories that requests share: encoded once, projected once, and let go with the last of them."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from xattn.memory import Memory
from xattn.model import Model
from xattn.models.encode import Prepared
from xattn.models.network import identity_of
from xattn.models.state import Projection
from xattn.spec import Form, is_absorbed, is_narrow


@dataclass(eq=False)
class Shared:
    """One memory, and how many requests there are for it."""

    identity: str
    source: Prepared | Memory
    positions: int
    holds_kv: bool
    predicted_bytes: int
    """What it takes once it is encoded and projected."""
    wanted: int = 0
    """Requests that wait for it or read it."""
    read: int = 0
    """Requests that read it."""
    memory: Memory | None = None
    own_projection: Projection | None = None
    pinned: Projection | None = None
    """What the model keeps of it, which takes no bytes here."""
    in_use: ExitStack = field(default_factory=ExitStack)

    @property
    def projection(self) -> Projection:
        """What the decoder reads."""
        found = self.pinned or self.own_projection
        assert found is not None
        return found

    @property
    def ready(self) -> bool:
        """Whether it was encoded and projected."""
        return (self.pinned or self.own_projection) is not None

    @property
    def held_bytes(self) -> int:
        """What is held of it here: its projection, and its states where no caller has them."""
        projected = 0 if self.own_projection is None else self.own_projection.size_bytes
        if self.memory is None or isinstance(self.source, Memory):
            return projected
        return max(projected, self.memory.size_bytes) if self._aliased else (
            projected + self.memory.size_bytes
        )  # fmt: skip

    @property
    def _aliased(self) -> bool:
        """The projection is a view of the states."""
        own = self.own_projection
        return own is not None and not is_narrow(own.form) and (
            self.holds_kv or is_absorbed(own.form)
        )  # fmt: skip


class Memories:
    """All memories that an engine's requests are about."""

    def __init__(self, model: Model, form: Form) -> None:
        self._model, self._form = model, form
        self._held: dict[str, Shared] = {}

    def __len__(self) -> int:
        return len(self._held)

    def shared(self, source: Prepared | Memory) -> Shared:
        """The entry for a source; a new one that nobody wants is not kept."""
        identity = identity_of(source) if isinstance(source, Memory) else source.key.digest
        found = self._held.get(identity)
        if found is not None:
            return found
        memory = source if isinstance(source, Memory) else None
        positions = len(source.spans)
        entry = Shared(
            identity=identity,
            source=source,
            positions=positions,
            holds_kv=self._model.spec.decoder.cross_attention is None,
            predicted_bytes=self._predicted(positions, memory),
            memory=memory,
        )
        if memory is not None:
            [kept] = self._model.pins.instead_of([memory], self._form)
            if isinstance(kept, Projection):
                entry.pinned, entry.predicted_bytes = kept, 0
        return entry

    def _predicted(self, positions: int, memory: Memory | None) -> int:
        decoder, network = self._model.spec.decoder, self._model.network
        dtype = str(network.dtype).removeprefix("torch.")
        total = decoder.memory_bytes(positions, form=self._form, dtype=dtype)
        if memory is not None:
            masks = 0 if memory.mask_S is None else decoder.layers * positions
            return total + masks
        goes_on = decoder.cross_attention is None
        if not is_narrow(self._form) and (goes_on or is_absorbed(self._form)):
            return total  # the projection is the states
        width = decoder.kv_width if goes_on else decoder.memory_width
        return total + positions * width * network.dtype.itemsize

    def want(self, wanted: Iterable[Shared]) -> list[Shared]:
        """Note a request for these; the entries to use, which others may have brought."""
        entries = [self._held.setdefault(shared.identity, shared) for shared in wanted]
        for entry in entries:
            entry.wanted += 1
        return entries

    def begin(self, entries: Iterable[Shared]) -> None:
        """A request that wanted these reads them from now on."""
        for entry in entries:
            entry.read += 1

    def end(self, entries: Iterable[Shared], *, begun: bool) -> None:
        """A request for these is over."""
        for entry in entries:
            entry.wanted -= 1
            entry.read -= begun
            if not entry.wanted:
                del self._held[entry.identity]
                self._drop(entry)

    def clear(self) -> None:
        """Let everything go."""
        for entry in self._held.values():
            self._drop(entry)
        self._held.clear()

    def drop_unread(self, kept: Sequence[Shared]) -> None:
        """Let go what only requests in the queue want; it is made again when they begin."""
        for entry in self._unread(kept):
            self._drop(entry)

    def unread_bytes(self, kept: Sequence[Shared]) -> int:
        """What of :attr:`held_bytes` that would set free."""
        return sum(entry.held_bytes for entry in self._unread(kept))

    def _unread(self, kept: Sequence[Shared]) -> list[Shared]:
        held = self._held.values()
        return [entry for entry in held if not entry.read and entry not in kept]

    def _drop(self, entry: Shared) -> None:
        entry.own_projection = entry.pinned = None
        if not isinstance(entry.source, Memory):
            entry.memory = None
        entry.in_use.close()

    @property
    def held_bytes(self) -> int:
        """What is held of all of them."""
        return sum(entry.held_bytes for entry in self._held.values())

    @torch.inference_mode(False)
    @torch.no_grad()
    def make(self, entries: Sequence[Shared]) -> None:
        """Encode and project what is not there yet: sources together, as the model does.

        Not in inference mode: a store keeps memories for others, who may want gradients.
        """
        new = {entry.identity: entry for entry in entries if not entry.ready}
        raw = [entry for entry in new.values() if entry.memory is None]
        sources = [entry.source for entry in raw if not isinstance(entry.source, Memory)]
        encoded = self._model.remembered(sources) if sources else []
        for entry, memory in zip(raw, encoded, strict=True):
            entry.memory = memory
        memories = [entry.memory for entry in new.values() if entry.memory is not None]
        kept = self._model.pins.instead_of(memories, self._form)
        for entry, memory, found in zip(new.values(), memories, kept, strict=True):
            if isinstance(found, Projection):
                entry.pinned = found
            else:
                entry.own_projection = self._model.network.project(memory, form=self._form)
            entry.in_use.enter_context(self._model.in_use([memory]))
