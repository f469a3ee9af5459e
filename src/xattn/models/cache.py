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
from xattn.spec import DecoderSpec, grown_capacity

Table = np.ndarray[tuple[int, int], np.dtype[np.int32]]


class SelfCache:
    """The cache of one decode state; grows by doubling, so that growth costs O(1) a token.

    Each layer has a tensor of its own: what is moved is held twice for one layer at a time.
    """

    def __init__(
        self, spec: DecoderSpec, rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        attention = spec.self_attention
        shape = (2, rows, attention.kv_heads, 0, attention.head_width)
        self.layers_2PGCK = [
            torch.empty(shape, dtype=dtype, device=device) for _ in range(spec.self_layers)
        ]
        self.lengths = [0] * rows
        """Tokens that each row has seen."""
        self.own = list(range(rows))
        """The physical row that new tokens of each row are written to."""
        self.places_RC: Table | None = None
        """Where each token of each row lies; None while all lie in the row's own."""
        self.most: int | None = None
        """Tokens that no row will see more of, where that is known: growth ends there."""
        self.keeps = True
        """Whether what is written stays; not where all tokens pass at once, as in training."""

    @property
    def uniform(self) -> bool:
        """All rows have seen the same number of tokens."""
        return len(set(self.lengths)) <= 1

    @property
    def physical_rows(self) -> int:
        """Rows that there is room for."""
        return self.layers_2PGCK[0].shape[1]

    @property
    def capacity(self) -> int:
        """Tokens for which each row has room."""
        return self.layers_2PGCK[0].shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return sum(kv.nbytes for kv in self.layers_2PGCK)

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
            self.places_RC = self._table([self.own[row] for row in rows])
        self.lengths = lengths
        self.own = own
        if -1 in own:
            self._find_places(taken)

    def _table(self, own: Sequence[int]) -> Table:
        """Where tokens lie that all lie in the row's own physical row."""
        return np.repeat(np.array(own, dtype=np.int32)[:, None], self.capacity, axis=1)

    def _find_places(self, taken: set[int]) -> None:
        """Give each row without a physical row (-1) one that nobody would miss.

        A row overwrites what lies beyond its length, which a longer one may still read of its
        ancestors. Short rows choose first: what is good for them is good for longer ones.
        """
        own, free = self.own, [p for p in range(self.physical_rows) if p not in taken]
        read_P = [0] * self.physical_rows if self.uniform else self._read()
        # What is read anyway first: the others are left to rows that join.
        free.sort(key=lambda place: -read_P[place])
        for j in sorted((j for j, p in enumerate(own) if p < 0), key=self.lengths.__getitem__):
            place = next((p for p in free if read_P[p] <= self.lengths[j]), None)
            if place is not None:
                own[j] = place
                free.remove(place)
        missing = [j for j, place in enumerate(own) if place < 0]
        before = self.physical_rows
        if missing and before + len(missing) > len(own):
            self.settle()  # rows that nobody owns are still read
            return
        self._resize(before + len(missing), self.capacity)
        for place, j in enumerate(missing, before):
            own[j] = place

    def _read(self) -> list[int]:
        """How many places of each physical row are read at most, from its first."""
        read_P = np.zeros(self.physical_rows, dtype=np.int64)
        table_RC = self._table(self.own) if self.places_RC is None else self.places_RC
        for row, length in enumerate(self.lengths):
            # Of equal places the last counts: the one farthest on.
            of_row = np.zeros_like(read_P)
            of_row[table_RC[row, :length]] = np.arange(1, length + 1)
            np.maximum(read_P, of_row, out=read_P)
        found: list[int] = read_P.tolist()
        return found

    def _free(self) -> list[int]:
        """Physical rows that no row owns or reads."""
        owned = set(self.own)
        return [p for p, read in enumerate(self._read()) if read == 0 and p not in owned]

    def join(self, other: "SelfCache") -> None:
        """Append the rows of ``other``, which is left settled; physical rows are used again."""
        other.settle()
        self._make_writable()
        used = max(other.lengths, default=0)
        if len(self._free()) < len(other.lengths) and self.physical_rows > len(self.own):
            self.settle()  # as above
        free, before = self._free()[: len(other.lengths)], self.physical_rows
        missing = len(other.lengths) - len(free)
        free += range(before, before + missing)
        self._resize(before + missing, max(self.capacity, used))
        at = torch.tensor(free, dtype=torch.long, device=self.layers_2PGCK[0].device)
        for mine, theirs in zip(self.layers_2PGCK, other.layers_2PGCK, strict=True):
            mine[:, at, :, :used] = theirs[..., :used, :]
        if self.places_RC is not None:
            self.places_RC = np.concatenate((self.places_RC, self._table(free)))
        self.own += free
        self.lengths = self.lengths + other.lengths

    def reserve(self, tokens: int) -> None:
        """Room for ``tokens`` more in every row."""
        if not self.keeps:
            return
        self._make_writable()
        needed = max(self.lengths, default=0) + tokens
        self._resize(self.physical_rows, grown_capacity(self.capacity, needed, self.most))

    def _make_writable(self) -> None:
        """Outside of inference mode, what step() left may not be written."""
        if self.layers_2PGCK[0].is_inference() and not torch.is_inference_mode_enabled():
            self.layers_2PGCK = [kv.clone() for kv in self.layers_2PGCK]

    def fit(self, tokens: int) -> None:
        """Give back spare rows, and room for more than ``tokens``."""
        self.settle()
        seen = max(self.lengths, default=0)
        self._resize(len(self.own), max(seen, min(tokens, self.capacity)))

    def _resize(self, physical_rows: int, capacity: int) -> None:
        """Room for so many, which is at least as much as is read."""
        P, C = physical_rows, capacity
        if (P, C) == (self.physical_rows, self.capacity):
            return
        if self.places_RC is not None:
            more = max(0, C - self.places_RC.shape[1])
            self.places_RC = np.pad(self.places_RC[:, :C], ((0, 0), (0, more)))
        P_kept, C_kept = min(P, self.physical_rows), min(C, self.capacity)
        for layer, kv in enumerate(self.layers_2PGCK):
            # Zeros: a hidden position has weight 0, and 0 times what empty memory holds can be NaN.
            resized = kv.new_zeros((2, P, kv.shape[2], C, kv.shape[4]))
            resized[:, :P_kept, :, :C_kept] = kv[:, :P_kept, :, :C_kept]
            self.layers_2PGCK[layer] = resized

    def settle(self) -> None:
        """Row r in physical row r, and no other: as torch reads it."""
        R, P = len(self.own), self.physical_rows
        device = self.layers_2PGCK[0].device
        if self.places_RC is None:
            if self.own == list(range(P)):
                return
            own = torch.tensor(self.own, dtype=torch.long, device=device)
            for layer, kv in enumerate(self.layers_2PGCK):
                self.layers_2PGCK[layer] = kv.index_select(1, own)
        else:
            used = max(self.lengths, default=0)
            places = torch.from_numpy(self.places_RC[:, :used].astype(np.int64)).to(device)
            at = torch.arange(used, device=device)
            for layer, old in enumerate(self.layers_2PGCK):
                settled = old.new_zeros((2, R, *old.shape[2:]))
                # What lies beyond a row's length is no row's, and hidden.
                found_RC2GK = old.permute(1, 3, 0, 2, 4)[places.clamp(0, P - 1), at]
                settled[..., :used, :] = found_RC2GK.permute(2, 0, 3, 1, 4)
                self.layers_2PGCK[layer] = settled
            self.places_RC = None
        self.own = list(range(R))

    def write(self, layer: int, k_RGTK: Tensor, v_RGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's keys and values; returns all cached ones, ``[R, G, C, K]`` each.

        The cache is settled. Rows of unequal length are written at their own end, and what lies
        beyond a row's length is hidden by the caller's bias and overwritten later.
        """
        if not self.keeps:
            return k_RGTK, v_RGTK
        T, used = k_RGTK.shape[2], max(self.lengths, default=0)
        cache = self.layers_2PGCK[layer]
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
        if not self.keeps:
            return
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
        kv_L2GSK = torch.stack([kv[:, 0, :, : self.lengths[0]] for kv in self.layers_2PGCK])
        return kv_L2GSK.permute(3, 0, 1, 2, 4).flatten(1)
