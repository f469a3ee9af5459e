"""What a user gives as a prompt, as decoder tokens."""

from collections.abc import Mapping, Sequence

from xattn.errors import PromptError, UsageError, require
from xattn.inputs.text import Tokenizer, token_ids_of

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text, decoder token ids, or chat messages (``role`` and ``content``)."""


def target_prefix(prompt: Prompt, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    """Tokens that an encoder-decoder's answer begins with, from text or token ids.

    Raises :class:`PromptError` for a prompt of no tokens, :class:`UsageError` for anything else
    that is not one.
    """
    ids = token_ids_of(prompt)
    if ids is None and isinstance(prompt, str):
        ids = _need(tokenizer).encode_plain(prompt).ids
    if ids is None:
        raise _not_a_prompt(prompt, "text or token ids for an encoder-decoder")
    if not ids:
        raise PromptError("the prompt has 0 tokens; leave it out, or give at least 1.")
    return checked(ids, vocab_size)


def whole_prompt(prompt: Prompt | None, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    """Tokens that a decoder-only model continues, from text, token ids or chat messages.

    Raises as :func:`target_prefix` does.
    """
    if prompt is None:
        raise PromptError("`prompt` must be given for a decoder-only model.")
    ids = token_ids_of(prompt)
    if ids is None and isinstance(prompt, str):
        ids = _need(tokenizer).encode(prompt).ids if prompt else []
    if ids is None:
        side, messages = _need(tokenizer), [dict(message) for message in _messages(prompt)]
        ids = side.encode_plain(side.chat_text(messages)).ids
    if not ids:
        raise PromptError("the prompt has 0 tokens; a decoder-only model needs at least 1.")
    return checked(ids, vocab_size)


def checked(ids: list[int], vocab_size: int) -> list[int]:
    """``ids`` as they are; :class:`UsageError` where one is not of the decoder's vocabulary."""
    strange = next((i for i in ids if not 0 <= i < vocab_size), None)
    require(strange is None, "prompt", f"token ids from 0 to {vocab_size - 1}", strange)
    return ids


def _messages(prompt: object) -> Sequence[Mapping[str, str]]:
    if isinstance(prompt, Sequence) and all(isinstance(item, Mapping) for item in prompt):
        return prompt
    raise _not_a_prompt(prompt, "text, token ids, or chat messages (dicts with role and content)")


def _not_a_prompt(value: object, bound: str) -> UsageError:
    several = isinstance(value, Sequence) and all(isinstance(item, str) for item in value)
    return UsageError(
        f"`prompt` must be {bound}, but is {type(value).__name__} instead"
        + ("; several prompts are what generate_batch takes." if several else ".")
    )


def _need(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise UsageError("this checkpoint has no tokenizer; give the prompt as token ids.")
    return tokenizer
