"""Greedy decoding and sampling: every sequence is one row, and rows that end leave the batch.

Axes: R rows, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from xattn.decoding.batch import Plan
from xattn.decoding.best import Best, best_of_logits
from xattn.decoding.constraints import Constraints, Processor, Rows, check_choice
from xattn.decoding.course import Move
from xattn.decoding.history import History
from xattn.decoding.notes import Tops
from xattn.decoding.request import Finish, Hypothesis, TokenLogprob, normalized
from xattn.decoding.settings import Settings
from xattn.decoding.stopping import StopStrings
from xattn.decoding.warpers import Uniforms, draw, generator_of


class Draft:
    """One sequence as it grows."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top: list[tuple[TokenLogprob, ...]] = []
        self.finish: Finish | None = None
        self.text: str | None = None

    def add(
        self, token: int, logprob: float, eos: Sequence[int], stops: StopStrings | None
    ) -> None:
        """Append one token and see whether the sequence ends with it."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in eos:
            self.finish = "eos"
        elif stops is not None and (text := stops.find(self.tokens)) is not None:
            self.finish, self.text = "stop", text
        elif len(self.tokens) == self.limit:
            self.finish = "length"

    def hypothesis(self, settings: Settings) -> Hypothesis:
        """The finished sequence."""
        assert self.finish is not None
        length = settings.scored_length(len(self.tokens), ended=self.finish == "eos")
        return Hypothesis(
            tokens=tuple(self.tokens),
            score=normalized(sum(self.logprobs), length, settings.length_penalty),
            logprobs=tuple(self.logprobs),
            finish=self.finish,
            text=self.text,
            top_logprobs=tuple(self.top),
        )


class Walk:
    """Greedy decoding or sampling of a batch, one token for every row at a time."""

    def __init__(
        self,
        batch: Plan,
        settings: Settings,
        stops: StopStrings | None,
        processors: Sequence[Processor],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._settings, self._stops, self._eos = settings, stops, batch.eos
        self._device = device
        each = settings.num_return_sequences
        self._owners = [i for i in range(len(batch.requests)) for _ in range(each)]
        self.drafts = [Draft(batch.limits[i]) for i in self._owners]
        self.active = list(range(len(self._owners)))
        of_requests = [request.prompt for request in batch.requests]
        self._constraints = Constraints(
            settings, batch.eos, vocab_size, device, processors, of_requests
        )
        prompts = [of_requests[i] for i in self._owners]
        reads = self._constraints.reads_history
        self._rows = Rows(
            step=0,
            prompt_lengths=[len(prompt) for prompt in prompts],
            limits=[batch.limits[i] for i in self._owners],
            requests=self._owners,
            history=History(prompts, vocab_size, device) if reads else None,
            new_tokens=lambda: [self.drafts[i].tokens for i in self.active],
        )
        self._uniforms = None
        if settings.do_sample:
            generators = _generators(batch, settings)
            self._uniforms = Uniforms(generators, device)

    def advance(self, logits_RV: Tensor) -> Move | None:
        """Choose one token for every active row, and drop the rows that end with it."""
        first = self._rows.step == 0
        if first and self._settings.num_return_sequences > 1:
            logits_RV = logits_RV[self._owners]
        logits_RV = self._constraints(logits_RV, self._rows)
        best = best_of_logits(logits_RV, max(1, self._settings.top_logprobs))
        tokens, logprobs = self._choose(logits_RV, best)
        tops = Tops(best, self._settings.top_logprobs) if self._settings.top_logprobs else None
        for row, sequence in enumerate(self.active):
            check_choice(logprobs[row], logits_RV, self._rows.step)
            draft = self.drafts[sequence]
            draft.add(tokens[row], logprobs[row], self._eos, self._stops)
            if tops is not None:
                draft.top.append(tops.of(row))
        kept = self._keep_unfinished(tokens)
        if kept is None or not first:
            return kept
        return kept._replace(rows=[self._owners[row] for row in kept.rows])

    def allowed(self) -> list[int] | None:
        """The only tokens whose logits the next choice reads; None where it reads all."""
        return self._constraints.allowed(self._rows)

    def hypotheses(self) -> list[list[Hypothesis]]:
        """The sequences of each request, in the order of their seeds."""
        each = self._settings.num_return_sequences
        found = [draft.hypothesis(self._settings) for draft in self.drafts]
        return [found[i : i + each] for i in range(0, len(found), each)]

    def partial(self) -> tuple[int, ...]:
        """New tokens of the first sequence so far."""
        return tuple(self.drafts[0].tokens)

    def _choose(self, logits_RV: Tensor, best: Best) -> tuple[list[int], list[float]]:
        """A token for each row, and its log-probability."""
        if self._uniforms is None:
            return best.ids_RK[:, 0].tolist(), best.logprobs_RK[:, 0].tolist()
        tokens_R = draw(logits_RV, self._settings, self._uniforms.next())
        drawn_R = logits_RV.gather(1, tokens_R[:, None]).squeeze(1)
        # One transfer for both: ids are exact in float64.
        tokens, drawn = torch.stack((tokens_R.double(), drawn_R.double())).cpu().numpy()
        behind_R = drawn.astype(np.float32) - best.logits_RK[:, 0]
        return tokens.astype(np.int64).tolist(), (behind_R + best.logprobs_RK[:, 0]).tolist()

    def _keep_unfinished(self, tokens: list[int]) -> Move | None:
        kept = [row for row, i in enumerate(self.active) if self.drafts[i].finish is None]
        rows = self._rows
        rows.step += 1
        if len(kept) < len(self.active):
            self.active = [self.active[row] for row in kept]
            if not kept:
                return None
            tokens = [tokens[row] for row in kept]
            rows.prompt_lengths = [rows.prompt_lengths[row] for row in kept]
            rows.limits = [rows.limits[row] for row in kept]
            rows.requests = [rows.requests[row] for row in kept]
            if rows.history is not None:
                rows.history.select(kept)
            if self._uniforms is not None:
                self._uniforms.select(kept)
        if rows.history is not None:
            rows.history.append(tokens)
        return Move(kept, torch.from_numpy(np.array(tokens)).to(self._device))


def _generators(batch: Plan, settings: Settings) -> list[torch.Generator]:
    seeds = [settings.seed if r.seed is None else r.seed for r in batch.requests]
    each = range(settings.num_return_sequences)
    return [generator_of(seed, sequence) for seed in seeds for sequence in each]
