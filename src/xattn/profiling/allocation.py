"""Who holds which tensor: what torch allocates in a block, by the phase that asked for it.

Every operation of torch is seen, also those that give the compiled kernels their room; what they do
with it is not. Files that are mapped are no allocations.
"""

import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PACKAGE = str(Path(__file__).parents[1])
OUTSIDE = "elsewhere"
"""The tag of what is made in no phase."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Equal tensors of one owner."""

    tag: str
    owner: str
    """The function of this package that asked for them."""
    count: int
    bytes: int
    """Of all of them."""


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """What one phase allocated."""

    tag: str
    peak: int
    """Bytes that were there at once, at most."""
    resident: int
    """Bytes that were still there when it ended for the last time."""


@dataclass(frozen=True)
class _Block:
    tag: str
    owner: str
    bytes: int


@dataclass
class _Phase:
    """One that is going on."""

    tag: str
    most: int


@dataclass
class _Counts:
    now: int = 0
    peak: int = 0
    resident: int = 0


@dataclass
class _Seen:
    """What finalisers change; apart from the mode, so that none keeps it alive."""

    blocks: dict[int, _Block] = field(default_factory=dict)
    counts: dict[str, _Counts] = field(default_factory=dict)
    total: int = 0

    def forget(self, key: int) -> None:
        block = self.blocks.pop(key, None)
        if block is not None:
            self.total -= block.bytes
            self.counts[block.tag].now -= block.bytes


class Allocations(TorchDispatchMode):
    """While it lasts, every tensor's storage is noted when it is made, and when it goes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen, self._phases = _Seen(), [_Phase(OUTSIDE, 0)]
        self._at_peak: list[_Block] = []
        self.peak_bytes = 0
        """Of all tags together."""
        self.working: dict[str, int] = {}
        """Bytes that each phase needed beyond what was there when it ended, at most."""

    @property
    def total_bytes(self) -> int:
        """What is there now."""
        return self._seen.total

    @contextmanager
    def tagged(self, tag: str) -> Iterator[None]:
        """What is made in this block is of this phase; the innermost counts."""
        phase = _Phase(tag, self._seen.total)
        self._phases.append(phase)
        try:
            yield
        finally:
            self._phases.pop()
            counts = self._seen.counts.setdefault(tag, _Counts())
            counts.resident = counts.now
            spare = phase.most - self._seen.total
            self.working[tag] = max(spare, self.working.get(tag, 0))

    def begin_again(self) -> None:
        """Look for the peak of all together from here on."""
        self.peak_bytes, self._at_peak = self._seen.total, list(self._seen.blocks.values())

    def tags(self) -> tuple[Tagged, ...]:
        """All phases, in the order in which they began to allocate."""
        return tuple(
            Tagged(tag=tag, peak=counts.peak, resident=counts.resident)
            for tag, counts in self._seen.counts.items()
        )

    def largest(self, most: int = 12) -> tuple[Held, ...]:
        """Who held what when all together was at its peak; equal tensors of an owner are one."""
        groups: dict[_Block, int] = {}
        for block in self._at_peak:
            groups[block] = groups.get(block, 0) + 1
        found = [
            Held(tag=one.tag, owner=one.owner, count=count, bytes=count * one.bytes)
            for one, count in groups.items()
        ]
        return tuple(sorted(found, key=lambda one: -one.bytes)[:most])

    def note(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count these, too, where no operation of torch made them."""
        for tensor in tensors:
            self._add(tensor.untyped_storage())

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        # A view's storage is that of what was given: made elsewhere, or known.
        given = {id(one) for one in _storages((args, kwargs))}
        for storage in _storages(found):
            if id(storage) not in given:
                self._add(storage)
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        seen, key, size = self._seen, storage._cdata, storage.nbytes()
        if key in seen.blocks or not size or storage.device.type == "meta":
            return
        block = _Block(self._phases[-1].tag, _owner(), size)
        seen.blocks[key] = block
        weakref.finalize(storage, seen.forget, key).atexit = False
        counts = seen.counts.setdefault(block.tag, _Counts())
        counts.now += size
        counts.peak = max(counts.peak, counts.now)
        seen.total += size
        for phase in self._phases:
            phase.most = max(phase.most, seen.total)
        if seen.total > self.peak_bytes:
            self.peak_bytes, self._at_peak = seen.total, list(seen.blocks.values())


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
            yield leaf.untyped_storage()


def _owner() -> str:
    """The innermost function of this package that is running, without this module's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE) and path != __file__:
            module = Path(path).relative_to(PACKAGE).with_suffix("").as_posix()
            return f"{module}: {frame.f_code.co_qualname}"
        frame = frame.f_back
    return OUTSIDE
