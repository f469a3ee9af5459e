"""Beam search: of every request, the likeliest ``num_beams`` sequences go on.

All beams of a request read the same memories; re-ordering them moves the self-attention cache only.

Axes: N requests, W beams of each, R = N*W rows, C candidates of each request, K candidates of each
row, V vocabulary, T new tokens, X numbers noted for each token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xattn.decoding.batch import Plan
from xattn.decoding.constraints import Constraints, Processor, Rows, check_choice
from xattn.decoding.course import Move
from xattn.decoding.history import History
from xattn.decoding.pools import HOPELESS, Candidate, PatientPool, Pool, RankedPool
from xattn.decoding.request import Finish, Hypothesis
from xattn.decoding.settings import Settings
from xattn.decoding.stopping import StopStrings
from xattn.decoding.warpers import generator_of, scattered


class Extensions(NamedTuple):
    """Beams with one more token, ``[N, C]`` each."""

    scores_NC: Tensor
    rows_NC: Tensor
    tokens_NC: Tensor
    logprobs_NC: Tensor


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
        N, W = len(batch.requests), settings.num_beams
        owners = [n for n in range(N) for _ in range(W)]
        self._owners = owners
        # The beams of a request begin as copies: only the first may have children.
        self._scores_R = torch.tensor([0.0] + [HOPELESS] * (W - 1), device=device).repeat(N)
        self._constraints = Constraints(settings, batch.eos, vocab_size, device, processors)
        prompts = [batch.requests[n].prompt for n in owners]
        self._history = History(prompts, vocab_size, device)
        self._rows = Rows(
            step=0,
            prompt_lengths=[len(prompt) for prompt in prompts],
            limits=[batch.limits[n] for n in owners],
            history=self._history,
            new_tokens=lambda: self._history.new_RT.tolist(),
        )
        noted = 1 + 2 * min(settings.top_logprobs, vocab_size)
        self._notes_RTX = torch.empty(N * W, 0, noted, dtype=torch.float64, device=device)
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
        constrained_RV = self._constrained(logits_RV)
        logprobs_RV = constrained_RV
        if self._settings.patience is not None or self._settings.renormalize_logits:
            logprobs_RV = constrained_RV.log_softmax(-1)
        extend = self._drawn if self._settings.do_sample else self._best
        candidates = self._candidates(extend(logprobs_RV))
        for of_request in candidates:
            check_choice(of_request[0].score, constrained_RV, self._rows.step)
        self._top_RX = self._top(logprobs_RV)
        chosen = self._chosen(candidates)
        if not chosen:
            return None
        move = self._go_on(chosen)
        return move._replace(rows=[self._owners[row] for row in move.rows]) if first else move

    def hypotheses(self) -> list[list[Hypothesis]]:
        """The best of every request, best first."""
        return [pool.best() for pool in self.pools]

    def partial(self) -> tuple[int, ...]:
        """New tokens of the best running beam of the first request that is not over."""
        return tuple(self._history.new_RT[0].tolist())

    def _constrained(self, logits_RV: Tensor) -> Tensor:
        """transformers constrains log-probabilities, CTranslate2 what they are made of."""
        if self._settings.patience is None:
            logits_RV = logits_RV.log_softmax(-1)
        logits_RV = self._constraints(logits_RV, self._rows)
        if self._settings.do_sample:
            logits_RV = scattered(logits_RV, self._settings, keep=len(self._batch.eos) + 1)
        return logits_RV

    @property
    def _width(self) -> int:
        """Candidates of each request: enough to go on with if every beam ends in every way."""
        return max(2, 1 + len(self._batch.eos)) * self._settings.num_beams

    def _best(self, logprobs_RV: Tensor) -> Extensions:
        """The best extensions of each request, best first."""
        # The best of a request are among the best of its rows, which are fewer to sort.
        best_RK, ids_RK = logprobs_RV.topk(min(self._width, logprobs_RV.shape[1]))
        scores_NK = (best_RK + self._scores_R[:, None]).view(len(self.active), -1)
        at_NC = scores_NK.topk(min(self._width, scores_NK.shape[1])).indices
        return self._extensions(at_NC, scores_NK, ids_RK, best_RK)

    def _drawn(self, logprobs_RV: Tensor) -> Extensions:
        """Extensions of each request drawn without replacement, in the order of drawing.

        The largest of log-probabilities plus Gumbel noise are such a draw (Kool et al. 2019).
        """
        scores_NK = (logprobs_RV + self._scores_R[:, None]).view(len(self.active), -1)
        noise_NK = torch.stack([self._gumbel(n, scores_NK.shape[1]) for n in self.active])
        noisy_NK = scores_NK + noise_NK.to(scores_NK.device)
        at_NC = noisy_NK.topk(min(self._width, scores_NK.shape[1])).indices
        ids_RV = torch.arange(logprobs_RV.shape[1], device=at_NC.device).expand_as(logprobs_RV)
        return self._extensions(at_NC, scores_NK, ids_RV, logprobs_RV)

    def _gumbel(self, request: int, count: int) -> Tensor:
        return -torch.empty(count).exponential_(generator=self._generators[request]).log()

    def _extensions(
        self, at_NC: Tensor, scores_NK: Tensor, ids_RK: Tensor, logprobs_RK: Tensor
    ) -> Extensions:
        N, W = len(self.active), self._settings.num_beams
        first_N1 = W * torch.arange(N, device=at_NC.device)[:, None]
        return Extensions(
            scores_NC=scores_NK.gather(1, at_NC),
            rows_NC=first_N1 + at_NC // ids_RK.shape[1],
            tokens_NC=ids_RK.reshape(N, -1).gather(1, at_NC),
            logprobs_NC=logprobs_RK.reshape(N, -1).gather(1, at_NC),
        )

    def _candidates(self, extensions: Extensions) -> list[list[Candidate]]:
        length = self._rows.step + 1
        normalized_NC = extensions.scores_NC / length**self._settings.length_penalty
        # One transfer for all: ids are exact in float64.
        columns = [column.double() for column in (*extensions, normalized_NC)]
        table = torch.stack(columns, dim=-1).tolist()
        before = self._history.new_RT.tolist() if self._stops is not None else []
        limits = [self._batch.limits[request] for request in self.active]
        return [
            [self._candidate(line, length == limit, before) for line in lines]
            for lines, limit in zip(table, limits, strict=True)
        ]

    def _candidate(self, line: list[float], last: bool, before: list[list[int]]) -> Candidate:
        score, row, token, logprob, normalized = line
        finish: Finish | None = "length" if last else None
        text = None
        if token in self._batch.eos:
            finish = "eos"
        elif self._stops is not None:
            text = self._stops.find([*before[int(row)], int(token)])
            finish = finish if text is None else "stop"
        return Candidate(score, normalized, int(row), int(token), logprob, finish, text)

    def _top(self, logprobs_RV: Tensor) -> Tensor:
        """Ids and log-probabilities of each row's best candidates, in turn."""
        best = logprobs_RV.topk(min(self._settings.top_logprobs, logprobs_RV.shape[1]))
        return torch.stack((best.indices.double(), best.values.double()), dim=-1).flatten(1)

    def _complete(self, candidate: Candidate, score: float) -> Hypothesis:
        """The hypothesis that ends with ``candidate``."""
        row = candidate.row
        top_TX = torch.cat((self._notes_RTX[row, :, 1:], self._top_RX[row : row + 1])).tolist()
        tops = [tuple(zip(map(int, top[::2]), top[1::2], strict=True)) for top in top_TX]
        assert candidate.finish is not None
        return Hypothesis(
            tokens=(*self._history.new_RT[row].tolist(), candidate.token),
            score=score,
            logprobs=(*self._notes_RTX[row, :, 0].tolist(), candidate.logprob),
            finish=candidate.finish,
            text=candidate.text,
            top_logprobs=tuple(tops) if self._settings.top_logprobs else (),
        )

    def _chosen(self, candidates: list[list[Candidate]]) -> list[Candidate]:
        """What the pools let go on, of the requests that are not over."""
        still, chosen = [], []
        for request, of_request in zip(self.active, candidates, strict=True):
            running = self.pools[request].consider(of_request, self._rows.step)
            if running is not None:
                still.append(request)
                chosen += running
        self.active = still
        return chosen

    def _go_on(self, chosen: list[Candidate]) -> Move:
        """Put the chosen candidates in the place of their beams."""
        device, kept = self._scores_R.device, [c.row for c in chosen]
        rows_R = torch.tensor(kept, device=device)
        tokens_R = torch.tensor([c.token for c in chosen], device=device)
        self._history.select(kept)
        self._history.append(tokens_R)
        self._scores_R = torch.tensor([c.running_score for c in chosen], device=device)
        logprobs_R1 = torch.tensor(
            [[c.logprob] for c in chosen], dtype=torch.float64, device=device
        )
        notes_RX = torch.cat((logprobs_R1, self._top_RX.index_select(0, rows_R)), dim=1)
        notes_RTX = self._notes_RTX.index_select(0, rows_R)
        self._notes_RTX = torch.cat((notes_RTX, notes_RX[:, None]), dim=1)
        rows = self._rows
        rows.step += 1
        rows.prompt_lengths = [rows.prompt_lengths[row] for row in kept]
        rows.limits = [rows.limits[row] for row in kept]
        return Move(kept, tokens_R)
