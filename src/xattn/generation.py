"""What ``generate`` returns."""

from dataclasses import dataclass, field

from xattn.decoding.request import Finish, TokenLogprob
from xattn.decoding.segments import Word


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer, with the other hypotheses of its search behind it."""

    text: str
    """The decoded text, special tokens left out; empty where the model has no tokenizer."""
    tokens: tuple[int, ...]
    """New tokens, the end-of-sequence token included if it was reached."""
    prompt: tuple[int, ...] = field(repr=False)
    """Decoder tokens that the answer continues: start, language, task, and the caller's prompt."""
    score: float
    """Sum of the log-probabilities over length to the power of ``length_penalty``."""
    finish: Finish
    """``"eos"``, ``"length"`` (no tokens left to spend), or ``"stop"`` (a stop string)."""
    logprobs: tuple[float, ...] = field(repr=False)
    """Log-probability of each token."""
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = field(default=(), repr=False)
    """With ``logprobs=n``: the n likeliest (token, log-probability) of each step."""
    alternatives: tuple["Generation", ...] = field(default=(), repr=False)
    """Further hypotheses of ``num_return_sequences``, best first (samples: in seed order)."""
    words: tuple[Word, ...] = field(default=(), repr=False)
    """With ``word_timestamps=True`` on audio: words with their times in seconds."""

    def __str__(self) -> str:
        return self.text
