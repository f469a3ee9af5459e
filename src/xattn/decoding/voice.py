"""Leaving out what is silent: an energy gate over short frames.

This is not a speech detector. It removes stretches that are quiet beside the loud parts of the
recording (pauses, dead air), and keeps whatever is loud: music and noise too. Names of settings
that mean the same as in faster-whisper's ``VadOptions`` are the same.

Axes: T samples, F frames of 30 ms.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import numpy as np

from xattn.errors import require
from xattn.inputs.audio import SAMPLE_RATE, Samples

FRAME_SAMPLES = 480
LOUD_PERCENTILE = 95
SILENCE_DB = -80.0
"""Below this (of full scale) a frame is quiet whatever the rest is like."""


@dataclass(frozen=True, kw_only=True)
class VoiceSettings:
    """What counts as silence. Raises :class:`UsageError` for a value out of its bounds."""

    threshold_db: float = -35.0
    """A frame this far below the recording's loud frames is quiet."""
    min_silence_duration_ms: float = 2000
    """Shorter silences are kept."""
    min_speech_duration_ms: float = 0
    """Shorter sounds are left out."""
    speech_pad_ms: float = 400
    """Silence kept before and after what is loud."""

    def __post_init__(self) -> None:
        threshold = self.threshold_db
        require(-80 <= threshold < 0, "threshold_db", "from -80 to below 0", threshold)
        for name in ("min_silence_duration_ms", "min_speech_duration_ms", "speech_pad_ms"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, "at least 0", value)

    @classmethod
    def resolve(cls, parameters: Mapping[str, Any]) -> "VoiceSettings":
        """Settings from keywords; :class:`UsageError` for an unknown one."""
        known = [f.name for f in fields(cls)]
        for name in parameters:
            require(name in known, "vad_parameters", f"made of {', '.join(known)}", name)
        return cls(**parameters)


@dataclass(frozen=True)
class Voiced:
    """The loud stretches of a recording, put one after the other, and where they came from."""

    samples_T: Samples
    spans: tuple[tuple[int, int], ...]
    """``[start, end)`` of each stretch in samples of the recording."""

    def original(self, seconds: float, *, ends: bool = False, beside: float | None = None) -> float:
        """Seconds in the recording of a time in :attr:`samples_T`.

        A time on the seam of two stretches is the end of the first if it ``ends`` something, else
        the start of the second. ``beside`` is a time whose stretch is to be taken instead.
        """
        if not self.spans:
            return seconds
        seams = list(accumulate(end - start for start, end in self.spans))
        sample = round((seconds if beside is None else beside) * SAMPLE_RATE)
        search = bisect_left if ends else bisect_right
        index = min(search(seams, sample), len(seams) - 1)
        return round(seconds + (self.spans[index][1] - seams[index]) / SAMPLE_RATE, 2)


def keep_voiced(samples_T: Samples, settings: VoiceSettings) -> Voiced:
    """Take the silence out of a recording."""
    spans = voiced_spans(samples_T, settings)
    pieces = [samples_T[start:end] for start, end in spans]
    return Voiced(np.concatenate(pieces) if pieces else samples_T[:0], tuple(spans))


def voiced_spans(samples_T: Samples, settings: VoiceSettings) -> list[tuple[int, int]]:
    """``[start, end)`` samples of what is loud, with some silence around it."""
    total = len(samples_T)
    frames = -(-total // FRAME_SAMPLES)
    padded = np.pad(samples_T, (0, frames * FRAME_SAMPLES - total)).astype(np.float64)
    energy_F = np.square(padded).reshape(frames, FRAME_SAMPLES).mean(axis=1)
    level_F = 10 * np.log10(np.maximum(energy_F, 1e-12))
    limit = max(float(np.percentile(level_F, LOUD_PERCENTILE)) + settings.threshold_db, SILENCE_DB)
    loud = np.flatnonzero(level_F > limit)
    runs = _merge(
        [(int(f) * FRAME_SAMPLES, min(int(f + 1) * FRAME_SAMPLES, total)) for f in loud],
        _samples(settings.min_silence_duration_ms),
    )
    shortest = _samples(settings.min_speech_duration_ms)
    pad = _samples(settings.speech_pad_ms)
    padded_runs = [(max(0, a - pad), min(total, b + pad)) for a, b in runs if b - a >= shortest]
    return _merge(padded_runs, 0)


def _samples(milliseconds: float) -> int:
    return round(milliseconds * SAMPLE_RATE / 1000)


def _merge(spans: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Join neighbours that are at most ``gap`` samples apart."""
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start - merged[-1][1] <= gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
