"""What decoding remembers, as an argument: the self-attention cache and the memories attended to.

Nothing here belongs to a network, and no tensor of a memory is ever gathered, repeated or
moved: re-ordering beams touches the self-attention cache and a row map.

Axes: R rows (requests x beams), N memories, W queries that share one, T tokens, S positions, H
heads, G key/value heads, K head width, L layers, C cached tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.attention import Segment, attend, attention_weights
from xattn.attention.merge import Part, combine
from xattn.errors import UsageError
from xattn.memory import Memory
from xattn.models.cache import SelfCache
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
        if not self._whole:
            filler = self.rows[0]
            device = projection.device
            taken = [[*held, *[filler] * (W - len(held))] for held in per_memory]
            self._take = torch.tensor(taken, device=device).flatten()
            place = {
                row: n * W + w for n, held in enumerate(per_memory) for w, row in enumerate(held)
            }
            self._back = torch.tensor([place[row] for row in self.rows], device=device)
            self._target = torch.tensor(self.rows, device=device)
            self._every_row = self.rows == list(range(total))

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
        if self._every_row:
            return x_RTH
        full = x_RTH.new_full((rows, *x_RTH.shape[1:]), missing)
        return full.index_copy(0, self._target, x_RTH)

    def select(self, rows: Sequence[int]) -> "Group | None":
        """The group after new row j took the place of old row ``rows[j]``; None if none is left."""
        member_of = dict(zip(self.rows, self.members, strict=True))
        kept = [(new, member_of[old]) for new, old in enumerate(rows) if old in member_of]
        if not kept:
            return None
        first, last = min(m for _, m in kept), max(m for _, m in kept)
        projection = self.projection
        if last - first + 1 < len(projection.memories):
            # Memories that no row reads any more are not attended to any more.
            projection = projection.narrow(first, last - first + 1)
        return Group(projection, [r for r, _ in kept], [m - first for _, m in kept], len(rows))


Slot = list[Group]
"""Groups over disjoint rows: the j-th memory of every request."""


class DecodeState:
    """Self-attention cache, tokens seen per row, and the memories each row attends to."""

    def __init__(
        self,
        spec: DecoderSpec,
        rows: int,
        slots: Sequence[Slot],
        dtype: torch.dtype,
        device: torch.device,
        offsets: Sequence[int] | None = None,
    ) -> None:
        self.spec, self.slots = spec, [list(slot) for slot in slots]
        self.cache = SelfCache(spec, rows, dtype, device)
        self.offsets = [0] * rows if offsets is None else list(offsets)
        """Positions before the first token of each row: those of a memory that it goes on from."""
        self.native: object | None = None
        """What the compiled step keeps from call to call."""
        self._reading = self._readings()

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
        kv = self.cache.kv_L2PGCK
        return DecodeState(self.spec, self.rows, self.slots, kv.dtype, kv.device, self.offsets)

    def reorder(self, rows: Sequence[int]) -> None:
        """Row j becomes a continuation of old row ``rows[j]``: reorders, repeats or drops rows."""
        if list(rows) == list(range(self.rows)):
            return
        self.cache.reorder(rows)
        self.offsets = [self.offsets[row] for row in rows]
        reading = [self._reading[row] for row in rows]
        if reading == self._reading:
            return  # beams of one request changed places
        self._reading, self.native = reading, None
        self.slots = [
            [moved for group in slot if (moved := group.select(rows)) is not None]
            for slot in self.slots
        ]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget all but the first ``lengths[r]`` tokens of row r: drafts that were not taken."""
        self.cache.truncate(lengths)

    def _readings(self) -> list[list[tuple[int, int]]]:
        """For each row, the memories that it reads: which projection's, and which of them."""
        reading: list[list[tuple[int, int]]] = [[] for _ in range(self.rows)]
        for group in (group for slot in self.slots for group in slot):
            for row, member in zip(group.rows, group.members, strict=True):
                reading[row].append((id(group.projection), member))
        return reading

    def attend_memories(self, q_RTHK: Tensor, layer: int, scale: float) -> Tensor:
        """Cross-attention of all rows over all their memories: [R, T, H, K] -> [R, T, H, K].

        A row without any memory reads zeros.
        """
        parts = self.memory_parts(q_RTHK, layer, scale)
        return combine(parts)[0] if parts else torch.zeros_like(q_RTHK)

    def memory_parts(self, q_RTHK: Tensor, layer: int, scale: float) -> list[Part]:
        """What each group of memories gives all rows, to be merged; -inf where it gives nothing."""
        R, T = q_RTHK.shape[:2]
        parts: list[Part] = []
        for group in (group for slot in self.slots for group in slot):
            segment = group.projection.segments[layer]
            assert segment is not None
            out, lse = attend(group.fold(q_RTHK), segment, scale=scale)
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
