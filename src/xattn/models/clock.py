"""Where the time of decoding goes: the parts of a decoder's step."""

import time
from typing import Literal

import numpy as np
import torch

Part = Literal["self-attention", "cross-attention", "feed-forward", "vocabulary"]
PARTS: tuple[Part, ...] = ("self-attention", "cross-attention", "feed-forward", "vocabulary")
"""``vocabulary`` is looking up embeddings, and making logits. The kernels count in this order."""


class Clock:
    """Seconds in each part, added up over all steps while a network has it as its ``clock``."""

    def __init__(self) -> None:
        self._nanoseconds = np.zeros(len(PARTS), dtype=np.int64)
        self._since = 0

    @property
    def seconds(self) -> dict[Part, float]:
        """What was counted so far."""
        return {
            part: count / 1e9 for part, count in zip(PARTS, self._nanoseconds.tolist(), strict=True)
        }

    @property
    def address(self) -> int:
        """Where the kernels add their nanoseconds."""
        return self._nanoseconds.ctypes.data

    def begin(self) -> None:
        """What follows is some part."""
        self._since = _now()

    def end(self, part: Part) -> None:
        """It was this one, and the next begins."""
        now = _now()
        self._nanoseconds[PARTS.index(part)] += now - self._since
        self._since = now


def _now() -> int:
    """Nanoseconds, when an accelerator has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter_ns()
