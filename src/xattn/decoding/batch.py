"""A batch of requests: checked, measured, and run through the decoder for the first time.

Axes: R rows, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from xattn.decoding.request import Request
from xattn.decoding.settings import DEFAULT_NEW_TOKENS, Settings
from xattn.errors import PromptError, require
from xattn.models.network import Attended
from xattn.models.parallel import Parallel
from xattn.spec import Form, ModelSpec


class State(Protocol):
    """What decoding remembers of its rows."""

    def reorder(self, rows: Sequence[int]) -> None:
        """Row j becomes a continuation of old row ``rows[j]``; memories are shared, not copied."""

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget all but the first ``lengths[r]`` tokens of row r."""

    def join(self, other: Any, /) -> None:
        """Append the rows of another state."""


S = TypeVar("S", bound=State)


class Steps(Protocol[S]):
    """What the searches need of a network; :class:`xattn.models.network.Network` has it."""

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    def start(
        self,
        attended: Sequence[Sequence[Attended]],
        /,
        *,
        form: Form = ...,
        most: int | None = ...,
        parallel: Sequence[Parallel] | None = ...,
        adapters: Sequence[str | None] | None = ...,
    ) -> S:
        """A state with a row per request, which attends to these memories and sees ``most`` tokens.

        It may see more, and then takes up to twice the room. ``parallel`` says for each row how a
        decoder-only model reads several memories, ``adapters`` what it is computed with.
        """
        ...

    def step(
        self,
        tokens_RT: Tensor,
        state: S,
        counts_R: Tensor | None = None,
        /,
        *,
        only: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits ``[R, V]`` after the last valid token of each row; ours to overwrite.

        With ``only`` some tokens, -inf for all others.
        """
        ...

    def blend(self, state: S, prompt: Sequence[int], share: float, /) -> object:
        """Make a share of a single row's memories again, with what stands before in sight."""
        ...

    def step_all(self, tokens_RT: Tensor, state: S, /) -> Tensor:
        """Logits ``[R, T, V]`` after every token; ours to overwrite."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of a batch before any token is chosen."""

    requests: tuple[Request, ...]
    limits: tuple[int, ...]
    """New tokens at most, for each request."""
    eos: tuple[int, ...]


def plan(spec: ModelSpec, requests: Sequence[Request], settings: Settings) -> Plan:
    """Check every request. Raises :class:`PromptError` where a prompt is empty or does not fit."""
    require(len(requests) > 0, "requests", "at least one", list(requests))
    return plan_after(spec, requests, [request.offset for request in requests], settings)


def plan_after(
    spec: ModelSpec, requests: Sequence[Request], offsets: Sequence[int], settings: Settings
) -> Plan:
    """The same where so many positions come before each prompt, whatever the memories."""
    limits = []
    for request, offset in zip(requests, offsets, strict=True):
        _check_tokens(request.prompt, spec.decoder.vocab_size)
        before = len(request.prompt) + offset
        limits.append(new_token_limit(before, settings, spec.decoder.position.limit))
    eos = spec.tokens.eos if settings.eos_token_id is None else settings.eos_token_id
    fits = all(0 <= token < spec.decoder.vocab_size for token in eos)
    require(fits, "eos_token_id", f"token ids below {spec.decoder.vocab_size}", eos)
    return Plan(requests=tuple(requests), limits=tuple(limits), eos=tuple(eos))


def new_token_limit(prompt_tokens: int, settings: Settings, positions: int | None) -> int:
    """New tokens at most after a prompt of ``prompt_tokens``, in a decoder with these positions.

    Raises :class:`PromptError` where there is room for none, or for fewer than were asked for.
    """
    if settings.max_new_tokens is not None:
        wanted, asked = settings.max_new_tokens, f"max_new_tokens={settings.max_new_tokens}"
    elif settings.max_length is not None:
        wanted, asked = settings.max_length - prompt_tokens, f"max_length={settings.max_length}"
        if wanted < 1:
            raise PromptError(
                f"the prompt has {prompt_tokens} tokens, which leaves no room for a new one within "
                f"`max_length` ({settings.max_length}); raise it, or set `max_new_tokens`."
            )
    else:
        wanted, asked = DEFAULT_NEW_TOKENS, ""
    if positions is None:
        return wanted
    room = positions - prompt_tokens
    if room < 1:
        raise PromptError(
            f"the prompt has {prompt_tokens} tokens, but the decoder has {positions} positions for "
            f"prompt and new tokens together; give at most {positions - 1}."
        )
    if wanted > room and asked and settings.strict_length:
        raise PromptError(
            f"{asked} after a prompt of {prompt_tokens} tokens needs {prompt_tokens + wanted} "
            f"positions, but the decoder has {positions}; at most {room} new tokens fit."
        )
    return min(wanted, room)


def prefill(
    network: Steps[S], batch: Plan, form: Form, only: Sequence[int] | None
) -> tuple[S, Tensor]:
    """Run all prompts, padded on the right: the state, and the logits ``[R, V]`` after them.

    With ``only`` some tokens, -inf for all others.
    """
    prompts = [request.prompt for request in batch.requests]
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    # What fills is never seen, and any token will do: a checkpoint's pad may be outside the table.
    padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
    tokens_RT = torch.tensor(padded, device=network.device)
    ragged = min(lengths) < longest
    counts_R = torch.tensor(lengths, device=network.device) if ragged else None
    # The last token that a row chooses is not fed.
    most = max(n + limit - 1 for n, limit in zip(lengths, batch.limits, strict=True))
    memories = [request.memories for request in batch.requests]
    ways = [request.parallel for request in batch.requests]
    adapters = [request.adapter for request in batch.requests]
    if any(how.recompute for how in ways):
        state = _blended(network, batch, form, most)
    else:
        state = network.start(memories, form=form, most=most, parallel=ways, adapters=adapters)
    return state, network.step(tokens_RT, state, counts_R, only=only)


def _blended(network: Steps[S], batch: Plan, form: Form, most: int) -> S:
    """The state of rows that have parts of their memories made again, each by itself."""
    whole: S | None = None
    for request in batch.requests:
        how = request.parallel
        state = network.start(
            [request.memories], form=form, most=most, parallel=[how], adapters=[request.adapter]
        )
        if how.recompute:
            network.blend(state, request.prompt, how.recompute)
        if whole is None:
            whole = state
        else:
            whole.join(state)
    assert whole is not None
    return whole


def _check_tokens(prompt: Sequence[int], vocab_size: int) -> None:
    if not prompt:
        raise PromptError(
            "the prompt has 0 tokens; give at least one (an encoder-decoder model starts from its "
            "decoder start token)."
        )
    unknown = [token for token in prompt if not 0 <= token < vocab_size]
    if unknown:
        raise PromptError(
            f"the prompt holds token {unknown[0]}, but the vocabulary has ids 0 to "
            f"{vocab_size - 1}."
        )
