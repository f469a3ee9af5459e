"""What decoding remembers, as an argument: the self-attention cache and the memories attended to.

Nothing here belongs to a network, and no tensor of a memory is ever gathered, repeated or
moved: re-ordering beams touches the self-attention cache and a row map.

Axes: R rows (requests x beams), N memories, W queries that share one, T tokens, S positions, H
heads, G key/value heads, K head width, L layers, C cached tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xattn.attention import (
    Materialized,
    Segment,
    attend,
    attend_alone,
    attention_scores,
    attention_weights,
)
from xattn.attention.merge import Part, combine, logsumexp
from xattn.errors import UsageError, require
from xattn.memory import Memory
from xattn.models.cache import SelfCache
from xattn.models.positions import Rotary, rotate
from xattn.spec import DecoderSpec, Form


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """One or more memories as one decoder reads them: a segment per layer that cross-attends."""

    memories: tuple[Memory, ...]
    segments: tuple[Segment | None, ...]
    form: Form

    @property
    def device(self) -> torch.device:
        """Where its segments are."""
        return next(s for s in self.segments if s is not None).numbers.device

    def narrow(self, first: int, count: int) -> "Projection":
        """Memories ``first`` to ``first + count - 1`` of it, as views."""
        members = slice(first, first + count)
        return Projection(
            memories=self.memories[members],
            segments=tuple(None if s is None else s.members(members) for s in self.segments),
            form=self.form,
        )

    @property
    def size_bytes(self) -> int:
        """Bytes that cross-attention reads: absorbed segments share one tensor of states."""
        sizes = {id(s.numbers): s.size_bytes for s in self.segments if s is not None}
        return sum(sizes.values())

    @property
    def places(self) -> set[int]:
        """Where its numbers are; a memory's states may lie at one of them."""
        return {place_of(s.numbers) for s in self.segments if s is not None}


def place_of(tensor: Tensor) -> int:
    """Where the memory is that a tensor, and all views of it, are in."""
    return tensor.untyped_storage().data_ptr()


class Group:
    """The rows that read one projection, folded into its query axis."""

    def __init__(
        self, projection: Projection, rows: Sequence[int], members: Sequence[int], total: int
    ) -> None:
        """Row ``rows[j]`` of ``total`` rows reads memory ``members[j]`` of the projection."""
        self.projection, self.rows, self.members = projection, list(rows), list(members)
        N = len(projection.memories)
        per_memory: list[list[int]] = [[] for _ in range(N)]
        for row, member in zip(self.rows, self.members, strict=True):
            per_memory[member].append(row)
        W = max(map(len, per_memory))
        ordered = [row for held in per_memory for row in held]
        self._whole = ordered == list(range(total)) and all(len(held) == W for held in per_memory)
        self._shape = (N, W)
        self._per_memory, self._total = per_memory, total

    @cached_property
    def _take(self) -> Tensor:
        """The rows in the order of their memories, as many of each as of the most read."""
        _, W = self._shape
        taken = [[*held, *[self.rows[0]] * (W - len(held))] for held in self._per_memory]
        return torch.tensor(taken, device=self.projection.device).flatten()

    @cached_property
    def _back(self) -> Tensor:
        """Where each row is among those."""
        _, W = self._shape
        per_memory = enumerate(self._per_memory)
        place = {row: n * W + w for n, held in per_memory for w, row in enumerate(held)}
        return torch.tensor([place[row] for row in self.rows], device=self.projection.device)

    @cached_property
    def _target(self) -> Tensor:
        return torch.tensor(self.rows, device=self.projection.device)

    def fold(self, q_RTHK: Tensor) -> Tensor:
        """[R, T, H, K] -> [N, W*T, H, K]."""
        N, W = self._shape
        T, H, K = q_RTHK.shape[1:]
        if not self._whole:
            q_RTHK = q_RTHK.index_select(0, self._take)
        return q_RTHK.reshape(N, W * T, H, K)

    def unfold(self, x_NQH: Tensor, tokens: int, rows: int, missing: float) -> Tensor:
        """[N, W*T, H, ...] -> [R, T, H, ...], with ``missing`` in rows that read nothing here."""
        N, W = self._shape
        x_RTH = x_NQH.reshape(N * W, tokens, *x_NQH.shape[2:])
        if self._whole:
            return x_RTH
        x_RTH = x_RTH.index_select(0, self._back)
        if self.rows == list(range(self._total)):
            return x_RTH
        full = x_RTH.new_full((rows, *x_RTH.shape[1:]), missing)
        return full.index_copy(0, self._target, x_RTH)


