"""The result of a transcription."""

from dataclasses import dataclass

from xattn.decoding import subtitles
from xattn.decoding.segments import Segment
from xattn.decoding.subtitles import SubtitleLayout

FORMATS = ("txt", "srt", "vtt", "tsv", "json")


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """A whole recording in words."""

    text: str
    """All segments' text."""
    segments: tuple[Segment, ...]
    language: str
    """Code of the language that was spoken, given or detected."""
    language_probability: float
    """1 where the language was given."""
    duration_seconds: float
    """Length of the recording."""
    encoder_passes: int
    """Windows put through the encoder, language detection included."""

    def to_txt(self) -> str:
        """One line per segment."""
        return subtitles.to_txt(self.segments)

    def to_srt(self, layout: SubtitleLayout | None = None) -> str:
        """SubRip subtitles."""
        return subtitles.to_srt(self.segments, layout)

    def to_vtt(self, layout: SubtitleLayout | None = None) -> str:
        """WebVTT subtitles."""
        return subtitles.to_vtt(self.segments, layout)

    def to_tsv(self) -> str:
        """Tab-separated start and end (milliseconds) and text."""
        return subtitles.to_tsv(self.segments)

    def to_json(self) -> str:
        """openai-whisper's JSON object."""
        return subtitles.to_json(self.text, self.segments, self.language)
