"""Memories that requests share: encoded once, projected once, and let go with the last of them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from xattn.ledger.account import Row
from xattn.ledger.amounts import KIND_OF
from xattn.ledger.live import what_of
from xattn.memory import Memory
from xattn.model import Model
from xattn.models.encode import Prepared
from xattn.models.network import identity_of
from xattn.models.parallel import Stand
from xattn.models.pins import Pins
from xattn.models.state import Projection, place_of
from xattn.spec import Form, Modality, is_absorbed, is_narrow


@dataclass(eq=False)
class Shared:
    """One memory, and how many requests there are for it."""

    identity: str
    """Of the memory, and of what it is projected with."""
    adapter: str | None
    source: Prepared | None
    """What it is made of, as long as it may have to be; None of a memory that a caller has."""
    stand: Stand
    modality: Modality
    holds_kv: bool
    predicted_bytes: int
    """What it takes once it is encoded and projected."""
    wanted: int = 0
    """Requests that wait for it or read it."""
    read: int = 0
    """Requests that read it."""
    memory: Memory | None = None
    given: Memory | None = None
    """The same content as a caller has it."""
    own_projection: Projection | None = None
    pinned: Projection | None = None
    """What the model keeps of it, which takes no bytes here while it is kept there."""
    in_use: ExitStack = field(default_factory=ExitStack)

    @property
    def positions(self) -> int:
        """How long it is."""
        return self.stand.positions

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
    def is_given(self) -> bool:
        """Whether a caller has its states, so that it need not be encoded."""
        return self.given is not None

    @property
    def holds_states(self) -> bool:
        """Whether states are held here: a request that only waits holds what its caller does."""
        return self.memory is not None and (self.memory is not self.given or self.read > 0)

    def held_bytes(self, pins: Pins) -> int:
        """What is held of it here: its projection and its states, which others may hold as well."""
        own = self.own_projection
        if self.pinned is not None and not pins.keeps(self.pinned):
            own = self.pinned
        projected = 0 if own is None else own.size_bytes
        if self.memory is None or not self.holds_states:
            return projected
        return max(projected, self.memory.size_bytes) if self._aliased else (
            projected + self.memory.size_bytes
        )  # fmt: skip

    @property
    def _aliased(self) -> bool:
        """The projection is a view of the states."""
        own = self.own_projection
        if own is None or self.memory is None or is_narrow(own.form):
            return False
        return place_of(self.memory.states_SD) in own.places


class Memories:
    """All memories that an engine's requests are about."""

    def __init__(self, model: Model, form: Form) -> None:
        self._model, self._form = model, form
        self._held: dict[str, Shared] = {}

    def __len__(self) -> int:
        return len(self._held)

    def shared(self, source: Prepared | Memory, adapter: str | None = None) -> Shared:
        """A new entry for a source, which nobody knows of yet; :meth:`found` gives the one to use.

        What it may take is foretold in full: what is pinned now may be unpinned while it is read.
        """
        memory = source if isinstance(source, Memory) else None
        positions = len(source.spans)
        name = identity_of(source) if isinstance(source, Memory) else source.key.digest
        return Shared(
            identity=name if adapter is None else f"{name} {adapter}",
            adapter=adapter,
            source=None if isinstance(source, Memory) else source,
            stand=Stand.of(source),
            modality=source.modality if isinstance(source, Memory) else source.key.modality,
            holds_kv=self._model.spec.decoder.cross_attention is None,
            predicted_bytes=self._predicted(source, positions, memory),
            memory=memory,
            given=memory,
        )

    def _predicted(self, source: Prepared | Memory, positions: int, memory: Memory | None) -> int:
        decoder, network = self._model.spec.decoder, self._model.network
        dtype = str(network.dtype).removeprefix("torch.")
        modality = source.modality if isinstance(source, Memory) else source.key.modality
        spec = self._model.spec
        lent, projector = spec.lent_for(modality), spec.projector_for(modality)
        read = positions if projector is None else projector.positions(positions)
        total = decoder.memory_bytes(read, form=self._form, dtype=dtype)
        goes_on = decoder.cross_attention is None
        if memory is None:
            width = decoder.kv_width if goes_on else decoder.memory_width
            width = width if lent is None else lent.width
            states, masks, same = positions * width * network.dtype.itemsize, 0, True
        else:
            masks = 0 if memory.mask_S is None else decoder.layers * positions
            states, same = memory.size_bytes, memory.states_SD.dtype == network.dtype
        as_it_is = goes_on or (is_absorbed(self._form) and projector is None)
        if same and not is_narrow(self._form) and as_it_is:
            return max(total, states) + masks  # the projection is the states
        return total + states + masks

    def found(self, entries: Iterable[Shared]) -> list[Shared]:
        """The entries to use for these: what others have brought goes before."""
        return [self._held.get(entry.identity, entry) for entry in entries]

    def rows(self) -> Iterator[Row]:
        """What is held of each of them here."""
        for entry in self._held.values():
            own, total = entry.own_projection, entry.held_bytes(self._model.pins)
            projected = 0 if own is None else own.size_bytes
            about: dict[str, Any] = {"input": KIND_OF[entry.modality], "positions": entry.positions}
            if own is not None:
                yield Row(what=what_of(own), bytes=projected, **about)
            if total > projected:
                yield Row(what="states", bytes=total - projected, **about)

    def places(self) -> set[int]:
        """Where states and projections of these are."""
        found: set[int] = set()
        for entry in self._held.values():
            if entry.memory is not None and entry.holds_states:
                found.add(place_of(entry.memory.states_SD))
            if entry.own_projection is not None:
                found |= entry.own_projection.places
        return found

    def want(self, entries: Iterable[Shared]) -> list[Shared]:
        """Note a request for these; the entries to use."""
        used = []
        for entry in entries:
            held = self._held.setdefault(entry.identity, entry)
            held.wanted += 1
            held.source, held.given = held.source or entry.source, held.given or entry.given
            held.memory = held.memory or held.given
            used.append(held)
        return used

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
        return sum(entry.held_bytes(self._model.pins) for entry in self._unread(kept))

    def _unread(self, kept: Sequence[Shared]) -> list[Shared]:
        held = self._held.values()
        return [entry for entry in held if not entry.read and entry not in kept]

    def _drop(self, entry: Shared) -> None:
        entry.own_projection = entry.pinned = None
        entry.memory = entry.given
        entry.in_use.close()

    @property
    def held_bytes(self) -> int:
        """What is held of all of them."""
        return sum(entry.held_bytes(self._model.pins) for entry in self._held.values())

    @torch.inference_mode(False)
    @torch.no_grad()
    def make(self, entries: Sequence[Shared]) -> None:
        """Encode and project what is not there yet: sources together, as the model does.

        Not in inference mode: a store keeps memories for others, who may want gradients.
        """
        new = {entry.identity: entry for entry in entries if not entry.ready}
        self._take_encoded(new.values())
        raw = [entry for entry in new.values() if entry.memory is None]
        sources = {e.source.key.digest: e.source for e in raw if e.source is not None}
        encoded = self._model.remembered(list(sources.values())) if sources else []
        made = dict(zip(sources, encoded, strict=True))
        for entry in raw:
            assert entry.source is not None
            entry.memory = made[entry.source.key.digest]
        memories = [entry.memory for entry in new.values() if entry.memory is not None]
        kept = self._model.pins.instead_of(memories, self._form)
        for entry, memory, found in zip(new.values(), memories, kept, strict=True):
            if isinstance(found, Projection) and entry.adapter is None:
                entry.pinned = found
            else:
                entry.own_projection = self._model.network.project(
                    memory, form=self._form, adapter=entry.adapter
                )
            entry.in_use.enter_context(self._model.in_use([memory]))
            if entry.read == entry.wanted:  # else it may be let go, and made again
                entry.source = None

    def _take_encoded(self, entries: Iterable[Shared]) -> None:
        """Give entries that wait for a source the memory that is there, for another adapter."""
        there = {e.memory.key.digest: e.memory for e in self._held.values() if e.memory is not None}
        for entry in entries:
            if entry.memory is None and entry.source is not None:
                entry.memory = there.get(entry.source.key.digest)