class Asking(NamedTuple):
    """What a layer reads memories with, and what it read besides."""

    q_RTHK: Tensor
    """Queries."""
    own_RTH: Tensor | None = None
    """Log-sum-exp of what the same softmax reads of the tokens themselves; None if it does not."""
    k_RGCK: Tensor | None = None
    """Keys of these tokens, and of those before them."""


class Read(NamedTuple):
    """One memory as one row reads it."""

    projection: Projection
    member: int
    """Which of its memories."""
    turn: int = 0
    """Positions between where its keys were made and where this row has them (rotary decoders)."""
    temperature: float = 1.0
    """What scores are divided by."""
    scale: float = 1.0
    """What the log-sum-exp over all memories that have one is multiplied by."""

    @property
    def memory(self) -> Memory:
        """What is read."""
        return self.projection.memories[self.member]

    @property
    def start(self) -> int:
        """Position of its first key, for the row that reads it."""
        made_at: int = self.memory.details.get("start", 0)
        return made_at + self.turn

    @property
    def is_weighed(self) -> bool:
        """Whether the softmax over all that the row reads is no plain one here."""
        return self.temperature != 1.0 or self.scale != 1.0


Reading = tuple[Read, ...]
"""What one row reads."""


class Slot:
    """The j-th memory of every row: groups over disjoint rows."""

    def __init__(self, reads: Sequence[Read | None]) -> None:
        """Row r reads ``reads[r]``, or nothing."""
        held: dict[int, tuple[Projection, list[int], list[int]]] = {}
        for row, read in enumerate(reads):
            if read is not None:
                _, rows, members = held.setdefault(id(read.projection), (read.projection, [], []))
                rows.append(row)
                members.append(read.member)
        self.groups = [_group(*group, len(reads)) for group in held.values()]
        self.turns = [0 if read is None else read.turn for read in reads]
        """Positions that each row's queries are turned back by."""
        self.temperatures = [1.0 if read is None else read.temperature for read in reads]
        """What each row's scores are divided by."""
        self._angles: tuple[Tensor, Tensor] | None = None
        self.weighed_R = [read is not None and read.is_weighed for read in reads]
        """Which rows read something that is weighed."""

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    @property
    def is_plain(self) -> bool:
        """Every row reads with its queries as they are."""
        return not any(self.turns) and not any(self.weighed_R)

    def asked(self, q_RTHK: Tensor, rotary: Rotary | None) -> Tensor:
        """The queries as these memories are asked: turned to where keys were made, and cooled.

        Turning the queries back is turning the keys on, without a copy of any key.
        """
        if self.is_plain:
            return q_RTHK
        if any(self.turns):
            assert rotary is not None
            if self._angles is None:
                turns_R1 = torch.tensor(self.turns, device=q_RTHK.device).unsqueeze(1)
                self._angles = rotary.angles(-turns_R1, q_RTHK.dtype)
            q_RTHK = rotate(q_RTHK, self._angles)
        if any(t != 1.0 for t in self.temperatures):
            q_RTHK = q_RTHK / q_RTHK.new_tensor(self.temperatures)[:, None, None, None]
        return q_RTHK


