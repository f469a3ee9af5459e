"""What may come next: constraints on the logits, before any token is chosen.

They work in place on logits that nobody else reads, and in the order of transformers'
``_get_logits_processor``. Those that are switched off are not built, and those that cannot act at a
step return at once.

Axes: R rows, V vocabulary, T tokens, N length of an n-gram.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from xattn.decoding.history import History
from xattn.decoding.settings import Settings
from xattn.errors import UsageError, XattnError, require

BANNED = float("-inf")


class Processor(Protocol):
    """A constraint of the caller's own, applied after the built-in ones at every step.

    ``tokens[r]`` are the new tokens of row r so far, the prompt excluded. Rows leave the batch, and
    beams are re-ordered, so what it does must follow from ``tokens`` alone. It may change
    ``logits_RV`` in place, and returns the logits to use. They are log-probabilities up to a
    constant for each row, -inf where another constraint has banned a token.
    """

    def __call__(self, tokens: Sequence[Sequence[int]], logits_RV: Tensor) -> Tensor:
        """Logits to choose from."""
        ...


@dataclass
class Rows:
    """What constraints know about the rows of one step; all have as many new tokens."""

    step: int
    """New tokens so far."""
    prompt_lengths: Sequence[int]
    limits: Sequence[int]
    """New tokens at most, for each row."""
    requests: Sequence[int]
    """The request that each row is of."""
    history: History | None
    """None unless a constraint reads it."""
    new_tokens: Callable[[], Sequence[Sequence[int]]]
    """New tokens of each row, for the caller's processors."""


Constraint = Callable[[Tensor, Rows], Tensor]

FEW_ALLOWED = 8
"""Logits are computed of allowed tokens alone where they are at most one in so many."""


@dataclass(frozen=True)
class RepetitionPenalty:
    """Tokens that occurred are made less likely: logits over ``penalty``, times it if negative."""

    penalty: float
    whole: bool = True
    """Counts the prompt too."""

    def __call__(self, logits_RV: Tensor, rows: Rows) -> Tensor:
        """Penalise in place."""
        seen_RT = _seen(rows, self.whole)
        if seen_RT.shape[1] == 0:
            return logits_RV
        # Fillers of short prompts give way to the row's last token, which is penalised anyway.
        filled = seen_RT >= logits_RV.shape[1]
        seen_RT = torch.where(filled, seen_RT[:, -1:], seen_RT)
        score_RT = logits_RV.gather(1, seen_RT)
        score_RT = torch.where(score_RT < 0, score_RT * self.penalty, score_RT / self.penalty)
        return logits_RV.scatter_(1, seen_RT, score_RT)


@dataclass(frozen=True)
class NoRepeatNGram:
    """Bans every token that would complete an n-gram for the second time."""

    size: int
    whole: bool = True

    def __call__(self, logits_RV: Tensor, rows: Rows) -> Tensor:
        """Ban in place."""
        seen_RT = _seen(rows, self.whole)
        T = seen_RT.shape[1]
        if self.size > T:
            return logits_RV
        windows_RTN = seen_RT.unfold(1, self.size, 1)
        begun_RN = seen_RT[:, T + 1 - self.size :]
        last_RT = windows_RTN[..., -1]
        repeats_RT = (windows_RTN[..., :-1] == begun_RN[:, None]).all(-1)
        # A window of fillers only could match where n is 1.
        repeats_RT &= last_RT < logits_RV.shape[1]
        row, column = repeats_RT.nonzero(as_tuple=True)
        logits_RV[row, last_RT[row, column]] = BANNED
        return logits_RV


class BadWords:
    """Bans sequences of tokens: their last token, where the others have just been generated."""

    def __init__(self, words: Sequence[tuple[int, ...]], device: torch.device) -> None:
        self._single = Suppress([word[0] for word in words if len(word) == 1], device)
        self._longer = [(torch.tensor(w[:-1], device=device), w[-1]) for w in words if len(w) > 1]
        self.reads_history = bool(self._longer)

    def __call__(self, logits_RV: Tensor, rows: Rows) -> Tensor:
        """Ban in place."""
        self._single(logits_RV, rows)
        for begun_N, last in self._longer:
            seen_RT = _seen(rows, whole=True)
            if len(begun_N) <= seen_RT.shape[1]:
                matches_R = (seen_RT[:, -len(begun_N) :] == begun_N).all(-1)
                logits_RV[matches_R, last] = BANNED
        return logits_RV


