"""What a model learns to do, and how wrong it is: to say a text, or to prefer one to another."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from xattn.memory import Memory
from xattn.model import Model
from xattn.tuning.batches import Batch, HasLength, Item, digest_of_items, prepare
from xattn.tuning.examples import Example, read_examples, texts_of
from xattn.tuning.recipe import Data
from xattn.tuning.teacher import Teacher

T = TypeVar("T", bound=HasLength)
Paths = str | Sequence[str]
Remember = Callable[[Batch], list[list[Memory]]]
"""The memories of a batch."""


class Lost:
    """A loss that is still a sum, and what else was seen on the way, as sums too."""

    def __init__(self, loss: Tensor, seen: Mapping[str, Tensor] | None = None) -> None:
        self.loss, self.seen = loss, dict(seen or {})


class Objective(Protocol[T]):
    """Items of one kind, and the loss of some of them."""

    @property
    def sees(self) -> tuple[str, ...]:
        """Names of what is seen beside the loss."""

    def read(self, paths: Paths, base: Path, limit: int | None) -> Sequence[Any]:
        """The examples of files; raises :class:`UsageError` where one is none."""

    def texts(self, examples: Sequence[Any]) -> Sequence[str]:
        """All texts in them."""

    def items(self, model: Model, examples: Sequence[Any], data: Data) -> Sequence[T]:
        """Examples as a model reads them, without those that are too long."""

    def digest(self, items: Sequence[T]) -> str:
        """Of all that is learnt from them."""

    def weight(self, items: Sequence[T]) -> int:
        """How many losses the loss of these is a sum of."""

    def loss(self, teacher: Teacher, items: Sequence[T], remember: Remember) -> Lost:
        """That sum. ``teacher`` may be wrapped, and is called for all that has gradients."""


class Continuations:
    """To say a target: cross-entropy of each of its tokens."""

    sees: tuple[str, ...] = ()

    def read(self, paths: Paths, base: Path, limit: int | None) -> list[Example]:
        """See :mod:`xattn.tuning.examples`."""
        return read_examples(paths, base, limit)

    def texts(self, examples: Sequence[Example]) -> list[str]:
        """Sources, prompts and targets."""
        return list(texts_of(examples))

    def items(self, model: Model, examples: Sequence[Example], data: Data) -> Sequence[Item]:
        """One for each example."""
        found = prepare(model, examples, most_source=data.most_source, most_target=data.most_target)
        return found.items

    def digest(self, items: Sequence[Item]) -> str:
        """Of sources and tokens."""
        return digest_of_items(items)

    def weight(self, items: Sequence[Item]) -> int:
        """Tokens that are learnt."""
        return sum(item.learnt for item in items)

    def loss(self, teacher: Teacher, items: Sequence[Item], remember: Remember) -> Lost:
        """The sum over these tokens."""
        batch = Batch(items=tuple(items))
        return Lost(teacher(remember(batch), batch.tokens_RT, batch.targets_RT))
