"""What all readers have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from xattn.library.passage import Passage
from xattn.memory import Memory
from xattn.model import Model
from xattn.models.encode import Prepared
from xattn.models.parallel import Parallel

Search = Callable[[str, int], Sequence[Passage]]
"""The so many passages for a question, the most relevant first."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a passage's text is among the memories that a request reads."""

    memory: int
    start: int
    """Characters of that memory's source before it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question about passages as a request to the model."""

    memories: tuple[Memory, ...]
    prompt: tuple[int, ...] | None
    """Decoder tokens after the memories; None for the model's own start."""
    parallel: Parallel | None
    places: tuple[Place, ...]
    """One for each passage, in the order that they were given."""


class Reader(Protocol):
    """A way of reading."""

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    @property
    def model(self) -> Model:
        """What reads."""
        ...

    def sources(self, passages: Sequence[Passage]) -> list[Prepared]:
        """What is encoded of passages before any question is known, with its keys.

        Raises :class:`~xattn.InvalidSourceError` for a passage that is too long for the model.
        """
        ...

    def ask(self, question: str, passages: Sequence[Passage]) -> Asked:
        """The request for an answer from these passages, the most relevant first.

        Memories are taken from the model's store, and made where they are missing.
        """
        ...
