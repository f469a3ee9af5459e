"""Transcripts as files, read back by parsers that are not ours."""

import csv
import io
import json
import re

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xattn.decoding.segments import Segment, Word
from xattn.decoding.subtitles import SubtitleLayout
from xattn.decoding.transcript import Transcript
from xattn.errors import UsageError

TEXTS = [" Hello there, how are you?", " Fine.", " The plug is in R&D, <not> here --> there."]


def timed(text: str, start: float, seconds: float = 0.4) -> tuple[Word, ...]:
    pieces = re.findall(r"\s*\S+", text)
    times = [round(start + i * seconds, 2) for i in range(len(pieces) + 1)]
    return tuple(Word(p, times[i], times[i + 1], 0.9) for i, p in enumerate(pieces))


def transcript(
    texts: list[str], *, words: bool, start: float = 1.0, gap: float = 5.0
) -> Transcript:
    segments = []
    for id, text in enumerate(texts):
        spoken = timed(text, start + id * gap)
        segments.append(
            Segment(
                id=id,
                seek=0,
                start=spoken[0].start,
                end=spoken[-1].end,
                text=text,
                tokens=(50363, 1, 2, 50364),
                temperature=0.0,
                avg_logprob=-0.25,
                compression_ratio=1.1,
                no_speech_prob=0.01,
                words=spoken if words else None,
            )
        )
    return Transcript(
        text="".join(texts).strip(),
        segments=tuple(segments),
        language="en",
        language_probability=1.0,
        duration_seconds=start + len(texts) * gap,
        encoder_passes=1,
    )


def parsed(content: str, format: str) -> list[tuple[float, float, str]]:
    """Start, end and text of every subtitle, by FFmpeg's demuxer."""
    cues = []
    with av.open(io.BytesIO(content.encode()), format=format) as container:
        for packet in container.demux(subtitles=0):
            if packet.pts is not None:
                base = float(packet.time_base)
                start, end = packet.pts * base, (packet.pts + packet.duration) * base
                cues.append((round(start, 3), round(end, 3), bytes(packet).decode()))
    return cues


def test_srt_as_its_format_is_described() -> None:
    content = transcript([" Hello there.", " Bye."], words=False, start=3599.5, gap=1.0).to_srt()
    assert content == (
        "1\n00:59:59,500 --> 01:00:00,300\nHello there.\n\n"
        "2\n01:00:00,500 --> 01:00:00,900\nBye.\n\n"
    )


def test_vtt_as_its_format_is_described() -> None:
    content = transcript([" Hello there.", " Bye."], words=False, start=3599.5, gap=1.0).to_vtt()
    assert content == (
        "WEBVTT\n\n"
        "59:59.500 --> 01:00:00.300\nHello there.\n\n"
        "01:00:00.500 --> 01:00:00.900\nBye.\n\n"
    )


@pytest.mark.parametrize("words", [False, True])
def test_ffmpeg_reads_srt_and_vtt(words: bool) -> None:
    result = transcript(TEXTS, words=words)
    expected = [(s.start, s.end, s.text.strip().replace("-->", "->")) for s in result.segments]
    assert parsed(result.to_srt(), "srt") == expected
    escaped = [(a, b, t.replace("&", "&amp;").replace("<", "&lt;")) for a, b, t in expected]
    assert parsed(result.to_vtt(), "webvtt") == escaped


def test_txt_and_tsv() -> None:
    result = transcript([" One\ttwo.", " Three."], words=False)
    assert result.to_txt() == "One\ttwo.\nThree.\n"
    rows = list(csv.DictReader(io.StringIO(result.to_tsv()), delimiter="\t"))
    assert rows == [
        {"start": "1000", "end": "1800", "text": "One two."},
        {"start": "6000", "end": "6400", "text": "Three."},
    ]


def test_json_has_the_fields_of_openai_whisper() -> None:
    content = json.loads(transcript(TEXTS, words=True).to_json())
    assert set(content) == {"text", "segments", "language"}
    assert set(content["segments"][0]) == {
        *("id", "seek", "start", "end", "text", "tokens", "temperature"),
        *("avg_logprob", "compression_ratio", "no_speech_prob", "words"),
    }
    assert set(content["segments"][0]["words"][0]) == {"word", "start", "end", "probability"}
    assert content["segments"][0]["tokens"] == [50363, 1, 2, 50364]
    assert "words" not in json.loads(transcript(TEXTS, words=False).to_json())["segments"][0]


def test_no_segments() -> None:
    nothing = transcript([], words=True)
    assert nothing.to_txt() == nothing.to_srt() == ""
    assert nothing.to_vtt() == "WEBVTT\n\n"
    assert nothing.to_tsv() == "start\tend\ttext\n"
    assert json.loads(nothing.to_json()) == {"text": "", "segments": [], "language": "en"}


def test_lines_and_subtitles_are_broken_where_they_are_full() -> None:
    result = transcript([" The quick brown fox jumps", " over dogs."], words=True, gap=2.0)
    layout = SubtitleLayout(max_line_width=10, max_line_count=2)
    texts = [text for _, _, text in parsed(result.to_srt(layout), "srt")]
    assert texts == ["The quick\nbrown fox", "jumps over\ndogs."]


def test_a_long_pause_ends_a_subtitle_that_is_not_full() -> None:
    result = transcript([" One two", " three"], words=True, gap=6.0)
    layout = SubtitleLayout(max_line_width=40, max_line_count=2)
    assert [t for _, _, t in parsed(result.to_srt(layout), "srt")] == ["One two", "three"]


def test_words_are_underlined_as_they_are_spoken() -> None:
    result = transcript([" One two"], words=True)
    cues = parsed(result.to_srt(SubtitleLayout(highlight_words=True)), "srt")
    assert cues == [(1.0, 1.4, "<u>One</u> two"), (1.4, 1.8, "One <u>two</u>")]


@given(
    texts=st.lists(
        st.lists(st.text("abcde", min_size=1, max_size=9), min_size=1, max_size=8), max_size=4
    ),
    width=st.none() | st.integers(3, 20),
    count=st.none() | st.integers(1, 3),
    most=st.none() | st.integers(1, 4),
)
def test_every_layout_keeps_all_words_in_order_and_within_its_bounds(
    texts: list[list[str]], width: int | None, count: int | None, most: int | None
) -> None:
    result = transcript([" " + " ".join(words) for words in texts], words=True)
    layout = SubtitleLayout(max_line_width=width, max_line_count=count, max_words_per_line=most)
    content = result.to_srt(layout)
    cues = parsed(content, "srt") if content else []
    assert " ".join(text for _, _, text in cues).split() == [
        word for words in texts for word in words
    ]
    assert all(start <= end for start, end, _ in cues)
    assert [start for start, _, _ in cues] == sorted(start for start, _, _ in cues)
    for _, _, text in cues:
        lines = text.split("\n")
        if width is not None:
            assert all(len(line) <= width or " " not in line for line in lines)
        if count is not None:
            assert len(lines) <= count
        if most is not None and (width is None or count is None):
            assert len(text.split()) <= most


def test_a_layout_of_words_needs_words() -> None:
    for layout in (SubtitleLayout(max_line_width=20), SubtitleLayout(highlight_words=True)):
        with pytest.raises(UsageError, match="word_timestamps=True"):
            transcript(TEXTS, words=False).to_srt(layout)


@pytest.mark.parametrize("name", ["max_line_width", "max_line_count", "max_words_per_line"])
def test_a_layout_without_room_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"`{name}` must be at least 1, but is 0"):
        SubtitleLayout(**{name: 0})
