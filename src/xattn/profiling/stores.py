"""When a store pays: requests for the same inputs, with a store on disk and with none.

A request whose inputs are there costs making them canonical and reading; the first, encoding and
writing besides, with the locks that keep others from doing the same. So n requests cost
``encode + put + (n - 1) get`` with a store, and ``n encode`` without: the two meet at
``1 + put / (encode - get)``.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from xattn.model import Model
from xattn.models.encode import Prepared
from xattn.store import MemoryStore

TRIES = 5
SWEPT = 3


@dataclass(frozen=True, kw_only=True)
class StoreTimes:
    """What a store on disk saves, and from which request on."""

    encode_seconds: float
    """Making all inputs canonical, and encoding them."""
    put_seconds: float
    """What the first request costs beyond encoding: writing its memories."""
    get_seconds: float
    """Making all inputs canonical, and reading their memories."""
    predicted_requests: float
    """Requests for the same inputs from which a store is quicker; infinite where it never is."""
    measured: tuple[tuple[int, float, float], ...]
    """Requests, seconds without a store, seconds with one."""
    hits: int
    """Memories that the stores of the sweep gave back."""
    misses: int
    """Memories that they had not, and that were encoded and kept."""

    @property
    def measured_requests(self) -> float | None:
        """Where the two lines of the sweep meet; None where they do not.

        Where a store is quicker at the first number already, that number.
        """
        before: tuple[int, float] | None = None
        for count, without, with_one in self.measured:
            lost = with_one - without
            if lost <= 0:
                if before is None:
                    return float(count)
                last, was = before
                return last + (count - last) * was / (was - lost)
            before = (count, lost)
        return None


def compare(
    model: Model,
    prepare: Callable[[], list[Prepared]],
    requests: Sequence[int],
    *,
    encode_seconds: float,
) -> StoreTimes:
    """Each store begins empty, with nothing in RAM; medians."""
    with tempfile.TemporaryDirectory() as directory:
        sweep = _Sweep(model, prepare, Path(directory))
        first, get = sweep.first_and_next()
        measured = tuple(sweep.compared(count) for count in sorted(set(requests)))
    put, saved = max(0.0, first - encode_seconds), encode_seconds - get
    return StoreTimes(
        encode_seconds=encode_seconds,
        put_seconds=put,
        get_seconds=get,
        predicted_requests=1 + put / saved if saved > 0 else math.inf,
        measured=measured,
        hits=sweep.hits,
        misses=sweep.misses,
    )


class _Sweep:
    """Stores that are made, used, and left."""

    def __init__(
        self, model: Model, prepare: Callable[[], list[Prepared]], directory: Path
    ) -> None:
        self._model, self._prepare, self._directory = model, prepare, directory
        self._made = self.hits = self.misses = 0

    def first_and_next(self) -> tuple[float, float]:
        """A request to an empty store, and one that finds everything."""
        firsts, nexts = [], []
        for _ in range(TRIES):
            with self._empty() as store:
                firsts.append(_seconds(partial(self._request, store)))
                nexts.append(_seconds(partial(self._request, store)))
        return median(firsts), median(nexts)

    def compared(self, count: int) -> tuple[int, float, float]:
        """So many requests without and with a store, in turns."""
        tries = [(self._without(count), self._with(count)) for _ in range(SWEPT)]
        return count, median(a for a, _ in tries), median(b for _, b in tries)

    def _without(self, count: int) -> float:
        return _seconds(
            lambda: [self._model.encode_prepared(self._prepare()) for _ in range(count)]
        )

    def _with(self, count: int) -> float:
        with self._empty() as store:
            seconds = _seconds(lambda: [self._request(store) for _ in range(count)])
            self.hits += store.counters.hits
            self.misses += store.counters.misses
        return seconds

    def _empty(self) -> MemoryStore:
        self._made += 1
        return MemoryStore(self._directory / str(self._made), ram_bytes=0)

    def _request(self, store: MemoryStore) -> Any:
        return store.get_or_encode_prepared(self._model, self._prepare())


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
