"""Words with times: tokens grouped, punctuation attached, and implausible lengths repaired.

The repairs are those of openai-whisper: attention is loose around pauses, and stretches the words
next to them. All times are seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from xattn.decoding.segments import Word

SENTENCE_ENDS = ".。!！?？"
LONGEST_MEDIAN = 0.7
SLACK = 0.5
"""A segment's own time is believed where it differs from its words' by more than this."""


@dataclass
class Timing:
    """A word while its times are being worked out."""

    word: str
    tokens: list[int]
    start: float
    end: float
    probability: float

    @property
    def length(self) -> float:
        """Seconds."""
        return self.end - self.start


@dataclass
class Draft:
    """A segment while its times are being worked out."""

    start: float
    end: float
    tokens: tuple[int, ...]
    words: list[Timing] = field(default_factory=list)


def group(
    words: Sequence[tuple[str, list[int]]],
    times: NDArray[np.float64],
    probabilities: NDArray[np.float64],
) -> list[Timing]:
    """One timing for each word, from its tokens' times (one more than tokens) and probabilities."""
    timings, first = [], 0
    for text, tokens in words:
        last = first + len(tokens)
        probability = float(probabilities[first:last].mean())
        start, end = float(times[first]), float(times[last])
        timings.append(Timing(text, list(tokens), start, end, probability))
        first = last
    return timings


def typical_length(timings: Sequence[Timing]) -> float:
    """Median length of the words that have one, at most 0.7 s; 0 if none has."""
    lengths = [timing.length for timing in timings if timing.length != 0]
    return min(LONGEST_MEDIAN, float(np.median(lengths))) if lengths else 0.0


def shorten_at_sentences(timings: Sequence[Timing], longest: float) -> None:
    """Words that stretch over the pause between two sentences end, or begin, at ``longest``."""
    for before, timing in pairwise(timings):
        if timing.length > longest:
            if timing.word in SENTENCE_ENDS:
                timing.end = timing.start + longest
            elif before.word in SENTENCE_ENDS:
                timing.start = timing.end - longest


def attach_punctuation(timings: Sequence[Timing], prepended: str, appended: str) -> None:
    """Marks join the word after or before them; their own entry is left without text and tokens."""
    after = len(timings) - 1
    for index in range(len(timings) - 2, -1, -1):
        mark, word = timings[index], timings[after]
        if mark.word.startswith(" ") and mark.word.strip() in prepended:
            word.word, word.tokens = mark.word + word.word, mark.tokens + word.tokens
            mark.word, mark.tokens = "", []
        else:
            after = index
    before = 0
    for index in range(1, len(timings)):
        word, mark = timings[before], timings[index]
        if not word.word.endswith(" ") and mark.word in appended:
            word.word, word.tokens = word.word + mark.word, word.tokens + mark.tokens
            mark.word, mark.tokens = "", []
        else:
            before = index


def place_words(
    drafts: Sequence[Draft],
    timings: Sequence[Timing],
    *,
    end_token: int,
    offset: float,
    spoken_until: float,
    prepended: str,
    appended: str,
) -> None:
    """Give each of a window's segments its words, and let the words correct the segments' times.

    ``timings`` count from the window's beginning, which is at ``offset``; ``spoken_until`` is where
    the last word of the windows before ended.
    """
    typical = typical_length(timings)
    if typical:
        shorten_at_sentences(timings, 2 * typical)
    attach_punctuation(timings, prepended, appended)
    index = 0
    for draft in drafts:
        wanted, taken = sum(token < end_token for token in draft.tokens), 0
        while index < len(timings) and taken < wanted:
            timing = timings[index]
            if timing.word:
                timing.start = round(offset + timing.start, 2)
                timing.end = round(offset + timing.end, 2)
                draft.words.append(timing)
            taken += len(timing.tokens)
            index += 1
        if draft.words:
            shorten_after_pause(draft.words, typical, spoken_until)
            reconcile(draft, typical)
            spoken_until = draft.end


def shorten_after_pause(words: Sequence[Timing], typical: float, spoken_until: float) -> None:
    """The first two words after a pause are not longer than twice the typical word each."""
    longest, first = 2 * typical, words[0]
    second = words[1] if len(words) > 1 else None
    if first.end - spoken_until <= 4 * typical:
        return
    if first.length > longest or (second and second.end - first.start > 2 * longest):
        if second and second.length > longest:
            first.end = second.start = max(second.end / 2, second.end - longest)
        first.start = max(0.0, first.end - longest)


def reconcile(draft: Draft, typical: float) -> None:
    """The words' times become the segment's, unless a word at its edge sticks out far too much."""
    first, last = draft.words[0], draft.words[-1]
    if first.start < draft.start - SLACK and draft.start < first.end:
        first.start = max(0.0, min(first.end - typical, draft.start))
    else:
        draft.start = first.start
    if last.start < draft.end and draft.end + SLACK < last.end:
        last.end = max(last.start + typical, draft.end)
    else:
        draft.end = last.end


def finished(words: Sequence[Timing]) -> tuple[Word, ...]:
    """The words as a segment holds them."""
    return tuple(Word(w.word, float(w.start), float(w.end), w.probability) for w in words)
