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
from collections.abc import Callable, Iterable, Iterator

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


def put_together(module: nn.Module) -> None:
    """Move all weights and buffers of a module on the CPU to one place, in the order it has them.

    They keep their values and become views of one storage; weights that are one tensor stay one.
    """
    held = [tensor for tensor in _tensors(module) if tensor.device.type == "cpu"]
    total = sum(_room(tensor.nbytes) for tensor in held)
    if _advice() is None or total < 2 * HUGE:
        return
    place = spacious(total, dtype=torch.uint8)
    at = 0
    for tensor in held:
        moved = place[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        moved.copy_(tensor)
        tensor.data = moved
        at += _room(tensor.nbytes)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    every: Iterable[Tensor] = (*module.parameters(), *module.buffers())
    yield from {id(tensor): tensor for tensor in every}.values()


def _room(nbytes: int) -> int:
    return math.ceil(nbytes / LINE) * LINE


@functools.cache
def _advice() -> Callable[[int, int, int], int] | None:
    """``madvise`` of the C library, where it knows huge pages."""
    if os.name != "posix" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function
