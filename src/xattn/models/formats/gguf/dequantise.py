"""From ggml's number formats to float32.

The formats are the ``gguf`` package's, and so is most of the work. The three of 32 numbers to a
block are unpacked here, to the same bits, several times faster: they are what makes loading slow.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from xattn.models.formats.gguf.header import gguf_package

Array = np.ndarray[Any, Any]

FORMATS = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
"""What is read."""


def dequantise(raw: Array, kind: str, shape: tuple[int, ...]) -> Array:
    """The bytes ``raw`` of a tensor in format ``kind`` as a new float32 array of ``shape``."""
    # Scales that damage made infinite are not worth a warning each: they show in the output.
    with np.errstate(invalid="ignore", over="ignore"):
        if kind in _BLOCKS_OF_32:
            size, unpack = _BLOCKS_OF_32[kind]
            values = unpack(raw.reshape(-1, size))
        else:
            gguf = gguf_package()
            rows = raw.reshape(*shape[:-1], -1)
            values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
    return np.array(values, dtype=np.float32, copy=kind == "F32").reshape(shape)


def _q8_0(blocks: Array) -> Array:
    """f16 scale, 32 signed bytes."""
    return blocks[:, 2:].view(np.int8) * _halves(blocks[:, :2])


def _q4_0(blocks: Array) -> Array:
    """f16 scale, 32 nibbles that count from -8: first the low ones, then the high ones."""
    return (_nibbles(blocks[:, 2:]) - np.float32(8)) * _halves(blocks[:, :2])


def _q4_1(blocks: Array) -> Array:
    """f16 scale, f16 minimum, 32 nibbles."""
    halves = _halves(blocks[:, :4])
    values = _nibbles(blocks[:, 4:])
    values *= halves[:, :1]
    values += halves[:, 1:]
    return values


def _halves(raw: Array) -> Array:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _nibbles(raw: Array) -> Array:
    values = np.empty((len(raw), 32), dtype=np.float32)
    values[:, :16] = raw & 15
    values[:, 16:] = raw >> 4
    return values


_BLOCKS_OF_32: dict[str, tuple[int, Callable[[Array], Array]]] = {
    "Q8_0": (34, _q8_0),
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
}
"""Bytes to a block, and how it is unpacked."""
