"""Transcripts as files: plain text, SubRip, WebVTT, tab-separated values, JSON.

Contents and line breaking follow openai-whisper, so that scripts which read its files read these.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from xattn.decoding.segments import Segment, Word
from xattn.errors import UsageError, require

LONG_PAUSE_SECONDS = 3.0
"""A pause that ends a subtitle where subtitles are laid out across segments."""


@dataclass(frozen=True, kw_only=True)
class SubtitleLayout:
    """How words are set into subtitles; anything but the default needs word timestamps.

    With both ``max_line_width`` and ``max_line_count``, subtitles are filled across segments;
    otherwise each segment begins a subtitle of its own.
    """

    max_line_width: int | None = None
    """Characters in a line; a longer word has a line to itself."""
    max_line_count: int | None = None
    """Lines in a subtitle."""
    max_words_per_line: int | None = None
    """Words in a subtitle; without effect beside ``max_line_width`` and ``max_line_count``."""
    highlight_words: bool = False
    """One subtitle per word, with the word that is spoken underlined."""

    def __post_init__(self) -> None:
        for name in ("max_line_width", "max_line_count", "max_words_per_line"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "at least 1", value)


class Cue(NamedTuple):
    """What stands on the screen from ``start`` to ``end`` (seconds)."""

    start: float
    end: float
    text: str


def to_txt(segments: Sequence[Segment]) -> str:
    """One line per segment."""
    return "".join(f"{segment.text.strip()}\n" for segment in segments)


def to_tsv(segments: Sequence[Segment]) -> str:
    """A header, then start and end in whole milliseconds and the text, between tabs."""
    lines = ["start\tend\ttext\n"]
    for segment in segments:
        text = segment.text.strip().replace("\t", " ")
        lines.append(f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{text}\n")
    return "".join(lines)


def to_srt(segments: Sequence[Segment], layout: SubtitleLayout | None = None) -> str:
    """SubRip: numbered subtitles, times with hours and a decimal comma."""
    pieces = []
    for number, cue in enumerate(cues(segments, layout or SubtitleLayout()), start=1):
        span = f"{_clock(cue.start, ',', hours=True)} --> {_clock(cue.end, ',', hours=True)}"
        pieces.append(f"{number}\n{span}\n{cue.text}\n\n")
    return "".join(pieces)


def to_vtt(segments: Sequence[Segment], layout: SubtitleLayout | None = None) -> str:
    """WebVTT (W3C): ``&`` and ``<`` of the text are escaped, since they open entities and tags."""
    escaped = [_escaped(segment) for segment in segments]
    pieces = ["WEBVTT\n\n"]
    for cue in cues(escaped, layout or SubtitleLayout()):
        span = f"{_clock(cue.start, '.', hours=False)} --> {_clock(cue.end, '.', hours=False)}"
        pieces.append(f"{span}\n{cue.text}\n\n")
    return "".join(pieces)


def to_json(text: str, segments: Sequence[Segment], language: str) -> str:
    """One JSON object with openai-whisper's fields: text, segments, language."""
    content = {"text": text, "segments": [s.as_dict() for s in segments], "language": language}
    return json.dumps(content, ensure_ascii=False)


def cues(segments: Sequence[Segment], layout: SubtitleLayout) -> Iterator[Cue]:
    """The subtitles of ``segments``: one per segment, or as ``layout`` sets their words.

    Raises :class:`UsageError` for a layout that needs words which the segments do not have.
    """
    if any(segment.words is None for segment in segments):
        if layout != SubtitleLayout():
            raise UsageError(
                "max_line_width, max_line_count, max_words_per_line and highlight_words lay out "
                "words, which this transcript does not have; transcribe with word_timestamps=True."
            )
        for segment in segments:
            yield Cue(segment.start, segment.end, _harmless(segment.text.strip()))
        return
    for subtitle in _set(segments, layout):
        yield from _highlighted(subtitle) if layout.highlight_words else [_plain(subtitle)]


def _set(segments: Sequence[Segment], layout: SubtitleLayout) -> Iterator[list[Word]]:
    """Words gathered into subtitles; one that begins a further line has a line break before it."""
    width = layout.max_line_width or 1000
    across_segments = layout.max_line_width is not None and layout.max_line_count is not None
    subtitle: list[Word] = []
    line_length, lines, last_start = 0, 1, None
    for word, begins_chunk in _chunked(segments, layout.max_words_per_line):
        paused = last_start is not None and word.start - last_start > LONG_PAUSE_SECONDS
        pause_break = across_segments and paused
        segment_break = begins_chunk and bool(subtitle) and not across_segments
        fits = line_length + len(word.word) <= width
        if line_length and fits and not pause_break and not segment_break:
            line_length += len(word.word)
        else:
            stripped = word.word.strip()
            full = layout.max_line_count is not None and (
                pause_break or lines >= layout.max_line_count
            )
            if segment_break or (subtitle and full):
                yield subtitle
                subtitle, lines = [], 1
                word = replace(word, word=stripped)
            else:
                lines += bool(line_length)
                word = replace(word, word=f"\n{stripped}" if line_length else stripped)
            line_length = len(stripped)
        subtitle.append(word)
        last_start = word.start
    if subtitle:
        yield subtitle


def _chunked(segments: Sequence[Segment], size: int | None) -> Iterator[tuple[Word, bool]]:
    """Every word, and whether it is the first of its segment or of ``size`` words of it."""
    for segment in segments:
        for index, word in enumerate(segment.words or ()):
            yield word, index % size == 0 if size else index == 0


def _plain(subtitle: Sequence[Word]) -> Cue:
    text = "".join(word.word for word in subtitle)
    return Cue(subtitle[0].start, subtitle[-1].end, _harmless(text))


def _highlighted(subtitle: Sequence[Word]) -> Iterator[Cue]:
    """A cue per word with that word underlined, and plain ones for the pauses between."""
    texts = [_harmless(word.word) for word in subtitle]
    last = subtitle[0].start
    for index, word in enumerate(subtitle):
        if last != word.start:
            yield Cue(last, word.start, "".join(texts))
        underlined = re.sub(r"^(\s*)(.*)$", r"\1<u>\2</u>", texts[index])
        yield Cue(word.start, word.end, "".join([*texts[:index], underlined, *texts[index + 1 :]]))
        last = word.end


def _harmless(text: str) -> str:
    """An arrow in the text would read as a time span."""
    return text.replace("-->", "->")


def _escaped(segment: Segment) -> Segment:
    def escape(text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;")

    words = segment.words and tuple(replace(word, word=escape(word.word)) for word in segment.words)
    return replace(segment, text=escape(segment.text), words=words)


def _clock(seconds: float, decimal_mark: str, *, hours: bool) -> str:
    """``[hh:]mm:ss.mmm``; the hours stand there if asked for, or if there are any."""
    milliseconds = round(seconds * 1000)
    hour, rest = divmod(milliseconds, 3_600_000)
    minute, rest = divmod(rest, 60_000)
    second, rest = divmod(rest, 1000)
    front = f"{hour:02d}:" if hours or hour else ""
    return f"{front}{minute:02d}:{second:02d}{decimal_mark}{rest:03d}"
