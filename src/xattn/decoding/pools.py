"""When the beam search of one request ends, and which of its candidates go on.

Two rules are in use in the field. :class:`RankedPool` follows transformers (``_beam_search``),
:class:`PatientPool` follows CTranslate2 (``BeamSearch::search``), with the patience factor of
Kasai et al. 2022 (arXiv 2204.05424).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from xattn.decoding.request import Finish, Hypothesis, normalized
from xattn.decoding.settings import Settings

HOPELESS = -1e9
"""Added to the score of a beam that must not win; beams that begin as copies have it."""
REAL = HOPELESS / 2
"""Scores below belong to no sequence worth keeping."""


class End(NamedTuple):
    """How a candidate ends."""

    finish: Finish
    text: str | None = None


class Candidates(NamedTuple):
    """Beams of one request with one more token, best first: an entry of every list for each."""

    scores: list[float]
    """Sums of log-probabilities; numbers of float32."""
    rows: list[int]
    tokens: list[int]
    logprobs: list[float]
    ends: dict[int, End]
    """Of those that end with their token, by place."""

    def going_score(self, place: int) -> float:
        """What it goes on with: a finished one goes on only where nothing else is left."""
        score = self.scores[place]
        return score + HOPELESS if place in self.ends else score


Complete = Callable[[Candidates, int, float], Hypothesis]
"""Makes the hypothesis that ends with the candidate at a place, given its final score."""


def single_normalized(score: float, length: int, penalty: float) -> float:
    """``score / length ** penalty`` in float32, as the field's searches rank running beams."""
    return float(torch.tensor(score) / length**penalty)


class RankedPool:
    """The ``num_beams`` best finished hypotheses, and whether a running one may still join them."""

    def __init__(self, settings: Settings, limit: int, complete: Complete) -> None:
        self._settings, self._limit, self._complete = settings, limit, complete
        self._found: list[Hypothesis] = []

    def consider(self, candidates: Candidates, step: int) -> list[int] | None:
        """Note what finished; places of those to go on with, or None when the search is over.

        ``step`` counts new tokens before this one. Only the first ``num_beams`` candidates can
        finish, the others are there to go on with.
        """
        beams, ends = self._settings.num_beams, candidates.ends
        running = list(range(beams))
        if ends:
            self._note(candidates, step)
            places = range(len(candidates.scores))
            running = sorted(places, key=lambda place: -candidates.going_score(place))[:beams]
        if running[0] in ends or not self._can_improve(candidates.scores[running[0]], step + 1):
            return None
        return running

    def _note(self, candidates: Candidates, step: int) -> None:
        beams = self._settings.num_beams
        self._found += [
            self._complete(candidates, place, self._final_score(candidates, place, step + 1))
            for place in candidates.ends
            if place < beams and candidates.scores[place] > REAL
        ]
        self._found = _ranked(self._found)[:beams]

    def _final_score(self, candidates: Candidates, place: int, tokens: int) -> float:
        settings, score = self._settings, candidates.scores[place]
        ended = candidates.ends[place].finish == "eos"
        length = settings.scored_length(tokens, ended=ended)
        if length == tokens:
            return single_normalized(score, length, settings.length_penalty)
        return normalized(score, length, settings.length_penalty)

    def _can_improve(self, score: float, length: int) -> bool:
        settings = self._settings
        if len(self._found) < settings.num_beams:
            return True
        if settings.early_stopping is True:
            return False
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            length = self._limit
        possible = single_normalized(score, length, settings.length_penalty)
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

    def consider(self, candidates: Candidates, step: int) -> list[int] | None:
        """Note what finished, and put the next best running candidate in its place."""
        beams, (scores, *_, ends) = self._settings.num_beams, candidates
        chosen = list(range(beams))
        spare = (p for p in range(beams, len(scores)) if p not in ends and scores[p] > REAL)
        for place in [place for place in ends if place < beams]:
            self._top_finished |= place == 0
            if scores[place] > REAL:
                self._note(candidates, place, step + 1)
            chosen[place] = next(spare, place)
        if self._enough() or not any(p not in ends and scores[p] > REAL for p in chosen):
            return None
        return chosen

    def _note(self, candidates: Candidates, place: int, tokens: int) -> None:
        settings = self._settings
        ended = candidates.ends[place].finish == "eos"
        length = settings.scored_length(tokens, ended=ended)
        score = normalized(candidates.scores[place], length, settings.length_penalty)
        self._found.append(self._complete(candidates, place, score))

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
