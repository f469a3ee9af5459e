"""Greedy decoding and sampling: every sequence is one row, and rows that end leave the batch.

Axes: R rows, V vocabulary, T tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Generic

import torch
from torch import Tensor

from xattn.decoding.batch import Plan, S, Steps, plan, prefill
from xattn.decoding.beam import beam_search
from xattn.decoding.constraints import Constraints, Processor, Rows, check_choice
from xattn.decoding.history import History
from xattn.decoding.request import Finish, Hypothesis, Request, TokenLogprob, normalized
from xattn.decoding.settings import Settings
from xattn.decoding.stopping import Detokenizer, StopStrings, stop_strings_of
from xattn.decoding.warpers import Uniforms, draw, generator_of
from xattn.errors import require
from xattn.spec import Form


def decode(
    network: Steps[S],
    requests: Sequence[Request],
    settings: Settings,
    tokenizer: Detokenizer | None = None,
    *,
    processors: Sequence[Processor] = (),
    form: Form = "materialized",
) -> list[list[Hypothesis]]:
    """Continue every request; for each, ``num_return_sequences`` hypotheses.

    Those of a beam search come best first, and may be fewer where the constraints allow no more;
    samples come in the order of their seeds. ``tokenizer`` is needed for stop strings only.

    Raises :class:`PromptError` where a prompt is empty or does not fit the decoder,
    :class:`UsageError` where the constraints leave no token, and :class:`XattnError` where the
    network's logits are not finite.
    """
    batch = plan(network.spec, requests, settings)
    stops = stop_strings_of(settings, tokenizer)
    with torch.inference_mode():
        if settings.num_beams > 1:
            return beam_search(network, batch, settings, stops, processors, form)
        walk = Walk(network, batch, settings, stops, processors, form)
        while walk.active:
            walk.advance()
    each = walk.sequences_per_request
    found = [draft.hypothesis(settings) for draft in walk.drafts]
    return [found[i : i + each] for i in range(0, len(found), each)]


def stream(
    network: Steps[S],
    request: Request,
    settings: Settings,
    tokenizer: Detokenizer | None = None,
    *,
    processors: Sequence[Processor] = (),
    form: Form = "materialized",
) -> Iterator[int]:
    """Tokens of one greedy or sampled sequence, each as soon as it is chosen, end token included.

    A stop string ends it with the token that completes it; :class:`StopFilter` cuts the text. The
    arguments are checked before the first token is asked for. Raises as :func:`decode` does.
    """
    bound = "1 to stream: with beams, no token is certain before the end"
    require(settings.num_beams == 1, "num_beams", bound, settings.num_beams)
    wanted = settings.num_return_sequences
    require(wanted == 1, "num_return_sequences", "1 to stream", wanted)
    batch = plan(network.spec, [request], settings)
    stops = stop_strings_of(settings, tokenizer)

    def tokens() -> Iterator[int]:
        with torch.inference_mode():
            walk = Walk(network, batch, settings, stops, processors, form)
        while walk.active:
            with torch.inference_mode():
                walk.advance()
            yield walk.drafts[0].tokens[-1]

    return tokens()


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


class Walk(Generic[S]):
    """Greedy decoding or sampling of a batch, one token for every row at a time."""

    def __init__(
        self,
        network: Steps[S],
        batch: Plan,
        settings: Settings,
        stops: StopStrings | None,
        processors: Sequence[Processor],
        form: Form,
    ) -> None:
        self._network, self._settings, self._stops, self._eos = network, settings, stops, batch.eos
        self._state, self._logits_RV = prefill(network, batch, settings, form)
        self.sequences_per_request = settings.num_return_sequences
        owners = [i for i in range(len(batch.requests)) for _ in range(self.sequences_per_request)]
        if self.sequences_per_request > 1:
            repeats_R = torch.tensor(owners, device=network.device)
            self._state.reorder(repeats_R)
            self._logits_RV = self._logits_RV.index_select(0, repeats_R)
        self.drafts = [Draft(batch.limits[i]) for i in owners]
        self.active = list(range(len(owners)))
        vocab_size, device = self._logits_RV.shape[1], network.device
        self._constraints = Constraints(settings, batch.eos, vocab_size, device, processors)
        prompts = [batch.requests[i].prompt for i in owners]
        reads = self._constraints.reads_history
        self._rows = Rows(
            step=0,
            prompt_lengths=[len(prompt) for prompt in prompts],
            limits=[batch.limits[i] for i in owners],
            history=History(prompts, vocab_size, device) if reads else None,
            new_tokens=lambda: [self.drafts[i].tokens for i in self.active],
        )
        self._uniforms = None
        if settings.do_sample:
            generators = _generators(batch, settings)
            self._uniforms = Uniforms(generators, device)
        self._tokens_R: Tensor | None = None

    def advance(self) -> None:
        """Choose one token for every active row, and drop the rows that end with it."""
        if self._tokens_R is not None:
            self._logits_RV = self._network.step(self._tokens_R[:, None], self._state)
        logits_RV = self._constraints(self._logits_RV, self._rows)
        tokens_R, logprobs_R = self._choose(logits_RV)
        # One transfer for both: ids are exact in float64.
        tokens, logprobs = torch.stack((tokens_R.double(), logprobs_R.double())).tolist()
        tops = self._tops(logits_RV)
        for row, sequence in enumerate(self.active):
            check_choice(logprobs[row], logits_RV, self._rows.step)
            draft = self.drafts[sequence]
            draft.add(int(tokens[row]), logprobs[row], self._eos, self._stops)
            draft.top.extend(tops[row : row + 1])
        self._keep_unfinished(tokens_R)

    def _choose(self, logits_RV: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and their log-probabilities, ``[R]`` each."""
        total_R = logits_RV.logsumexp(-1)
        if self._uniforms is None:
            best_R, tokens_R = logits_RV.max(-1)
            return tokens_R, best_R - total_R
        tokens_R = draw(logits_RV, self._settings, self._uniforms.next())
        return tokens_R, logits_RV.gather(1, tokens_R[:, None]).squeeze(1) - total_R

    def _tops(self, logits_RV: Tensor) -> list[tuple[TokenLogprob, ...]]:
        """The likeliest candidates of each row; nothing where they are not asked for."""
        if self._settings.top_logprobs == 0:
            return []
        best = logits_RV.log_softmax(-1).topk(min(self._settings.top_logprobs, logits_RV.shape[1]))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [tuple(zip(ids, logprobs, strict=True)) for ids, logprobs in pairs]

    def _keep_unfinished(self, tokens_R: Tensor) -> None:
        kept = [row for row, i in enumerate(self.active) if self.drafts[i].finish is None]
        rows = self._rows
        rows.step += 1
        if len(kept) < len(self.active):
            self.active = [self.active[row] for row in kept]
            if not kept:
                return
            kept_R = torch.tensor(kept, device=tokens_R.device)
            tokens_R = tokens_R[kept_R]
            self._state.reorder(kept_R)
            rows.prompt_lengths = [rows.prompt_lengths[row] for row in kept]
            rows.limits = [rows.limits[row] for row in kept]
            if rows.history is not None:
                rows.history.select(kept_R)
            if self._uniforms is not None:
                self._uniforms.select(kept)
        if rows.history is not None:
            rows.history.append(tokens_R)
        self._tokens_R = tokens_R


def _generators(batch: Plan, settings: Settings) -> list[torch.Generator]:
    seeds = [settings.seed if r.seed is None else r.seed for r in batch.requests]
    each = range(settings.num_return_sequences)
    return [generator_of(seed, sequence) for seed in seeds for sequence in each]
