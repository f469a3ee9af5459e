"""What a decoder is asked to continue, and what it answers."""

import math
from dataclasses import dataclass, field
from typing import Literal

from xattn.models.network import Attended, positions_before
from xattn.models.parallel import Parallel

Finish = Literal["eos", "length", "stop"]
TokenLogprob = tuple[int, float]


@dataclass(frozen=True)
class Request:
    """One sequence to continue: decoder tokens, and the memories it attends to."""

    prompt: tuple[int, ...]
    """Decoder tokens, the decoder start token included; what follows it is a target prefix."""
    memories: tuple[Attended, ...] = ()
    """Memories, or projections of them that are used again; empty for a decoder-only model."""
    seed: int | None = None
    """Seed of this request's samples; None takes the one of the settings."""
    parallel: Parallel = field(default_factory=Parallel)
    """How a decoder-only model reads several memories."""
    adapter: str | None = None
    """What it is computed with; None: what the model is set to."""

    @property
    def offset(self) -> int:
        """Position that the prompt begins at."""
        return positions_before(self.memories, self.parallel)


@dataclass(frozen=True)
class Hypothesis:
    """One generated continuation."""

    tokens: tuple[int, ...]
    """New tokens, the end-of-sequence token included if it was reached."""
    score: float
    """Sum of ``logprobs`` over length to the power of ``length_penalty``; what beams are ranked by.

    ``count_eos`` of the settings says whether the length counts the end token.
    """
    logprobs: tuple[float, ...]
    """Log-probability of each token after the constraints, before temperature and truncation.

    Beams that sample are ranked by scores after temperature and truncation, as in transformers, and
    report those; they do not sum to 1.
    """
    finish: Finish
    """Why it ended: end of sequence, no tokens left to spend, or a stop string."""
    text: str | None = None
    """Where a stop string ended it, the text before that string; otherwise None."""
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    """For each token the likeliest ``logprobs=n`` candidates, best first."""


def normalized(total: float, length: int, penalty: float) -> float:
    """``total / length ** penalty``; an empty sequence is as bad as can be where length counts."""
    if length > 0:
        return total / math.pow(length, penalty)
    if penalty == 0:
        return total
    return float("-inf") if penalty > 0 else 0.0
