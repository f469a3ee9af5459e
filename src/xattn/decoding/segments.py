"""What a transcription is made of."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its leading space and its punctuation, and when it was spoken."""

    word: str
    start: float
    """Seconds from the beginning of the recording."""
    end: float
    probability: float
    """Mean probability of its tokens, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One line of a transcript. The fields are openai-whisper's."""

    id: int
    """Counts from 0."""
    seek: int
    """Where the window that it was heard in begins, in frames of 10 ms."""
    start: float
    """Seconds from the beginning of the recording."""
    end: float
    text: str
    tokens: tuple[int, ...]
    """Text and timestamp tokens."""
    temperature: float
    """Sampling temperature of the attempt that was kept; 0 is greedy or beam search."""
    avg_logprob: float
    """Mean log-probability of the window's tokens, its end included."""
    compression_ratio: float
    """UTF-8 bytes of the window's text over their zlib size: high where text repeats itself."""
    no_speech_prob: float
    """Probability that the window holds no speech."""
    words: tuple[Word, ...] | None = None
    """None unless word timestamps were asked for."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; without ``words`` where there are none to report."""
        fields = asdict(self)
        fields["tokens"] = list(self.tokens)
        fields["words"] = None if self.words is None else [asdict(word) for word in self.words]
        return (
            fields if self.words is not None else {k: v for k, v in fields.items() if k != "words"}
        )
