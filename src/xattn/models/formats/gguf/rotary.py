"""Undoing what GGUF conversion does to rotary embeddings."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from xattn.spec import RotaryScaling

_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192
"""What every Llama 3 release uses; the file keeps only their effect."""


def half_split(rows: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection from pairs side by side to pairs half a head apart.

    llama.cpp turns neighbours ``(2k, 2k + 1)``, Hugging Face checkpoints ``(k, k + K/2)``, and the
    converter reorders the rows of ``llama`` models accordingly.
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def scaling_from_factors(factors: np.ndarray[Any, Any], *, theta: float) -> RotaryScaling | None:
    """The Llama 3 scaling that divides frequencies by ``factors``; None if it is another one."""
    scaling = RotaryScaling(
        kind="llama3",
        factor=float(factors.max()),
        low_frequency_factor=_LOW,
        high_frequency_factor=_HIGH,
        original_positions=_ORIGINAL,
    )
    width = 2 * factors.size
    wavelengths = 2 * math.pi * theta ** (np.arange(0, width, 2) / width)
    smooth = (_ORIGINAL / wavelengths - _LOW) / (_HIGH - _LOW)
    expected = 1 / ((1 - smooth) / scaling.factor + smooth)
    expected[wavelengths > _ORIGINAL / _LOW] = scaling.factor
    expected[wavelengths < _ORIGINAL / _HIGH] = 1.0
    return scaling if np.allclose(factors.ravel(), expected, rtol=1e-3) else None
