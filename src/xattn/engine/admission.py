"""Whether a request fits: bytes that a set of requests takes at most, from shapes alone."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from xattn.engine.job import Job
from xattn.engine.room import Room
from xattn.errors import CapacityError, is_whole, require
from xattn.ledger.workspace import moving_bytes
from xattn.models.network import Network
from xattn.spec import Form


class Bytes(NamedTuple):
    """What requests take, by kind."""

    cache: int
    """Keys and values of self-attention: all rows as long as the longest."""
    memories: int
    """Projections and states, those of each source once."""
    work: int
    """Room for one step or one encoding, and for what is moved when rows join."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What an engine may hold."""

    capacity_bytes: int | None
    max_rows: int
    max_queue: int

    def __post_init__(self) -> None:
        capacity = self.capacity_bytes
        fits = capacity is None or is_whole(capacity, 1)
        require(fits, "capacity_bytes", "a whole number, at least 1, or None", capacity)
        require(is_whole(self.max_rows, 1), "max_rows", "at least 1", self.max_rows)
        require(is_whole(self.max_queue, 1), "max_queue", "at least 1", self.max_queue)
        for name in ("capacity_bytes", "max_rows", "max_queue"):
            value = getattr(self, name)  # numpy's whole numbers wrap where they are added
            object.__setattr__(self, name, None if value is None else int(value))


class Admission:
    """Foretells bytes for one decoder, and compares them with the bounds."""

    def __init__(self, network: Network, form: Form, bounds: Bounds) -> None:
        self._spec, self._room, self.bounds = network.spec.decoder, Room(network, form), bounds
        self._dtype = str(network.dtype).removeprefix("torch.")

    def predicted(self, jobs: Collection[Job]) -> Bytes:
        """What these take at most at any time before they end."""
        rows = sum(job.rows for job in jobs)
        longest = max((job.tokens for job in jobs), default=0)
        cache = self._cache(longest, rows)
        shared = {entry.identity: entry for job in jobs for entry in job.reads}
        memories = sum(entry.predicted_bytes for entry in shared.values())
        return Bytes(cache, memories, self._work(jobs, rows, longest) if jobs else 0)

    def _cache(self, tokens: int, rows: int) -> int:
        return self._spec.self_cache_bytes(tokens, rows=rows, dtype=self._dtype)

    def _work(self, jobs: Collection[Job], rows: int, longest: int) -> int:
        prompt = max(len(job.prompt) for job in jobs)
        # One prompt is read at a time, and one layer of the cache is moved at a time.
        apart = self._cache(prompt, 1) if prompt > 1 else 0
        moved = moving_bytes(self._spec, longest, rows, self._dtype)
        return self._room.bytes(jobs) + apart + moved

    def require_possible(self, job: Job) -> None:
        """Raise :class:`CapacityError` for a request that does not even fit alone."""
        if job.rows > self.bounds.max_rows:
            raise CapacityError(
                f"the request has {job.rows} rows (beams or samples), but the engine decodes at "
                f"most max_rows={self.bounds.max_rows}."
            )
        needed, capacity = self.predicted([job]), self.bounds.capacity_bytes
        if capacity is not None and needed.total > capacity:
            raise CapacityError(
                f"the request needs {needed.total} bytes ({needed.cache} for {job.rows} rows of "
                f"{job.tokens} tokens, {needed.memories} for memories of {job.positions} "
                f"positions, {needed.work} to work in), but capacity_bytes is {capacity}; "
                "allow fewer new tokens or beams, a shorter prompt or source, "
                "or give the engine more."
            )

    def require_beside(self, jobs: Collection[Job], job: Job) -> None:
        """Raise :class:`CapacityError` for a request that cannot begin beside these at once."""
        if self.fits(jobs, job):
            return
        needed, rows = self.predicted([*jobs, job]), sum(one.rows for one in [*jobs, job])
        raise CapacityError(
            f"{len(jobs)} requests are there, and with this one there would be {rows} rows and "
            f"{needed.total} bytes ({needed.cache} for caches, {needed.memories} for memories, "
            f"{needed.work} to work in), but max_rows is {self.bounds.max_rows} and "
            f"capacity_bytes is {self.bounds.capacity_bytes}; let it wait (wait=True), or try "
            "again when one of them has ended."
        )

    def fits(self, jobs: Collection[Job], job: Job) -> bool:
        """Whether there is room for another one beside these."""
        together = [*jobs, job]
        if sum(one.rows for one in together) > self.bounds.max_rows:
            return False
        capacity = self.bounds.capacity_bytes
        return capacity is None or self.predicted(together).total <= capacity
