"""When the beam search of one request ends, and which of its candidates go on.

Two rules are in use in the field. :class:`RankedPool` follows transformers (``_beam_search``),
:class:`PatientPool` follows CTranslate2 (``BeamSearch::search``), with the patience factor of
Kasai et al. 2022 (arXiv 2204.05424).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from xattn.decoding.request import Finish, Hypothesis, normalized
from xattn.decoding.settings import Settings

HOPELESS = -1e9
"""Added to the score of a beam that must not win; beams that begin as copies have it."""
REAL = HOPELESS / 2
"""Scores below belong to no sequence worth keeping."""


class Candidate(NamedTuple):
    """A beam with one more token."""

    score: float
    """Sum of log-probabilities."""
    normalized: float
    """``score`` over the number of new tokens to the power of ``length_penalty``."""
    row: int
    token: int
    logprob: float
    finish: Finish | None
    text: str | None

    @property
    def running_score(self) -> float:
        """What it goes on with: a finished one goes on only where nothing else is left."""
        return self.score if self.finish is None else self.score + HOPELESS


Complete = Callable[[Candidate, float], Hypothesis]
"""Makes the hypothesis that ends with a candidate, given its final score."""


class RankedPool:
    """The ``num_beams`` best finished hypotheses, and whether a running one may still join them."""

    def __init__(self, settings: Settings, limit: int, complete: Complete) -> None:
        self._settings, self._limit, self._complete = settings, limit, complete
        self._found: list[Hypothesis] = []

    def consider(self, candidates: Sequence[Candidate], step: int) -> list[Candidate] | None:
        """Note what finished; the beams to go on with, or None when the search is over.

        ``step`` counts new tokens before this one. Only the first ``num_beams`` candidates can
        finish, the others are there to go on with.
        """
        beams = self._settings.num_beams
        self._found += [
            self._complete(c, self._final_score(c, step))
            for c in candidates[:beams]
            if c.finish is not None and c.score > REAL
        ]
        self._found = _ranked(self._found)[:beams]
        running = sorted(candidates, key=lambda c: -c.running_score)[:beams]
        if running[0].finish is not None or not self._can_improve(running[0]):
            return None
        return running

    def _final_score(self, candidate: Candidate, step: int) -> float:
        length = self._settings.scored_length(step + 1, ended=candidate.finish == "eos")
        if length == step + 1:
            return candidate.normalized
        return normalized(candidate.score, length, self._settings.length_penalty)

    def _can_improve(self, best: Candidate) -> bool:
        settings = self._settings
        if len(self._found) < settings.num_beams:
            return True
        if settings.early_stopping is True:
            return False
        possible = best.normalized
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            # In float32, as the scores it is compared with.
            possible = float(torch.tensor(best.score) / self._limit**settings.length_penalty)
        return possible > self._found[-1].score

    def best(self) -> list[Hypothesis]:
        """The hypotheses asked for, best first."""
        return self._found[: self._settings.num_return_sequences]


class PatientPool:
    """All finished hypotheses, until there are ``num_beams * patience`` of them."""

    def __init__(self, settings: Settings, complete: Complete) -> None:
        self._settings, self._complete = settings, complete
        self._found: list[Hypothesis] = []
        self._top_finished = False

    def consider(self, candidates: Sequence[Candidate], step: int) -> list[Candidate] | None:
        """Note what finished, and put the next best running candidate in its place."""
        settings = self._settings
        chosen = list(candidates[: settings.num_beams])
        others = candidates[settings.num_beams :]
        spare = (c for c in others if c.finish is None and c.score > REAL)
        for place, candidate in enumerate(chosen):
            if candidate.finish is None:
                continue
            self._top_finished |= place == 0
            if candidate.score > REAL:
                length = settings.scored_length(step + 1, ended=candidate.finish == "eos")
                score = normalized(candidate.score, length, settings.length_penalty)
                self._found.append(self._complete(candidate, score))
            chosen[place] = next(spare, candidate)
        if self._enough() or not any(c.finish is None and c.score > REAL for c in chosen):
            return None
        return chosen

    def _enough(self) -> bool:
        if self._settings.length_penalty == 0:
            # Scores only fall with length, so that nothing overtakes the best beam once it ended.
            wanted = self._settings.num_return_sequences
            return self._top_finished and len(self._found) >= wanted
        return len(self._found) >= self._settings.max_hypotheses

    def best(self) -> list[Hypothesis]:
        """The hypotheses asked for, best first."""
        return _ranked(self._found)[: self._settings.num_return_sequences]


Pool = RankedPool | PatientPool


def _ranked(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda h: -h.score)
