"""Beam search: of every request, the likeliest ``num_beams`` sequences go on.

All beams of a request read the same memories; re-ordering them moves the self-attention cache only.

What is chosen among is a handful of numbers for each row, which is why it is done in numpy: there a
call costs less than in torch.

Axes: N requests, W beams of each, R = N*W rows, C candidates of each request, K candidates of each
row, V vocabulary, T new tokens.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xattn.decoding.batch import Plan
from xattn.decoding.best import Best, Ids, Numbers, best_of_logits, best_of_logprobs
from xattn.decoding.constraints import Constraints, Processor, Rows, check_choice
from xattn.decoding.course import Move
from xattn.decoding.history import History
from xattn.decoding.notes import Notes, Step, Tops
from xattn.decoding.pools import HOPELESS, Candidates, End, PatientPool, Pool, RankedPool
from xattn.decoding.request import Hypothesis
from xattn.decoding.settings import Settings
from xattn.decoding.stopping import StopStrings
from xattn.decoding.warpers import generator_of, scattered

EOS, LENGTH = End("eos"), End("length")


class Extensions(NamedTuple):
    """Beams with one more token, ``[N, C]`` each, best first."""

    scores_NC: Numbers
    rows_NC: Ids
    tokens_NC: Ids
    logprobs_NC: Numbers


class Beams:
    """The running beams of a batch; a request leaves it when its pool says that it is over."""

    def __init__(
        self,
        batch: Plan,
        settings: Settings,
        stops: StopStrings | None,
        processors: Sequence[Processor],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._settings, self._stops, self._batch = settings, stops, batch
        self._device = device
        N, W = len(batch.requests), settings.num_beams
        owners = [n for n in range(N) for _ in range(W)]
        self._owners = owners
        # The beams of a request begin as copies: only the first may have children.
        self._scores_R = np.array(N * ([0.0] + [HOPELESS] * (W - 1)), dtype=np.float32)
        of_requests = [request.prompt for request in batch.requests]
        self._constraints = Constraints(
            settings, batch.eos, vocab_size, device, processors, of_requests
        )
        prompts = [of_requests[n] for n in owners]
        self._history = History(prompts, vocab_size, device)
        self._rows = Rows(
            step=0,
            prompt_lengths=[len(prompt) for prompt in prompts],
            limits=[batch.limits[n] for n in owners],
            requests=owners,
            history=self._history,
            new_tokens=self._history.new_tokens,
        )
        self._notes = Notes()
        seeds = [settings.seed if r.seed is None else r.seed for r in batch.requests]
        self._generators = [generator_of(seed, 0) for seed in seeds]
        self.pools = [self._pool(limit) for limit in batch.limits]
        self.active = list(range(N))

    def _pool(self, limit: int) -> Pool:
        if self._settings.patience is not None:
            return PatientPool(self._settings, self._complete)
        return RankedPool(self._settings, limit, self._complete)

    def advance(self, logits_RV: Tensor) -> Move | None:
        """Give every running beam one more token."""
        first = self._rows.step == 0
        if first:
            logits_RV = logits_RV[self._owners]
        logits_RV = self._constrained(logits_RV)
        extend = self._drawn if self._settings.do_sample else self._likeliest
        extensions, best = extend(logits_RV)
        self._check(extensions, logits_RV)
        wanted = self._settings.top_logprobs
        self._tops = Tops(best, wanted) if wanted else None
        chosen = self._chosen(self._candidates(extensions))
        if not chosen:
            return None
        move = self._go_on(chosen)
        return move._replace(rows=[self._owners[row] for row in move.rows]) if first else move

    def allowed(self) -> list[int] | None:
        """The only tokens whose logits the next choice reads; None where it reads all.

        Log-probabilities that constraints see are over the whole vocabulary.
        """
        return None if self._normalised_first else self._constraints.allowed(self._rows)

    def hypotheses(self) -> list[list[Hypothesis]]:
        """The best of every request, best first."""
        return [pool.best() for pool in self.pools]

    def partial(self) -> tuple[int, ...]:
        """New tokens of the best running beam of the first request that is not over."""
        return tuple(self._history.new_tokens(slice(1))[0])

    def _constrained(self, logits_RV: Tensor) -> Tensor:
        """transformers constrains log-probabilities, CTranslate2 what they are made of."""
        if self._normalised_first:
            logits_RV = logits_RV.log_softmax(-1)
        logits_RV = self._constraints(logits_RV, self._rows)
        if self._settings.do_sample:
            logits_RV = scattered(logits_RV, self._settings, keep=len(self._batch.eos) + 1)
        return logits_RV

    @property
    def _normalised_first(self) -> bool:
        """Constraints see log-probabilities; where there are none, nobody sees the difference."""
        settings = self._settings
        return settings.patience is None and (self._constraints.any or settings.do_sample)

    @property
    def _normalised_last(self) -> bool:
        """What the constraints have left is made to sum to 1."""
        return self._settings.renormalize_logits or not self._normalised_first

    @property
    def _width(self) -> int:
        """Candidates of each request: enough to go on with if every beam ends in every way."""
        return max(2, 1 + len(self._batch.eos)) * self._settings.num_beams

    def _likeliest(self, logits_RV: Tensor) -> tuple[Extensions, Best]:
        """The best extensions of each request, and the best tokens of each row."""
        find = best_of_logits if self._normalised_last else best_of_logprobs
        best = find(logits_RV, max(self._width, self._settings.top_logprobs))
        # The best of a request are among the best of its rows, which are fewer to sort.
        ids_RK, logprobs_RK = best.ids_RK[:, : self._width], best.logprobs_RK[:, : self._width]
        N = len(self.active)
        scores_NK = (logprobs_RK + self._scores_R[:, None]).reshape(N, -1)
        order_NK = -scores_NK
        if not np.isfinite(order_NK).all():
            order_NK[np.isnan(order_NK)] = -np.inf  # to be seen
        at_NC = order_NK.argsort(axis=1, kind="stable")[:, : self._width]
        return _extensions(at_NC, scores_NK, ids_RK, logprobs_RK), best

    def _drawn(self, logits_RV: Tensor) -> tuple[Extensions, Best]:
        """Extensions of each request drawn without replacement, in the order of drawing.

        The largest of log-probabilities plus Gumbel noise are such a draw (Kool et al. 2019).
        """
        logprobs_RV = logits_RV.log_softmax(-1) if self._normalised_last else logits_RV
        scores_R = torch.from_numpy(self._scores_R).to(self._device)
        scores_NK = (logprobs_RV + scores_R[:, None]).view(len(self.active), -1)
        noise_NK = torch.stack([self._gumbel(n, scores_NK.shape[1]) for n in self.active])
        noisy_NK = scores_NK + noise_NK.to(self._device)
        at_NC = noisy_NK.topk(min(self._width, scores_NK.shape[1])).indices
        V = logprobs_RV.shape[1]
        first_N1 = self._settings.num_beams * torch.arange(len(self.active))[:, None]
        drawn = Extensions(
            scores_NC=scores_NK.gather(1, at_NC).float().cpu().numpy(),
            rows_NC=(first_N1 + at_NC.cpu() // V).numpy(),
            tokens_NC=(at_NC % V).cpu().numpy(),
            logprobs_NC=logprobs_RV.view(scores_NK.shape).gather(1, at_NC).float().cpu().numpy(),
        )
        return drawn, best_of_logprobs(logprobs_RV, max(1, self._settings.top_logprobs))

    def _gumbel(self, request: int, count: int) -> Tensor:
        return -torch.empty(count).exponential_(generator=self._generators[request]).log()

    def _check(self, extensions: Extensions, logits_RV: Tensor) -> None:
        """Raise where the best extension of a request has no score."""
        for score in extensions.scores_NC[:, 0].tolist():
            if not math.isfinite(score):
                if self._settings.patience is None and not self._normalised_first:
                    logits_RV = logits_RV.log_softmax(-1)  # no constraint has banned anything
                check_choice(score, logits_RV, self._rows.step)

    def _candidates(self, extensions: Extensions) -> list[Candidates]:
        """The same for each request in turn, as plain numbers, with what ends."""
        columns = zip(*(column.tolist() for column in extensions), strict=True)
        before = self._history.new_tokens() if self._stops is not None else []
        return [
            Candidates(scores, rows, tokens, logprobs, self._ends(request, rows, tokens, before))
            for request, (scores, rows, tokens, logprobs) in zip(self.active, columns, strict=True)
        ]

    def _ends(
        self, request: int, rows: list[int], tokens: list[int], before: list[list[int]]
    ) -> dict[int, End]:
        eos, stops = self._batch.eos, self._stops
        ends = {place: EOS for place, token in enumerate(tokens) if token in eos}
        if stops is not None:
            for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
                if place not in ends and (text := stops.find([*before[row], token])) is not None:
                    ends[place] = End("stop", text)
        if self._rows.step + 1 == self._batch.limits[request]:
            ends = {place: ends.get(place, LENGTH) for place in range(len(tokens))}
        return dict(sorted(ends.items()))

    def _complete(self, candidates: Candidates, place: int, score: float) -> Hypothesis:
        """The hypothesis that ends with the candidate at ``place``."""
        row, end = candidates.rows[place], candidates.ends[place]
        logprobs, tops = self._notes.of(row)
        if self._tops is not None:
            tops.append(self._tops.of(row))
        return Hypothesis(
            tokens=(*self._history.new_tokens(slice(row, row + 1))[0], candidates.tokens[place]),
            score=score,
            logprobs=(*logprobs, candidates.logprobs[place]),
            finish=end.finish,
            text=end.text,
            top_logprobs=tuple(tops),
        )

    def _chosen(self, candidates: list[Candidates]) -> list[tuple[Candidates, list[int]]]:
        """The places that the pools let go on, of the requests that are not over."""
        still, chosen = [], []
        for request, of_request in zip(self.active, candidates, strict=True):
            running = self.pools[request].consider(of_request, self._rows.step)
            if running is not None:
                still.append(request)
                chosen.append((of_request, running))
        self.active = still
        return chosen

    def _go_on(self, chosen: list[tuple[Candidates, list[int]]]) -> Move:
        """Put the chosen candidates in the place of their beams."""
        kept = [c.rows[place] for c, places in chosen for place in places]
        tokens = [c.tokens[place] for c, places in chosen for place in places]
        logprobs = [c.logprobs[place] for c, places in chosen for place in places]
        scores = [c.going_score(place) for c, places in chosen for place in places]
        self._scores_R = np.array(scores, dtype=np.float32)
        self._notes.add(Step(kept, logprobs, self._tops))
        self._history.select(kept)
        self._history.append(tokens)
        rows = self._rows
        rows.step += 1
        if len(kept) < len(rows.limits):  # the beams of one request have the same of both
            rows.prompt_lengths = [rows.prompt_lengths[row] for row in kept]
            rows.limits = [rows.limits[row] for row in kept]
            rows.requests = [rows.requests[row] for row in kept]
        return Move(kept, torch.from_numpy(np.array(tokens)).to(self._device))


def _extensions(at_NC: Ids, scores_NK: Numbers, ids_RK: Ids, logprobs_RK: Numbers) -> Extensions:
    """The extensions at these places of each request's candidates."""
    N, K = len(scores_NK), ids_RK.shape[1]
    flat_NC = at_NC + scores_NK.shape[1] * np.arange(N)[:, None]
    return Extensions(
        scores_NC=scores_NK.take(flat_NC),
        rows_NC=flat_NC // K,
        tokens_NC=ids_RK.take(flat_NC),
        logprobs_NC=logprobs_RK.take(flat_NC),
    )
