"""Silence that Whisper filled with text: segments of implausible words, surrounded by silence.

The rules and their numbers are those of openai-whisper and faster-whisper
(``hallucination_silence_threshold``). All times are seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from xattn.decoding.words import Draft, Timing

PUNCTUATION = "\"'“¿([{-\"'.。,，!！?？:：”)]}、"
WORDS_LOOKED_AT = 8
FRAMES_PER_SECOND = 100


@dataclass(frozen=True, kw_only=True)
class WindowSpan:
    """Where a window lies in the recording."""

    start: float
    audio_end: float
    """End of the audio in it."""
    end: float
    """End of its 30 s."""
    recording_end: float


@dataclass(frozen=True)
class Verdict:
    """What to keep of a window's segments, and the frame to go on from (None: as planned)."""

    kept: int
    seek: int | None
    discard_window: bool = False


def anomaly(word: Timing) -> float:
    """How implausible a word is: improbable, too short, or too long."""
    score = 1.0 if word.probability < 0.15 else 0.0
    score += 15 * max(0.0, 0.133 - word.length)
    return score + max(0.0, word.length - 2.0)


def is_anomalous(draft: Draft | None) -> bool:
    """The first words of a segment are implausible on the whole."""
    if draft is None or not draft.words:
        return False
    words = [word for word in draft.words if word.word not in PUNCTUATION][:WORDS_LOOKED_AT]
    score = sum(map(anomaly, words))
    return score >= 3 or score + 0.01 >= len(words)


def judge(
    drafts: Sequence[Draft], span: WindowSpan, spoken_until: float, threshold: float
) -> Verdict:
    """Find the first hallucination in silence longer than ``threshold`` seconds.

    If the first segment is one and silence leads up to it, the window is to be heard again from
    there; another one is cut off with all that follows, and the next window begins where it began.
    """
    first = next((draft for draft in drafts if draft.words), None)
    if first is not None and is_anomalous(first):
        gap = first.start - span.start
        if gap > threshold:
            seek = round(span.start * FRAMES_PER_SECOND) + round(gap * FRAMES_PER_SECOND)
            return Verdict(kept=0, seek=seek, discard_window=True)
    last_end = spoken_until
    for index, draft in enumerate(drafts):
        if not draft.words:
            continue
        if is_anomalous(draft) and _in_silence(drafts, index, span, last_end, threshold):
            seek = round(max(span.start + 1, draft.start) * FRAMES_PER_SECOND)
            if span.recording_end - draft.end < threshold:
                seek = round(span.recording_end * FRAMES_PER_SECOND)
            return Verdict(kept=index, seek=seek)
        last_end = draft.end
    return Verdict(kept=len(drafts), seek=None)


def _in_silence(
    drafts: Sequence[Draft], index: int, span: WindowSpan, last_end: float, threshold: float
) -> bool:
    draft = drafts[index]
    following = next((later for later in drafts[index + 1 :] if later.words), None)
    next_start = span.audio_end if following is None else following.words[0].start
    before = (
        draft.start - last_end > threshold
        or draft.start < threshold
        or draft.start - span.start < 2.0
    )
    after = (
        next_start - draft.end > threshold or is_anomalous(following) or span.end - draft.end < 2.0
    )
    return before and after
