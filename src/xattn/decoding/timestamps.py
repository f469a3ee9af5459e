"""Whisper's timestamp tokens: the grammar they follow, and the segments they mark.

Axes: R rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from xattn.decoding.best import Numbers, best_of_logits
from xattn.decoding.whisper_tokens import WhisperTokens

SECONDS_PER_TIMESTAMP = 0.02
FRAMES_PER_TIMESTAMP = 2
BANNED = float("-inf")


@dataclass(frozen=True, kw_only=True)
class TimestampRules:
    """Constrains logits so that timestamps come in order and enclose text (Radford et al. 2022).

    The first token is a timestamp, not later than ``max_initial``; timestamps come in pairs (one
    segment's end, the next one's start) except before the end of the text; they never decrease, and
    a segment is never empty; and where all timestamps together are likelier than the likeliest text
    token, a timestamp it is.
    """

    tokens: WhisperTokens
    max_initial: int | None
    """Latest first timestamp, in steps of 0.02 s."""
    prefix: tuple[int, ...] = ()
    """Tokens after the prompt's start sequence that were given instead of generated."""

    def __call__(self, tokens: Sequence[Sequence[int]], logits_RV: Tensor) -> Tensor:
        """Ban tokens in place; ``tokens`` are what each row has generated so far."""
        begin = self.tokens.timestamp_begin
        # The same numbers: small writes cost less through numpy.
        rows = logits_RV.numpy() if logits_RV.is_cpu else logits_RV
        rows[:, self.tokens.no_timestamps] = BANNED
        for row, new in enumerate(tokens):
            self._constrain(new, rows[row])
        times = best_of_logits(logits_RV[:, begin:], 1)
        totals = (times.logits_RK - times.logprobs_RK)[:, 0].tolist()
        texts = logits_RV[:, :begin].amax(-1).tolist()
        for row, (total, text) in enumerate(zip(totals, texts, strict=True)):
            if total > text:
                rows[row, :begin] = BANNED
        return logits_RV

    def _constrain(self, new: Sequence[int], logits_V: Tensor | Numbers) -> None:
        begin, prefix = self.tokens.timestamp_begin, self.prefix
        if not new and not prefix:
            logits_V[:begin] = BANNED
            if self.max_initial is not None:
                logits_V[begin + self.max_initial + 1 :] = BANNED
            return
        *_, before, latest = (begin, *prefix[-2:], *new[-2:])
        after_time = latest >= begin
        # One that comes first counts as the second of a pair.
        after_pair = after_time and before >= begin
        if after_pair:
            logits_V[begin:] = BANNED
        elif after_time:
            logits_V[: self.tokens.end] = BANNED
        last = next((t for t in chain(reversed(new), reversed(prefix)) if t >= begin), None)
        if last is not None:
            # A segment's end may be the next one's start; any other repeat is an empty segment.
            earliest = last if after_time and not after_pair else last + 1
            logits_V[begin:earliest] = BANNED


@dataclass(frozen=True)
class Cut:
    """One segment of a window: seconds from the window's beginning, and its tokens."""

    start: float
    end: float
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Cuts:
    """The segments of a window, and how far it was understood."""

    segments: tuple[Cut, ...]
    frames: int
    """Frames until the next window begins."""
    ends_with_silence: bool
    """The text ends with a single timestamp: nothing is said after it."""


def cut_segments(tokens: Sequence[int], begin: int, frames: int) -> Cuts:
    """Cut a window's ``tokens`` where two timestamps meet; ``begin`` is the first timestamp token.

    ``frames`` is the part of the window that holds audio. After a pair of timestamps whose second
    segment has no end, the next window begins at that pair; otherwise the window is done with.
    """
    times = [token >= begin for token in tokens]
    silent_end = len(tokens) >= 2 and times[-1] and not times[-2]
    places = [i for i in range(1, len(tokens)) if times[i] and times[i - 1]]
    if not places:
        stamps = [token for token in tokens if token >= begin]
        heard = frames / 100
        if stamps and stamps[-1] != begin:
            heard = (stamps[-1] - begin) * SECONDS_PER_TIMESTAMP
        return Cuts((Cut(0.0, heard, tuple(tokens)),), frames, silent_end)
    if silent_end:
        places.append(len(tokens))
    segments = []
    for first, last in zip([0, *places], places, strict=False):
        piece = tuple(tokens[first:last])
        start, end = ((t - begin) * SECONDS_PER_TIMESTAMP for t in (piece[0], piece[-1]))
        segments.append(Cut(start, end, piece))
    if silent_end:
        return Cuts(tuple(segments), frames, True)
    reached = (tokens[places[-1] - 1] - begin) * FRAMES_PER_TIMESTAMP
    return Cuts(tuple(segments), reached, False)
