"""Decoding a batch of requests that begin together: a course decides, and the network is run.

Axes: R rows, V vocabulary, T tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Generic

import torch
from torch import Tensor

from xattn.decoding.batch import Plan, S, Steps, plan, prefill
from xattn.decoding.beam import Beams
from xattn.decoding.constraints import Processor
from xattn.decoding.course import Course, Move
from xattn.decoding.lookup import LookupRun
from xattn.decoding.request import Hypothesis, Request
from xattn.decoding.settings import Settings
from xattn.decoding.stopping import Detokenizer, stop_strings_of
from xattn.decoding.walk import Walk
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
    course = course_of(network, batch, settings, tokenizer, processors)
    run = run_of(network, batch, course, settings, form)
    with torch.inference_mode():
        while run.advance():
            pass
        return course.hypotheses()


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
    course = course_of(network, batch, settings, tokenizer, processors)
    run = run_of(network, batch, course, settings, form)

    def tokens() -> Iterator[int]:
        going = True
        while going:
            with torch.inference_mode():
                going = run.advance()
            yield course.partial()[-1]

    return tokens()


def course_of(
    network: Steps[S],
    batch: Plan,
    settings: Settings,
    tokenizer: Detokenizer | None,
    processors: Sequence[Processor] = (),
) -> Course:
    """The decisions that ``settings`` ask for, on requests that begin together."""
    stops = stop_strings_of(settings, tokenizer)
    kind = Beams if settings.num_beams > 1 else Walk
    vocab_size = network.spec.decoder.vocab_size
    return kind(batch, settings, stops, processors, vocab_size, network.device)


def run_of(
    network: Steps[S], batch: Plan, course: Course, settings: Settings, form: Form
) -> "Run[S] | LookupRun[S]":
    """What runs the network as ``course`` says, with guesses where the settings ask for them."""
    if settings.prompt_lookup_num_tokens is None:
        return Run(network, batch, course, form)
    return LookupRun(network, batch, course, form, settings.prompt_lookup_num_tokens)


class Run(Generic[S]):
    """A network that is run as one course says, one token for every row at a time."""

    def __init__(self, network: Steps[S], batch: Plan, course: Course, form: Form) -> None:
        self._network, self._batch, self._course, self._form = network, batch, course, form
        self._state: S | None = None
        self._move: Move | None = None

    def advance(self) -> bool:
        """Choose the next tokens; whether any row goes on after them."""
        self._move = self._course.advance(self._logits())
        return self._move is not None

    def _logits(self) -> Tensor:
        only = self._course.allowed()
        if self._state is None or self._move is None:
            self._state, logits_RV = prefill(self._network, self._batch, self._form, only)
            return logits_RV
        self._state.reorder(self._move.rows)
        return self._network.step(self._move.tokens_R[:, None], self._state, only=only)
