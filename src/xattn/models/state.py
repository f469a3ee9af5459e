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

from xattn.attention import Absorbed, Segment, attend, attention_weights
from xattn.attention.merge import Part, combine
from xattn.errors import UsageError
from xattn.memory import Memory
from xattn.spec import DecoderSpec, Form

FIRST_CAPACITY = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """One or more memories as one decoder reads them: a segment per layer that cross-attends."""

    memories: tuple[Memory, ...]
    segments: tuple[Segment | None, ...]
    form: Form

    @property
    def device(self) -> torch.device:
        """Where its segments are."""
        segment = next(s for s in self.segments if s is not None)
        return (segment.states_NSD if isinstance(segment, Absorbed) else segment.k_NGSK).device

    def narrow(self, first: int, count: int) -> "Projection":
        """Memories ``first`` to ``first + count - 1`` of it, as views."""
        members = slice(first, first + count)
        return Projection(
            memories=self.memories[members],
            segments=tuple(None if s is None else s.narrow(members) for s in self.segments),
            form=self.form,
        )

    @property
    def size_bytes(self) -> int:
        """Bytes that cross-attention reads: absorbed segments share one tensor of states."""
        sizes = {
            id(s.states_NSD if isinstance(s, Absorbed) else s.k_NGSK): s.size_bytes
            for s in self.segments
            if s is not None
        }
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
        attention = spec.self_attention
        self.spec, self.slots = spec, [list(slot) for slot in slots]
        self.lengths = [0] * rows
        self.offsets = [0] * rows if offsets is None else list(offsets)
        """Positions before the first token of each row: those of a memory that it goes on from."""
        shape = (spec.layers, 2, rows, attention.kv_heads, 0, attention.head_width)
        self._kv_L2RGCK = torch.empty(shape, dtype=dtype, device=device)

    @property
    def rows(self) -> int:
        """Sequences being decoded."""
        return len(self.lengths)

    def cached_SF(self) -> Tensor:
        """Keys and values of the only row, as a memory holds them: ``[S, L * 2 * G * K]``."""
        assert self.rows == 1
        kv_L2GSK = self._kv_L2RGCK[:, :, 0, :, : self.lengths[0]]
        return kv_L2GSK.permute(3, 0, 1, 2, 4).flatten(1)

    @property
    def uniform(self) -> bool:
        """All rows have seen the same number of tokens."""
        return len(set(self.lengths)) <= 1

    @property
    def size_bytes(self) -> int:
        """Bytes of the self-attention cache, spare capacity included; memories are not counted."""
        return self._kv_L2RGCK.nbytes

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
        kv = self._kv_L2RGCK
        return DecodeState(self.spec, self.rows, self.slots, kv.dtype, kv.device, self.offsets)

    def reorder(self, rows: Sequence[int]) -> None:
        """Row j becomes a continuation of old row ``rows[j]``: reorders, repeats or drops rows."""
        order = list(rows)
        if order == list(range(self.rows)):
            return
        rows_R = torch.tensor(order, device=self._kv_L2RGCK.device)
        self._kv_L2RGCK = self._kv_L2RGCK.index_select(2, rows_R)
        self.lengths = [self.lengths[row] for row in order]
        self.offsets = [self.offsets[row] for row in order]
        self.slots = [
            [moved for group in slot if (moved := group.select(order)) is not None]
            for slot in self.slots
        ]

    def reserve(self, tokens: int) -> None:
        """Room for ``tokens`` more in every row; capacity doubles, so growth costs O(1) a token."""
        if self._kv_L2RGCK.is_inference() and not torch.is_inference_mode_enabled():
            self._kv_L2RGCK = self._kv_L2RGCK.clone()  # what step() left may not be written here
        used = max(self.lengths, default=0)
        L, two, R, G, capacity, K = self._kv_L2RGCK.shape
        if used + tokens <= capacity:
            return
        capacity = max(used + tokens, 2 * capacity, FIRST_CAPACITY)
        # Zeros: a hidden position has weight 0, and 0 times what empty memory holds can be NaN.
        grown = self._kv_L2RGCK.new_zeros((L, two, R, G, capacity, K))
        grown[..., :used, :] = self._kv_L2RGCK[..., :used, :]
        self._kv_L2RGCK = grown

    def write(self, layer: int, k_RGTK: Tensor, v_RGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's keys and values; returns all cached ones, ``[R, G, C, K]`` each.

        Rows of unequal length are written at their own end, and what lies beyond a row's length is
        hidden by the caller's bias and overwritten later.
        """
        T, used = k_RGTK.shape[2], max(self.lengths, default=0)
        cache = self._kv_L2RGCK[layer]
        if torch.is_grad_enabled():
            return self._write_differentiably(cache, k_RGTK, v_RGTK, used + T)
        if self.uniform:
            cache[0, :, :, used : used + T] = k_RGTK
            cache[1, :, :, used : used + T] = v_RGTK
        else:
            at = self._places(k_RGTK)
            cache[0].scatter_(2, at, k_RGTK)
            cache[1].scatter_(2, at, v_RGTK)
        return cache[0, :, :, : used + T], cache[1, :, :, : used + T]

    def _write_differentiably(
        self, cache_2RGCK: Tensor, k_RGTK: Tensor, v_RGTK: Tensor, end: int
    ) -> tuple[Tensor, Tensor]:
        """The same without an in-place write that autograd would have to see through."""
        at = self._places(k_RGTK)
        k_RGCK, v_RGCK = (
            cached.scatter(2, at, new)
            for cached, new in zip(cache_2RGCK.clone(), (k_RGTK, v_RGTK), strict=True)
        )
        with torch.no_grad():
            cache_2RGCK[0].copy_(k_RGCK)
            cache_2RGCK[1].copy_(v_RGCK)
        return k_RGCK[:, :, :end], v_RGCK[:, :, :end]

    def _places(self, k_RGTK: Tensor) -> Tensor:
        """Where in the cache the new tokens of each row go, ``[R, G, T, K]``."""
        R, G, T, K = k_RGTK.shape
        starts = torch.tensor(self.lengths, device=k_RGTK.device)
        at = (starts[:, None] + torch.arange(T, device=k_RGTK.device))[:, None, :, None]
        return at.expand(R, G, T, K)

    def advance(self, counts: Sequence[int]) -> None:
        """Row r has seen ``counts[r]`` more tokens."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

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
