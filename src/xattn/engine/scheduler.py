"""Who is next: priorities first, tenants in turn by what they have used, and nobody for ever last.

A plain object without threads, clocks or tensors.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE = 64
"""Requests submitted later that may begin before one that waits."""
LOOKED_AT = 32
"""Of those that wait, how many are asked whether they fit."""


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
class _Tenant:
    used: float = 0.0
    """Rows times steps, or where it joined the others: its virtual time."""
    waiting: int = 0
    running: int = 0

    @property
    def active(self) -> bool:
        return self.waiting + self.running > 0


@dataclass
class Scheduler(Generic[T]):
    """The queue.

    Higher priorities go first. Within one, the tenant goes first that has used least (start-time
    fair queueing, Goyal et al. 1996): an item is charged for all that it may use when it begins,
    and gets back what it has not used when it ends. A tenant that comes back has used no less than
    the least of the active ones, so that it cannot save up. Within a tenant the first to come is
    the first to go. Whoever stood first and was overtaken ``patience``
    times goes before all others, and nobody overtakes it any more, not even where the others would
    fit and it does not.
    """

    patience: int = PATIENCE
    _queue: list[Waiting[T]] = field(default_factory=list)
    _tenants: dict[str, _Tenant] = field(default_factory=dict)
    _count: int = 0

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
        self._entered(tenant).waiting += 1
        return entry

    def remove(self, wanted: Callable[[T], bool]) -> list[T]:
        """Take out of the queue what is wanted, in the order of submission."""
        taken = [entry for entry in self._queue if wanted(entry.item)]
        for entry in taken:
            self._queue.remove(entry)
            self._tenants[entry.tenant].waiting -= 1
        self._forget()
        return [entry.item for entry in taken]

    def next(self, fits: Callable[[T], bool]) -> T | None:
        """Take out what begins now, of what fits; None where nothing may begin."""
        for entry in islice(self._order(), LOOKED_AT):
            if fits(entry.item):
                self._begin(entry)
                return entry.item
            if entry.overtaken >= self.patience:
                return None
        return None

    def end(self, tenant: str, unused: float = 0.0) -> None:
        """A running item of ``tenant`` is over, and has used so much less than its cost."""
        self._tenants[tenant].running -= 1
        self._tenants[tenant].used -= unused
        self._forget()

    def _order(self) -> Iterable[Waiting[T]]:
        def rank(entry: Waiting[T]) -> tuple[bool, int, float, int]:
            patient = entry.overtaken < self.patience
            if not patient:
                return (False, 0, 0.0, entry.number)
            return (True, -entry.priority, self._tenants[entry.tenant].used, entry.number)

        return sorted(self._queue, key=rank)

    def _heads(self) -> Iterable[Waiting[T]]:
        """The first of each line; those behind it wait for it, and not for others."""
        lines: dict[tuple[str, int], Waiting[T]] = {}
        for entry in self._queue:
            lines.setdefault((entry.tenant, entry.priority), entry)
        return lines.values()

    def _begin(self, begun: Waiting[T]) -> None:
        self._queue.remove(begun)
        for entry in self._heads():
            entry.overtaken += entry.number < begun.number
        tenant = self._tenants[begun.tenant]
        tenant.waiting -= 1
        tenant.running += 1
        tenant.used += begun.cost

    def _least(self) -> float:
        return min((t.used for t in self._tenants.values() if t.active), default=0.0)

    def _entered(self, name: str) -> _Tenant:
        tenant = self._tenants.setdefault(name, _Tenant())
        if not tenant.active:
            tenant.used = max(tenant.used, self._least())
        return tenant

    def _forget(self) -> None:
        """Tenants that have nothing here, and nothing to make up for: there may be many."""
        least = self._least()
        alone = not any(tenant.active for tenant in self._tenants.values())
        for name, tenant in list(self._tenants.items()):
            if not tenant.active and (alone or tenant.used <= least):
                del self._tenants[name]
