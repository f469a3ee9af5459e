"""Who is next: priorities first, tenants in turn by what they have used, and nobody for ever last.

A plain object without threads, clocks or tensors.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE = 64
"""Requests submitted later that may begin before one that waits, and between two that did."""
LOOKED_AT = 32
"""Of those that wait, how many are asked whether they fit."""
REMEMBERED = 1024
"""Lines that have nothing here, of which it is known what they used."""


@dataclass(eq=False)
class Waiting(Generic[T]):
    """An entry of the queue."""

    item: T
    tenant: str
    priority: int
    cost: float = 1.0
    """What its tenant is charged when it begins: all that it may use."""
    number: int = 0
    """In the order of submission."""
    overtaken: int = 0
    """How many that came later have begun while it was the first of its tenant and priority."""


@dataclass
class _Line:
    """What a tenant has at one priority."""

    used: float = 0.0
    """By what has ended, or where it joined the others: its virtual time."""
    reserved: float = 0.0
    """Costs of what runs."""
    waiting: int = 0
    running: int = 0

    @property
    def charged(self) -> float:
        """All that it may have used in the end."""
        return self.used + self.reserved

    @property
    def active(self) -> bool:
        return self.waiting + self.running > 0


@dataclass
class Scheduler(Generic[T]):
    """The queue.

    Higher priorities go first. Within one, the tenant goes first that is charged least (start-time
    fair queueing, Goyal et al. 1996): for what it used, and for all that its running items may
    use. A tenant that comes, or comes back, has used no less than the one that began last had, so
    that it cannot save up; what others have running is no lead over them, since most of it may be
    given back. Within a tenant the first to come is the first to go.

    Whoever stood first and was overtaken ``patience`` times is next, once for every ``patience``
    that begin: the others keep their priorities and shares. Nobody overtakes it then, not even
    where the others would fit and it does not.
    """

    patience: int = PATIENCE
    _queue: list[Waiting[T]] = field(default_factory=list)
    _lines: dict[tuple[str, int], _Line] = field(default_factory=dict)
    _clocks: dict[int, float] = field(default_factory=dict)
    """For each priority, what the tenant that began last had used by then."""
    _count: int = 0
    _begun: int = 0
    """How many have begun since one that had been overtaken so often."""

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[T]:
        """What waits, in the order of submission."""
        return (entry.item for entry in self._queue)

    def push(
        self, item: T, *, tenant: str = "", priority: int = 0, cost: float = 1.0
    ) -> Waiting[T]:
        """Put an item into the queue."""
        entry = Waiting(item, tenant, priority, cost, number=self._count)
        self._count += 1
        self._queue.append(entry)
        line = self._lines.setdefault((tenant, priority), _Line())
        if not line.waiting:
            line.used = max(line.used, self._clocks.get(priority, 0.0))
        line.waiting += 1
        return entry

    def remove(self, wanted: Callable[[T], bool]) -> list[T]:
        """Take out of the queue what is wanted, in the order of submission."""
        taken = [entry for entry in self._queue if wanted(entry.item)]
        for entry in taken:
            self._queue.remove(entry)
            self._line(entry).waiting -= 1
        self._forget()
        return [entry.item for entry in taken]

    def next(self, fits: Callable[[T], bool]) -> T | None:
        """Take out what begins now, of what fits; None where nothing may begin."""
        due = self._due()
        if due is not None:
            if not fits(due.item):
                return None
            self._begin(due)
            self._begun = 0
            return due.item
        for entry in islice(self._order(), LOOKED_AT):
            if fits(entry.item):
                self._begin(entry)
                return entry.item
        return None

    def end(self, tenant: str, priority: int = 0, *, cost: float = 1.0, used: float = 1.0) -> None:
        """A running item is over, and has used so much of its cost."""
        line = self._lines[tenant, priority]
        line.running -= 1
        line.reserved -= cost
        line.used += used
        self._forget()

    def charged(self, tenant: str, priority: int = 0) -> float:
        """What a tenant with items here is charged for so far."""
        return self._lines[tenant, priority].charged

    def _line(self, entry: Waiting[T]) -> _Line:
        return self._lines[entry.tenant, entry.priority]

    def _due(self) -> Waiting[T] | None:
        """The one that was overtaken often enough, where it is time for such a one."""
        if self._begun < self.patience:
            return None
        patient = [entry for entry in self._heads() if entry.overtaken >= self.patience]

        def rank(entry: Waiting[T]) -> tuple[float, int]:
            ahead = self._line(entry).charged - self._clocks.get(entry.priority, 0.0)
            return (ahead, entry.number)

        return min(patient, key=rank, default=None)

    def _order(self) -> Iterable[Waiting[T]]:
        def rank(entry: Waiting[T]) -> tuple[int, float, int]:
            return (-entry.priority, self._line(entry).charged, entry.number)

        return sorted(self._queue, key=rank)

    def _heads(self) -> Iterable[Waiting[T]]:
        """The first of each line; those behind it wait for it, and not for others."""
        lines: dict[tuple[str, int], Waiting[T]] = {}
        for entry in self._queue:
            lines.setdefault((entry.tenant, entry.priority), entry)
        return lines.values()

    def _begin(self, begun: Waiting[T]) -> None:
        self._queue.remove(begun)
        self._begun += 1
        for entry in self._heads():
            entry.overtaken += entry.number < begun.number
        line = self._line(begun)
        self._clocks[begun.priority] = max(self._clocks.get(begun.priority, 0.0), line.used)
        line.waiting -= 1
        line.running += 1
        line.reserved += begun.cost

    def _forget(self) -> None:
        """Lines that have nothing here, and nothing to make up for: there may be many."""
        active = {name[1] for name, line in self._lines.items() if line.active}
        idle = [name for name, line in self._lines.items() if not line.active]
        for n, (tenant, priority) in enumerate(idle):
            over = self._lines[tenant, priority].used <= self._clocks.get(priority, 0.0)
            if over or priority not in active or n < len(idle) - REMEMBERED:
                del self._lines[tenant, priority]
        for priority in self._clocks.keys() - active:
            del self._clocks[priority]
