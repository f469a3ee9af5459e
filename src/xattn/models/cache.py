"""Keys and values of what a decoder has seen: the self-attention cache.

A beam that goes on in two ways is not copied. Numbers stay in the physical row that they were
written to, and a table says for every row where each of its tokens lies; re-ordering moves the
table. What reads whole rows (torch) has the cache *settled* first, each row in a place of its own.

Axes: R rows, P physical rows, L layers, G key/value heads, C places for tokens, K head width, T new
tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from xattn.errors import require
from xattn.spec import DecoderSpec

FIRST_CAPACITY = 32

Table = np.ndarray[tuple[int, int], np.dtype[np.int32]]


class SelfCache:
    """The cache of one decode state; grows by doubling, so that growth costs O(1) a token."""

    def __init__(
        self, spec: DecoderSpec, rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        attention = spec.self_attention
        shape = (spec.layers, 2, rows, attention.kv_heads, 0, attention.head_width)
        self.kv_L2PGCK = torch.empty(shape, dtype=dtype, device=device)
        self.lengths = [0] * rows
        """Tokens that each row has seen."""
        self.own = list(range(rows))
        """The physical row that new tokens of each row are written to."""
        self.places_RC: Table | None = None
        """Where each token of each row lies; None while all lie in the row's own."""

    @property
    def uniform(self) -> bool:
        """All rows have seen the same number of tokens."""
        return len(set(self.lengths)) <= 1

    @property
    def capacity(self) -> int:
        """Tokens for which each row has room."""
        return self.kv_L2PGCK.shape[4]

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return self.kv_L2PGCK.nbytes

    def reorder(self, rows: Sequence[int]) -> None:
        """Row j becomes a continuation of old row ``rows[j]``: reorders, repeats or drops rows."""
        taken: set[int] = set()
        own = []
        for row in rows:
            place = self.own[row]
            own.append(-1 if place in taken else place)
            taken.add(place)
        lengths = [self.lengths[row] for row in rows]
        if self.places_RC is not None:
            self.places_RC = self.places_RC[list(rows)]
        elif -1 in own:
            first_R1 = np.array([[self.own[row]] for row in rows], dtype=np.int32)
            self.places_RC = np.repeat(first_R1, self.capacity, axis=1)
        self.lengths = lengths
        if -1 in own:
            self._find_places(own, taken)
        self.own = own

    def _find_places(self, own: list[int], taken: set[int]) -> None:
        """Give each row without a physical row (-1) one that nobody would miss."""
        free = [p for p in range(self.kv_L2PGCK.shape[2]) if p not in taken]
        if not self.uniform:
            # A shorter row would overwrite what a longer one still reads of its ancestors.
            free = [p for p in free if p not in self._read()]
        missing = own.count(-1) - len(free)
        if missing > 0:
            before = self.kv_L2PGCK.shape[2]
            self._resize(before + missing, self.capacity)
            free += range(before, before + missing)
        for j, place in enumerate(own):
            if place < 0:
                own[j] = free.pop(0)

    def _read(self) -> set[int]:
        assert self.places_RC is not None
        seen = [self.places_RC[r, :n] for r, n in enumerate(self.lengths)]
        return set(np.unique(np.concatenate(seen)).tolist())

    def reserve(self, tokens: int) -> None:
        """Room for ``tokens`` more in every row."""
        if self.kv_L2PGCK.is_inference() and not torch.is_inference_mode_enabled():
            self.kv_L2PGCK = self.kv_L2PGCK.clone()  # what step() left may not be written here
        needed = max(self.lengths, default=0) + tokens
        if needed <= self.capacity:
            return
        capacity = max(needed, 2 * self.capacity, FIRST_CAPACITY)
        self._resize(self.kv_L2PGCK.shape[2], capacity)
        if self.places_RC is not None:
            more = capacity - self.places_RC.shape[1]
            self.places_RC = np.pad(self.places_RC, ((0, 0), (0, more)))

    def _resize(self, physical_rows: int, capacity: int) -> None:
        L, two, P, G, C, K = self.kv_L2PGCK.shape
        # Zeros: a hidden position has weight 0, and 0 times what empty memory holds can be NaN.
        grown = self.kv_L2PGCK.new_zeros((L, two, physical_rows, G, capacity, K))
        grown[:, :, :P, :, :C] = self.kv_L2PGCK
        self.kv_L2PGCK = grown

    def settle(self) -> None:
        """Row r in physical row r, and no other: as torch reads it."""
        R, P = len(self.own), self.kv_L2PGCK.shape[2]
        if self.places_RC is None:
            if self.own == list(range(P)):
                return
            own = torch.tensor(self.own, device=self.kv_L2PGCK.device)
            self.kv_L2PGCK = self.kv_L2PGCK.index_select(2, own)
        else:
            used, old = max(self.lengths, default=0), self.kv_L2PGCK
            L, two, _, G, C, K = old.shape
            places = torch.from_numpy(self.places_RC[:, :used].astype(np.int64)).to(old.device)
            at = torch.arange(used, device=old.device)
            settled = old.new_zeros((L, two, R, G, C, K))
            # What lies beyond a row's length is no row's, and hidden.
            found_RCL2GK = old.permute(2, 4, 0, 1, 3, 5)[places.clamp(max=P - 1), at]
            settled[..., :used, :] = found_RCL2GK.permute(2, 3, 0, 4, 1, 5)
            self.kv_L2PGCK, self.places_RC = settled, None
        self.own = list(range(R))

    def write(self, layer: int, k_RGTK: Tensor, v_RGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's keys and values; returns all cached ones, ``[R, G, C, K]`` each.

        The cache is settled. Rows of unequal length are written at their own end, and what lies
        beyond a row's length is hidden by the caller's bias and overwritten later.
        """
        T, used = k_RGTK.shape[2], max(self.lengths, default=0)
        cache = self.kv_L2PGCK[layer]
        if torch.is_grad_enabled():
            return self._write_differentiably(cache, k_RGTK, v_RGTK, used + T)
        if self.uniform:
            cache[0, :, :, used : used + T] = k_RGTK
            cache[1, :, :, used : used + T] = v_RGTK
        else:
            at = self._ends(k_RGTK)
            cache[0].scatter_(2, at, k_RGTK)
            cache[1].scatter_(2, at, v_RGTK)
        return cache[0, :, :, : used + T], cache[1, :, :, : used + T]

    def _write_differentiably(
        self, cache_2RGCK: Tensor, k_RGTK: Tensor, v_RGTK: Tensor, end: int
    ) -> tuple[Tensor, Tensor]:
        """The same without an in-place write that autograd would have to see through."""
        at = self._ends(k_RGTK)
        k_RGCK, v_RGCK = (
            cached.scatter(2, at, new)
            for cached, new in zip(cache_2RGCK.clone(), (k_RGTK, v_RGTK), strict=True)
        )
        with torch.no_grad():
            cache_2RGCK[0].copy_(k_RGCK)
            cache_2RGCK[1].copy_(v_RGCK)
        return k_RGCK[:, :, :end], v_RGCK[:, :, :end]

    def _ends(self, k_RGTK: Tensor) -> Tensor:
        """Where in the cache the new tokens of each row go, ``[R, G, T, K]``."""
        R, G, T, K = k_RGTK.shape
        starts = torch.tensor(self.lengths, device=k_RGTK.device)
        at = (starts[:, None] + torch.arange(T, device=k_RGTK.device))[:, None, :, None]
        return at.expand(R, G, T, K)

    def advance(self, counts: Sequence[int]) -> None:
        """Row r has seen ``counts[r]`` more tokens."""
        if self.places_RC is not None:
            for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
                self.places_RC[row, length : length + count] = self.own[row]
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what row r has seen after its first ``lengths[r]`` tokens."""
        fits = len(lengths) == len(self.lengths)
        fits = fits and all(0 <= n <= seen for n, seen in zip(lengths, self.lengths, strict=True))
        bound = f"one for each row, and at most what it has seen ({self.lengths})"
        require(fits, "lengths", bound, list(lengths))
        if self.places_RC is not None:
            # A row's new tokens would overwrite old ones of its own that another row still reads.
            self.settle()
        self.lengths = list(lengths)

    def only_row_SF(self) -> Tensor:
        """Keys and values of the only row, as a memory holds them: ``[S, L * 2 * G * K]``."""
        assert len(self.lengths) == 1
        self.settle()
        kv_L2GSK = self.kv_L2PGCK[:, :, 0, :, : self.lengths[0]]
        return kv_L2GSK.permute(3, 0, 1, 2, 4).flatten(1)
