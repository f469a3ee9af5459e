"""Examples as tokens, and batches of about as many tokens each.

Neighbours in length go together, in an order that a seed and an epoch decide alone: a run that goes
on after a crash has the batches that it would have had.

Axes: R rows, T tokens.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from xattn.errors import InvalidSourceError, UsageError
from xattn.memory import Memory, digest_of
from xattn.model import Model
from xattn.models.encode import Prepared
from xattn.models.lent import HiddenStates, Several
from xattn.tuning.examples import Example

IGNORED = -100
PREPARED_AT_ONCE = 512
POOL = 64
"""Batches whose examples are sorted by length together."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """An example as a model reads it."""

    sources: tuple[Prepared, ...]
    tokens: tuple[int, ...]
    """What the decoder is fed."""
    learnt: int
    """How many of the last ones, with the end, it is to say."""
    end: int
    """The token after all of them."""

    @property
    def length(self) -> int:
        """Positions and tokens."""
        return sum(len(source.spans) for source in self.sources) + len(self.tokens)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Items that go through the decoder together."""

    items: tuple[Item, ...]

    @property
    def tokens_RT(self) -> Tensor:
        """What is fed, padded on the right."""
        width = max(len(item.tokens) for item in self.items)
        return torch.tensor([[*i.tokens, *[i.end] * (width - len(i.tokens))] for i in self.items])

    @property
    def targets_RT(self) -> Tensor:
        """What is to come after each, :data:`IGNORED` where nothing is learnt."""
        width = max(len(item.tokens) for item in self.items)
        rows = []
        for item in self.items:
            after = [*item.tokens[1:], item.end]
            silent = len(after) - item.learnt
            rows.append(
                [IGNORED] * silent + after[silent:] + [IGNORED] * (width - len(item.tokens))
            )
        return torch.tensor(rows)

    @property
    def learnt(self) -> int:
        """Tokens that count."""
        return sum(item.learnt for item in self.items)


@dataclass(frozen=True, kw_only=True)
class Items:
    """What became of the examples of a file."""

    items: tuple[Item, ...]
    left_out: int
    """Longer than was allowed."""


def prepare(
    model: Model, examples: Sequence[Example], *, most_source: int, most_target: int
) -> Items:
    """Examples as ``model`` reads them; those beyond the bounds are left out.

    Raises :class:`UsageError` where all are, and as :func:`prepared` does.
    """
    made = prepared(model, examples, most_source=most_source, most_target=most_target)
    found = tuple(item for item in made if item is not None)
    if not found:
        raise UsageError(
            f"all {len(examples)} examples are longer than `most_source` ({most_source}) or "
            f"`most_target` ({most_target})."
        )
    return Items(items=found, left_out=len(examples) - len(found))


def prepared(
    model: Model, examples: Sequence[Example], *, most_source: int, most_target: int
) -> list[Item | None]:
    """Each example as ``model`` reads it; None for one that is beyond the bounds.

    Raises :class:`UsageError` for a model that names no tokens to begin or end with, or does not
    read such sources.
    """
    ends = model.spec.tokens.eos
    if not ends:
        raise UsageError(f"{model.name} names no end of text, and so cannot be trained on one.")
    found: list[Item | None] = []
    for first in range(0, len(examples), PREPARED_AT_ONCE):
        some = examples[first : first + PREPARED_AT_ONCE]
        for example, sources in zip(some, _sources(model, some), strict=True):
            target = model.tokenizer.encode_plain(example.target).ids
            tokens = (*before(model, example), *target)
            fits = sources is not None and sum(len(s.spans) for s in sources) <= most_source
            if sources is None or not fits or len(tokens) >= most_target:
                found.append(None)
                continue
            item = Item(sources=sources, tokens=tokens, learnt=len(target) + 1, end=ends[0])
            found.append(item)
    return found


def _sources(model: Model, examples: Sequence[Example]) -> list[tuple[Prepared, ...] | None]:
    """The sources of each; None where one is longer than the encoder reads, or has no tokens."""
    try:
        # Together: a look at the encoder's weights, which names them, costs as much as all else.
        made = iter(model.prepare_batch([one for e in examples for one in e.sources]))
        return [tuple(next(made) for _ in example.sources) for example in examples]
    except InvalidSourceError:
        if len(examples) == 1:
            return [None]
        half = len(examples) // 2
        return [*_sources(model, examples[:half]), *_sources(model, examples[half:])]


