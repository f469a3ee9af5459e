"""What is noted of every token of a beam search, beside the token.

A beam finds the notes of its tokens by going back from parent to parent, so that re-ordering beams
moves none of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from xattn.decoding.best import Best
from xattn.decoding.request import TokenLogprob


class Tops:
    """The likeliest candidates of every row of one step; made into Python's numbers when read."""

    def __init__(self, best: Best, wanted: int) -> None:
        self._ids, self._logprobs = best.ids_RK[:, :wanted], best.logprobs_RK[:, :wanted]

    def of(self, row: int) -> tuple[TokenLogprob, ...]:
        """Best first."""
        pairs = zip(self._ids[row].tolist(), self._logprobs[row].tolist(), strict=True)
        return tuple(pairs)


class Step(NamedTuple):
    """One step: the rows that its rows continue, and what was noted of their new tokens."""

    parents: Sequence[int]
    logprobs: Sequence[float]
    tops: Tops | None
    """Of the parents' rows; None where they are not asked for."""


class Notes:
    """The notes of all steps of a search."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def add(self, step: Step) -> None:
        """Go on to the rows of ``step``."""
        self._steps.append(step)

    def of(self, row: int) -> tuple[list[float], list[tuple[TokenLogprob, ...]]]:
        """Log-probabilities and likeliest candidates of the tokens of ``row``, oldest first."""
        logprobs, tops = [], []
        for step in reversed(self._steps):
            logprobs.append(step.logprobs[row])
            row = step.parents[row]
            if step.tops is not None:
                tops.append(step.tops.of(row))
        return logprobs[::-1], tops[::-1]
