"""Prompt lookup: guessing next tokens from where the latest ones occurred before (Saxena 2023).

A guess costs nothing to make. Several are checked in one step of the decoder, which reads its
weights once whatever the number of tokens, and those are kept that the course chooses as well. It
is handed the same logits as without, and so takes the same decisions, whatever they depend on.

Axes: T tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Generic

import torch
from torch import Tensor

from xattn.decoding.batch import Plan, S, Steps, prefill
from xattn.decoding.course import Course, Move
from xattn.decoding.request import Request
from xattn.errors import require
from xattn.models.state import Projection
from xattn.spec import Form

LENGTHS = (3, 2)
"""Tokens that must have occurred before, in this order of preference; one alone says too little."""


class Seen:
    """A growing sequence, and what followed the latest n tokens when they last occurred in it."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._place: int | None = None
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """One more token."""
        self._tokens.append(token)
        grams = [tuple(self._tokens[-n:]) for n in LENGTHS if n <= len(self._tokens)]
        found = (self._after[gram] for gram in grams if gram in self._after)
        self._place = next(found, None)
        self._after.update(dict.fromkeys(grams, len(self._tokens)))

    def guess(self, most: int) -> list[int]:
        """Up to ``most`` tokens that followed then; none where the latest tokens are new."""
        if self._place is None or most <= 0:
            return []
        return self._tokens[self._place : self._place + most]


class LookupRun(Generic[S]):
    """A network that is run on one sequence as its course says, some tokens ahead of it."""

    def __init__(
        self, network: Steps[S], batch: Plan, course: Course, form: Form, guesses: int
    ) -> None:
        bound = "one with prompt_lookup_num_tokens, which is for one sequence at a time"
        require(len(batch.requests) == 1, "requests", bound, len(batch.requests))
        self._network, self._batch, self._course, self._form = network, batch, course, form
        self._guesses = guesses
        [request] = batch.requests
        self._seen = Seen([*_source_tokens(request, network), *request.prompt])
        self._state: S | None = None
        self._move: Move | None = None
        self._length = len(request.prompt)
        self._end = self._length + batch.limits[0]
        self._fed: list[int] = []
        """What followed the last certain token in the last step, and is not chosen yet."""
        self._ahead_TV = torch.empty(0)
        """Logits after each of these."""

    def advance(self) -> bool:
        """Choose the next token; whether another follows."""
        self._move = self._course.advance(self._logits())
        return self._move is not None

    def _logits(self) -> Tensor:
        if self._state is None or self._move is None:
            self._state, logits_RV = prefill(self._network, self._batch, self._form, None)
            return logits_RV
        [token] = self._move.tokens_R.tolist()
        self._seen.add(token)
        self._length += 1
        if self._fed and self._fed[0] == token:
            del self._fed[0]
        else:
            self._step(token, self._state)
        logits_1V, self._ahead_TV = self._ahead_TV[:1], self._ahead_TV[1:]
        return logits_1V

    def _step(self, token: int, state: S) -> None:
        """Take back what was fed in vain, and feed a token and what may follow it."""
        if self._fed:
            state.truncate([self._length - 1])
        self._fed = self._seen.guess(min(self._guesses, self._end - self._length - 1))
        tokens_1T = torch.tensor([[token, *self._fed]], device=self._network.device)
        self._ahead_TV = self._network.step_all(tokens_1T, state)[0]


def _source_tokens(request: Request, network: Steps[S]) -> list[int]:
    """Tokens of the texts attended to, where they are known and the decoder has them too."""
    held = [
        memory
        for item in request.memories
        for memory in (item.memories if isinstance(item, Projection) else (item,))
    ]
    tokens = [token for memory in held for token in memory.source_tokens]
    return tokens if max(tokens, default=0) < network.spec.decoder.vocab_size else []