class MinLength:
    """No end token before ``min_new_tokens`` new tokens and ``min_length`` tokens in all."""

    def __init__(self, settings: Settings, eos: Sequence[int], device: torch.device) -> None:
        self._new, self._all = settings.min_new_tokens, settings.min_length
        self._eos = torch.tensor(eos, device=device)

    def __call__(self, logits_RV: Tensor, rows: Rows) -> Tensor:
        """Ban the end tokens in place."""
        if rows.step < self._new:
            return logits_RV.index_fill_(1, self._eos, BANNED)
        if rows.step + min(rows.prompt_lengths) < self._all:
            for row, length in enumerate(rows.prompt_lengths):
                if length + rows.step < self._all:
                    logits_RV[row, self._eos] = BANNED
        return logits_RV


class PrefixAllowed:
    """Leaves what the caller's function allows after each row's tokens."""

    def __init__(
        self,
        function: Callable[[int, Tensor], Sequence[int]],
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
    ) -> None:
        self._function, self._prompts, self._vocab_size = function, prompts, vocab_size
        self._asked: tuple[int, list[list[int]]] | None = None

    def __call__(self, logits_RV: Tensor, rows: Rows) -> Tensor:
        """Ban all others."""
        kept_RV = torch.full_like(logits_RV, BANNED)
        for row, allowed in enumerate(self._of_rows(rows)):
            kept_RV[row, allowed] = logits_RV[row, allowed]
        self._asked = None
        return kept_RV

    def allowed(self, rows: Rows) -> set[int]:
        """What may come next in any row."""
        return set().union(*self._of_rows(rows))

    def _of_rows(self, rows: Rows) -> list[list[int]]:
        """What the function says of each row; it is asked once a step."""
        if self._asked is None or self._asked[0] != rows.step:
            new = rows.new_tokens()
            pairs = zip(rows.requests, new, strict=True)
            self._asked = (rows.step, [self._of_row(*pair) for pair in pairs])
        return self._asked[1]

    def _of_row(self, request: int, new: Sequence[int]) -> list[int]:
        tokens = [*self._prompts[request], *new]
        allowed = list(self._function(request, torch.tensor(tokens)))
        about = f"what prefix_allowed_tokens_fn returns for request {request} after {tokens}"
        fits = bool(allowed) and all(
            0 <= token < self._vocab_size and int(token) == token for token in allowed
        )
        bound = f"at least one token id, each from 0 to {self._vocab_size - 1}"
        require(fits, about, bound, allowed)
        return [int(token) for token in allowed]


@dataclass(frozen=True)
class ForcedFirst:
    """The first new token after a prompt of one token (a target language, in mBART and NLLB)."""

    token: int

    def __call__(self, logits_RV: Tensor, rows: Rows) -> Tensor:
        """Leave one token, in place."""
        if rows.step == 0:
            _leave(
                logits_RV, [r for r, n in enumerate(rows.prompt_lengths) if n == 1], [self.token]
            )
        return logits_RV

    def allowed(self, rows: Rows) -> set[int] | None:
        """The token, where it is forced in every row."""
        forced = rows.step == 0 and all(length == 1 for length in rows.prompt_lengths)
        return {self.token} if forced else None


@dataclass(frozen=True)
class ForcedLast:
    """The last token that the length allows."""

    tokens: tuple[int, ...]

    def __call__(self, logits_RV: Tensor, rows: Rows) -> Tensor:
        """Leave these tokens, in place."""
        if rows.step + 1 >= min(rows.limits):
            last = [r for r, limit in enumerate(rows.limits) if rows.step == limit - 1]
            _leave(logits_RV, last, self.tokens)
        return logits_RV

    def allowed(self, rows: Rows) -> set[int] | None:
        """The tokens, where it is the last place of every row."""
        return set(self.tokens) if rows.step + 1 == min(rows.limits) == max(rows.limits) else None


class Suppress:
    """Tokens that never occur."""

    def __init__(self, tokens: Sequence[int], device: torch.device) -> None:
        self._tokens = torch.tensor(tokens, device=device, dtype=torch.long)

    def __call__(self, logits_RV: Tensor, rows: Rows) -> Tensor:
        """Ban in place."""
        return logits_RV.index_fill_(1, self._tokens, BANNED)


class SuppressFirst:
    """Tokens that do not come first; where the first token is forced, they do not come second."""

    def __init__(self, tokens: Sequence[int], forced_first: bool, device: torch.device) -> None:
        self._tokens = torch.tensor(tokens, device=device)
        self._forced = forced_first

    def __call__(self, logits_RV: Tensor, rows: Rows) -> Tensor:
        """Ban in place."""
        if rows.step > 1:
            return logits_RV
        for row, length in enumerate(rows.prompt_lengths):
            if rows.step == (1 if self._forced and length == 1 else 0):
                logits_RV[row, self._tokens] = BANNED
        return logits_RV


Restriction = PrefixAllowed | ForcedFirst | ForcedLast
"""Constraints that may leave few tokens."""