def slots_of(readings: Sequence[Reading]) -> list[Slot]:
    """The rows folded by what they read. Memories that no row reads are left out."""
    depth = max(map(len, readings), default=0)
    return [Slot([r[j] if j < len(r) else None for r in readings]) for j in range(depth)]


def _group(projection: Projection, rows: list[int], members: list[int], total: int) -> Group:
    first, last = min(members), max(members)
    if last - first + 1 < len(projection.memories):
        projection = projection.narrow(first, last - first + 1)
        members = [member - first for member in members]
    return Group(projection, rows, members, total)


class DecodeState:
    """Self-attention cache, tokens seen per row, and the memories each row attends to."""

    def __init__(
        self,
        spec: DecoderSpec,
        readings: Sequence[Reading],
        dtype: torch.dtype,
        device: torch.device,
        offsets: Sequence[int] | None = None,
        rotary: Rotary | None = None,
        adapters: Sequence[str] | None = None,
    ) -> None:
        """A row for each entry of ``readings``; ``rotary`` is what turns its queries, if any."""
        self.spec, self.rotary = spec, rotary
        self.readings: list[Reading] = list(readings)
        """What each row reads; rows that read the same are folded."""
        self.cache = SelfCache(spec, len(self.readings), dtype, device)
        self.offsets = [0] * len(self.readings) if offsets is None else list(offsets)
        """Positions before the first token of each row: those of a memory that it goes on from."""
        self.adapters = None if adapters is None else list(adapters)
        """What each row is computed with, where rows name adapters."""
        self.hidden: list[Tensor] | None = None
        """What is added to the scores of each slot's memories, ``[1, 1, T, S]``, for a while."""
        self.native: object | None = None
        """What the compiled step keeps from call to call."""
        self._slots: list[Slot] | None = None
        self._reading_rows: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but what holds addresses, which are not those of a copy."""
        return {**vars(self), "native": None}

    @property
    def slots(self) -> list[Slot]:
        """The rows folded by what they read: the j-th memory of every row in slot j."""
        if self._slots is None:
            self._slots = slots_of(self.readings)
        return self._slots

    @property
    def reading_rows_R11(self) -> Tensor | None:
        """1 for rows that read a memory and 0 for others; None where all rows do."""
        if all(self.readings):
            return None
        if self._reading_rows is None:
            kv = self.cache.layers_2PGCK[0]
            flags = [float(bool(reading)) for reading in self.readings]
            self._reading_rows = kv.new_tensor(flags)[:, None, None]
        return self._reading_rows

    @property
    def rows(self) -> int:
        """Sequences being decoded."""
        return len(self.lengths)

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row has seen."""
        return self.cache.lengths

    @property
    def size_bytes(self) -> int:
        """Bytes of the self-attention cache, spare capacity included; memories are not counted."""
        return self.cache.nbytes

    @property
    def projections(self) -> list[Projection]:
        """The distinct projections attended to."""
        found = {id(g.projection): g.projection for slot in self.slots for g in slot}
        return list(found.values())

    @property
    def cross_bytes(self) -> int:
        """Bytes that cross-attention reads, each projection once, whatever the number of rows."""
        return sum(projection.size_bytes for projection in self.projections)

    def fresh(self) -> "DecodeState":
        """The same rows and memories, with no token seen yet."""
        kv = self.cache.layers_2PGCK[0]
        where = (kv.dtype, kv.device)
        return DecodeState(
            self.spec, self.readings, *where, self.offsets, self.rotary, self.adapters
        )

    def reorder(self, rows: Sequence[int]) -> None:
        """Row j becomes a continuation of old row ``rows[j]``: reorders, repeats or drops rows."""
        if list(rows) == list(range(self.rows)):
            return
        self.cache.reorder(rows)
        self.offsets = [self.offsets[row] for row in rows]
        if self.adapters is not None:
            self.adapters = [self.adapters[row] for row in rows]
        self._read([self.readings[row] for row in rows])

    def join(self, other: "DecodeState") -> None:
        """Append the rows of ``other``, whatever they have seen; what both read is shared.

        ``other`` is used up: its rows live on in this state. Raises :class:`UsageError` where only
        one of both tells the adapters of its rows.
        """
        apart = (self.adapters is None) == (other.adapters is None)
        require(apart, "other", "of rows whose adapters are told as these", other.adapters)
        if self.adapters is not None and other.adapters is not None:
            self.adapters = self.adapters + other.adapters
        self.cache.join(other.cache)
        self.offsets = self.offsets + other.offsets
        self._read(self.readings + other.readings)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget all but the first ``lengths[r]`` tokens of row r: drafts that were not taken."""
        self.cache.truncate(lengths)

    def replace_reading(self, row: int, reading: Reading) -> None:
        """Let a row read something else."""
        self._read([reading if r == row else old for r, old in enumerate(self.readings)])

    def _read(self, readings: list[Reading]) -> None:
        if readings != self.readings:  # else beams of one request changed places
            self.readings, self.native, self._slots = readings, None, None
            self._reading_rows = None

    def attend_memories(self, q_RTHK: Tensor, layer: int, scale: float) -> Tensor:
        """Cross-attention of all rows over all their memories: [R, T, H, K] -> [R, T, H, K].

        A row without any memory reads zeros.
        """
        if len(self.slots) == 1 and self.slots[0].is_plain and self.hidden is None:
            return self._only_slot(q_RTHK, layer, scale)
        parts = self.memory_parts(q_RTHK, layer, scale)
        return combine(parts)[0] if parts else torch.zeros_like(q_RTHK)

    def _only_slot(self, q_RTHK: Tensor, layer: int, scale: float) -> Tensor:
        """The same where each row reads one memory at most: nothing is merged."""
        R, T = q_RTHK.shape[:2]
        outs = []
        for group in self.slots[0]:
            segment = group.projection.segments[layer]
            assert segment is not None
            out = attend_alone(group.fold(q_RTHK), segment, scale=scale)
            outs.append(group.unfold(out, T, R, missing=0.0))
        return outs[0] if len(outs) == 1 else torch.stack(outs).sum(dim=0)

    def memory_parts(self, q_RTHK: Tensor, layer: int, scale: float) -> list[Part]:
        """What each group of memories gives all rows, to be merged; -inf where it gives nothing.

        Those that a row weighs are one part, whose log-sum-exp is scaled.
        """
        plain: list[Part] = []
        weighed: list[Part] = []
        for j, slot in enumerate(self.slots):
            hidden = None if self.hidden is None else self.hidden[j]
            parts = self._slot_parts(slot, q_RTHK, layer, scale, hidden)
            if any(slot.weighed_R):
                weighed += _only(parts, slot.weighed_R)
                parts = _only(parts, [not one for one in slot.weighed_R])
            plain += parts
        if weighed:
            out_RTHK, lse_RTH = combine(weighed)
            plain.append((out_RTHK, lse_RTH * lse_RTH.new_tensor(self.scales)[:, None, None]))
        return plain

    @property
    def scales(self) -> list[float]:
        """What each row multiplies the log-sum-exp of its weighed memories by."""
        return [next((r.scale for r in row if r.is_weighed), 1.0) for row in self.readings]

    def _slot_parts(
        self, slot: Slot, q_RTHK: Tensor, layer: int, scale: float, hidden: Tensor | None
    ) -> list[Part]:
        R, T = q_RTHK.shape[:2]
        parts: list[Part] = []
        q_RTHK = slot.asked(q_RTHK, self.rotary)
        for group in slot:
            segment = group.projection.segments[layer]
            assert segment is not None
            out, lse = attend(group.fold(q_RTHK), segment, scale=scale, bias_NHWS=hidden)
            out_RTHK = group.unfold(out, T, R, missing=0.0)
            parts.append((out_RTHK, group.unfold(lse, T, R, missing=float("-inf"))))
        return parts

    def memory_weights(
        self, q_RTHK: Tensor, layer: int, heads: Sequence[int], scale: float
    ) -> Tensor:
        """Softmax weights ``[R, T, A, S]`` of the chosen heads over the first memory of each row.

        Rows whose memory is shorter than the longest are padded with zeros.
        """
        R, T = q_RTHK.shape[:2]
        if len(self.slots) != 1:
            raise UsageError(
                f"cross-attention weights are read over one memory per row, not {len(self.slots)}."
            )
        pieces = []
        for group in self.slots[0]:
            segment = group.projection.segments[layer]
            assert segment is not None
            weights = attention_weights(group.fold(q_RTHK), segment, heads, scale=scale)
            pieces.append(group.unfold(weights, T, R, missing=0.0))
        S = max(piece.shape[-1] for piece in pieces)
        padded = [torch.nn.functional.pad(piece, (0, S - piece.shape[-1])) for piece in pieces]
        return torch.stack(padded).sum(dim=0)

    def shares_read(
        self,
        asking: Asking,
        layer: int,
        heads: Sequence[int],
        scale: float,
        again: Sequence[tuple[int, int]] = (),
    ) -> list[Tensor]:
        """What a single row reads of each of its memories: shares ``[T, A, S]`` of its softmax.

        Where it reads nothing of its own, the shares of all memories sum to 1. ``again`` are the
        (memory, position) pairs that the row's cache begins with, and that are read there.
        """
        [reading] = self.readings
        q_RTHK, own_RTH, k_RGCK = asking
        scores: list[Tensor] = []
        for slot in self.slots:
            [group] = slot
            segment = group.projection.segments[layer]
            assert segment is not None
            asked = group.fold(slot.asked(q_RTHK, self.rotary))
            found_ATS = attention_scores(asked, segment, heads, scale=scale)[group.members[0]]
            scores.append(found_ATS.transpose(0, 1))
        weighed = [scores_TAS for scores_TAS, read in zip(scores, reading, strict=True)
                   if read.is_weighed]  # fmt: skip
        moved_TA = None
        if weighed:
            inside_TA = logsumexp(torch.cat(weighed, dim=-1), dim=-1)
            moved_TA = inside_TA * (self.scales[0] - 1)
            moved_TA = moved_TA.masked_fill(inside_TA == float("-inf"), 0.0)
        scores = [
            s + moved_TA.unsqueeze(-1) if moved_TA is not None and read.is_weighed else s
            for s, read in zip(scores, reading, strict=True)
        ]
        every = scores if own_RTH is None else [*scores, own_RTH[0][:, list(heads)].unsqueeze(-1)]
        total_TA1 = logsumexp(torch.cat(every, dim=-1), dim=-1).unsqueeze(-1)
        floor_TA1 = total_TA1.masked_fill(total_TA1 == float("-inf"), 0.0)
        shares = [(s - floor_TA1).exp() for s in scores]
        if again:
            assert k_RGCK is not None
            cached = Materialized(
                k_NGSK=k_RGCK[:, :, : len(again)], v_NGSK=k_RGCK[:, :, : len(again)]
            )
            read_ATC = attention_scores(q_RTHK, cached, heads, scale=scale)[0]
            read_TAC = (read_ATC.transpose(0, 1) - floor_TA1).exp()
            for place, (memory, position) in enumerate(again):
                shares[memory][..., position] += read_TAC[..., place]
        return shares


def _only(parts: Sequence[Part], rows: Sequence[bool]) -> list[Part]:
    """The parts, nothing of them in other rows."""
    if all(rows):
        return list(parts)
    if not any(rows):
        return []
    others_R11 = ~torch.tensor(rows, device=parts[0][1].device)[:, None, None]
    return [(out, lse.masked_fill(others_R11, float("-inf"))) for out, lse in parts]
