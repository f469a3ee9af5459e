"""Numbers in pages of 2 MiB: memory that is read from end to end is read faster when it has few.

A decoder reads all its weights for every token. In pages of 4 KiB the processor spends a third of
that time on finding the pages. Linux gives larger ones to those who ask (``madvise``); elsewhere,
and where it has none to give, the same numbers are in ordinary pages.
"""

import ctypes
import functools
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HUGE = 2 << 20
LINE = 64
"""Bytes that the processor reads at once."""


def spacious(*shape: int, dtype: torch.dtype) -> Tensor:
    """An empty tensor on the CPU, in huge pages where it is large enough to have some."""
    tensor = torch.empty(shape, dtype=dtype)
    advise = _advice()
    if advise is not None and tensor.nbytes >= 2 * HUGE:
        first = -(-tensor.data_ptr() // HUGE) * HUGE
        last = (tensor.data_ptr() + tensor.nbytes) // HUGE * HUGE
        advise(first, last - first, mmap.MADV_HUGEPAGE)
    return tensor


class Room:
    """A stretch of memory for tensors on the CPU that are laid into it one after the other.

    It is in huge pages where there are some; elsewhere each tensor has a place of its own.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        """For tensors of ``sizes`` bytes."""
        total = sum(map(_room, sizes))
        large = _advice() is not None and total >= 2 * HUGE
        self._place = spacious(total, dtype=torch.uint8) if large else None
        self._used = 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An empty tensor, in the next place."""
        if self._place is None:
            return torch.empty(*shape, dtype=dtype)
        size = math.prod(shape) * dtype.itemsize
        taken = self._place[self._used : self._used + size].view(dtype).view(*shape)
        self._used += _room(size)
        return taken


def forget_mapped(held: Tensor | np.ndarray[Any, Any]) -> None:
    """Let go of the pages of a mapped file that hold only numbers of this tensor or array.

    They are read from the file again if anyone asks; until then they take no memory.
    """
    advise = _advice()
    if advise is None:
        return
    address = held.data_ptr() if isinstance(held, Tensor) else held.ctypes.data
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + held.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        advise(first, last - first, mmap.MADV_DONTNEED)


def put_together(module: nn.Module) -> None:
    """Move all weights and buffers of a module on the CPU to one place, in the order it has them.

    They keep their values and become views of one storage; weights that are one tensor stay one.
    """
    held = [tensor for tensor in _tensors(module) if tensor.device.type == "cpu"]
    sizes = [tensor.nbytes for tensor in held]
    if _advice() is None or sum(map(_room, sizes)) < 2 * HUGE:
        return
    room = Room(sizes)
    for tensor in held:
        tensor.data = room.take(tensor.shape, tensor.dtype).copy_(tensor)
    _give_back()


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    every: Iterable[Tensor] = (*module.parameters(), *module.buffers())
    yield from {id(tensor): tensor for tensor in every}.values()


def _room(nbytes: int) -> int:
    return math.ceil(nbytes / LINE) * LINE


def _give_back() -> None:
    """Return to the system what the C library keeps of memory that was freed (glibc)."""
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _advice() -> Callable[[int, int, int], int] | None:
    """``madvise`` of the C library, where it knows huge pages."""
    if os.name != "posix" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function