class Constraints:
    """All constraints of one call, those of the settings first."""

    def __init__(
        self,
        settings: Settings,
        eos: Sequence[int],
        vocab_size: int,
        device: torch.device,
        processors: Sequence[Processor] = (),
        prompts: Sequence[Sequence[int]] = (),
    ) -> None:
        self._built_in = list(_built_in(settings, eos, vocab_size, device, prompts))
        self._processors, self._vocab_size = list(processors), vocab_size
        self.reads_history = any(
            isinstance(c, RepetitionPenalty | NoRepeatNGram) or getattr(c, "reads_history", False)
            for c in self._built_in
        )

    @property
    def any(self) -> bool:
        """Whether there is anything that could change a logit."""
        return bool(self._built_in or self._processors)

    def allowed(self, rows: Rows) -> list[int] | None:
        """The only tokens whose logits will be read of ``rows``; None where they are not few.

        A token that is forced replaces what was allowed before, as in the logits.
        """
        found = [c.allowed(rows) for c in self._built_in if isinstance(c, Restriction)]
        last = next((ids for ids in reversed(found) if ids is not None), None)
        if last is None or len(last) * FEW_ALLOWED > self._vocab_size:
            return None
        return sorted(last)

    def __call__(self, logits_RV: Tensor, rows: Rows) -> Tensor:
        """Constrained logits; ``logits_RV`` may be overwritten."""
        for constraint in self._built_in:
            logits_RV = constraint(logits_RV, rows)
        if self._processors:
            tokens = rows.new_tokens()
            for processor in self._processors:
                logits_RV = processor(tokens, logits_RV)
        return logits_RV


def check_choice(logprob: float, logits_RV: Tensor, step: int) -> None:
    """Raise unless the log-probability of a chosen token is a number.

    A NaN or an infinity anywhere in a row makes it NaN, so that looking at it costs nothing. Raises
    :class:`UsageError` where the constraints have banned every token, else :class:`XattnError`.
    """
    if math.isfinite(logprob):
        return
    if bool((logits_RV == BANNED).all(-1).any()):
        raise UsageError(
            f"the constraints leave no token to choose as new token {step + 1}; allow more of them "
            "(suppress_tokens, bad_words_ids, no_repeat_ngram_size, processors)."
        )
    raise XattnError(
        f"the model's logits are not finite at new token {step + 1}; if it runs in float16, whose "
        "range some models exceed, load it with dtype='bfloat16' or 'float32'."
    )


def _built_in(
    settings: Settings,
    eos: Sequence[int],
    vocab_size: int,
    device: torch.device,
    prompts: Sequence[Sequence[int]],
) -> list[Constraint]:
    for name in ("suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"):
        _require_tokens(name, getattr(settings, name) or (), vocab_size)
    for word in settings.bad_words_ids:
        _require_tokens("bad_words_ids", word, vocab_size)
    active: list[Constraint] = []
    if settings.repetition_penalty != 1.0:
        active.append(RepetitionPenalty(settings.repetition_penalty, settings.penalize_prompt))
    if settings.no_repeat_ngram_size > 0:
        active.append(NoRepeatNGram(settings.no_repeat_ngram_size, settings.penalize_prompt))
    words = [w for w in settings.bad_words_ids if not (len(w) == 1 and w[0] in eos)]
    if words:
        active.append(BadWords(words, device))
    if eos and (settings.min_new_tokens or settings.min_length):
        active.append(MinLength(settings, eos, device))
    if settings.prefix_allowed_tokens_fn is not None:
        active.append(PrefixAllowed(settings.prefix_allowed_tokens_fn, prompts, vocab_size))
    first, last = settings.forced_bos_token_id, settings.forced_eos_token_id
    if first is not None:
        require(first in range(vocab_size), "forced_bos_token_id", f"below {vocab_size}", first)
        active.append(ForcedFirst(first))
    if last is not None:
        require(bool(last), "forced_eos_token_id", "at least one token id", last)
        active.append(ForcedLast(last))
    if settings.suppress_tokens:
        active.append(Suppress(settings.suppress_tokens, device))
    if settings.begin_suppress_tokens:
        active.append(SuppressFirst(settings.begin_suppress_tokens, first is not None, device))
    return active


def _require_tokens(name: str, tokens: Sequence[int], vocab_size: int) -> None:
    strange = next((token for token in tokens if not 0 <= token < vocab_size), None)
    require(strange is None, name, f"token ids from 0 to {vocab_size - 1}", strange)


def _seen(rows: Rows, whole: bool) -> Tensor:
    assert rows.history is not None
    return rows.history.tokens_RT if whole else rows.history.new_RT


def _leave(logits_RV: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> None:
    for row in rows:
        logits_RV[row] = BANNED
        logits_RV[row, list(tokens)] = 0.0