def before(model: Model, example: Example) -> list[int]:
    """What the decoder reads before the target: a prompt, or what begins any text."""
    tokens = model.spec.tokens
    if model.spec.encoder is None:
        if example.prompt is not None:
            return model.tokenizer.encode(example.prompt).ids
        return [tokens.eos[0] if tokens.bos is None else tokens.bos]
    if tokens.decoder_start is None:
        raise UsageError(f"{model.name} names no decoder start token, and so cannot be trained.")
    prefix = [] if example.prompt is None else model.tokenizer.encode_plain(example.prompt).ids
    return [tokens.decoder_start, *prefix]


def digest_of_items(items: Iterable[Item]) -> str:
    """Of their sources' keys and their tokens."""
    parts = (
        f"{[s.key.digest for s in item.sources]} {item.tokens} {item.learnt} {item.end}".encode()
        for item in items
    )
    return digest_of(*parts)


class HasLength(Protocol):
    """What batches are made of."""

    @property
    def length(self) -> int:
        """Positions and tokens."""


T = TypeVar("T", bound=HasLength)


def batches(
    items: Sequence[T], most_tokens: int, seed: int, epoch: int | None = None
) -> Iterator[tuple[T, ...]]:
    """All items in batches of at most ``most_tokens``, padding counted; one alone may have more.

    With an ``epoch`` they are shuffled; without, they are in the order of their lengths.
    """
    places = list(range(len(items)))
    if epoch is None:
        yield from _cut(sorted((items[p] for p in places), key=lambda i: i.length), most_tokens)
        return
    draw = random.Random(f"{seed} {epoch}")
    draw.shuffle(places)
    mean = sum(item.length for item in items) / len(items)
    pool = max(1, round(POOL * most_tokens / mean))
    for first in range(0, len(places), pool):
        some = sorted((items[p] for p in places[first : first + pool]), key=lambda i: i.length)
        of_pool = list(_cut(some, most_tokens))
        draw.shuffle(of_pool)
        yield from of_pool


def _cut(items: Sequence[T], most_tokens: int) -> Iterator[tuple[T, ...]]:
    held: list[T] = []
    longest = 0
    for item in items:
        longer = max(longest, item.length)
        if held and longer * (len(held) + 1) > most_tokens:
            yield tuple(held)
            held, longer = [], item.length
        held.append(item)
        longest = longer
    if held:
        yield tuple(held)


def encoder_is_frozen(model: Model) -> bool:
    """Whether no weight that makes memories asks for gradients."""
    maker: Iterable[Tensor] = ()
    if isinstance(model.sources, Several):
        itself = [one for one in model.sources.lent.values() if isinstance(one, HiddenStates)]
        maker = [weight for one in itself for weight in one.made_of.parameters()]
    elif model.network.encoder is not None:
        maker = model.network.encoder.parameters()
    return not any(weight.requires_grad for weight in maker)


def memories_of(model: Model, batch: Batch, *, frozen: bool) -> list[list[Memory]]:
    """The memories that each item reads: from the store, or with gradients of a model's encoder.

    A graft's own hidden states are made anew while the model learns, and have no gradients.
    """
    prepared = [source for item in batch.items for source in item.sources]
    if frozen:
        made = model.remembered(prepared)
    elif isinstance(model.sources, Several):
        made = model.encode_prepared(prepared)
    else:
        made = _differentiable(model, prepared)
    found = iter(made)
    return [[next(found) for _ in item.sources] for item in batch.items]


def _differentiable(model: Model, prepared: Sequence[Prepared]) -> list[Memory]:
    """Memories whose states remember how they were made."""
    rows = [item.inputs for item in prepared]
    texts = [row for row in rows if isinstance(row, list)]
    if len(texts) != len(rows):
        raise UsageError("an encoder of recordings is trained frozen only: method 'decoder'.")
    states = model.network.states_of_tokens(texts)
    return [item.memory(one) for item, one in zip(prepared, states, strict=True)]
