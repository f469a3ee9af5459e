"""Databases that keep passages, find them by vector and by words, and give them back."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from xattn.library.embedder import Vectors
from xattn.library.filters import Condition, Field
from xattn.library.rows import Row

LANGUAGES = (
    *("arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek"),
    *("hungarian", "italian", "norwegian", "portuguese", "romanian", "russian", "spanish"),
    *("swedish", "turkish"),
)
"""Whose words every database here knows the stems of."""
MOST_AT_ONCE = 1000
"""Ids in one call, at most."""


class PassageIndex(Protocol):
    """One database. Each call is done as a whole or not at all, also where the process dies.

    Searches see what is there when they are asked, by whichever process it was written. Calls raise
    :class:`~xattn.errors.LibraryError` where the database does not answer.
    """

    def add_fields(self, fields: Sequence[Field]) -> None:
        """Let rows have these fields, those that they may have already among them."""

    def add(self, rows: Sequence[Row], vectors: Vectors) -> None:
        """Add rows that are not there, with their vectors ``[N, D]`` of length 1."""

    def remove(self, ids: Sequence[str]) -> None:
        """Remove those of ``ids`` that are there."""

    def present(self, ids: Sequence[str]) -> set[str]:
        """Which of ``ids`` are there."""

    def rows(self, ids: Sequence[str]) -> list[Row]:
        """Those of ``ids`` that are there, without their fields."""

    def search_vectors(self, vector: Vectors, k: int, where: Sequence[Condition]) -> list[str]:
        """The ``k`` ids of the largest cosine, the best first."""

    def search_words(self, text: str, k: int, where: Sequence[Condition]) -> list[str]:
        """Up to ``k`` ids with words of ``text``, by BM25, the best first."""

    def count(self) -> int:
        """Rows that are there."""

    def ids(self) -> Iterator[list[str]]:
        """All ids, some at a time."""

    def tidy(self, *, alone: bool) -> None:
        """Make searches fast and the disk small again; ``alone`` if nobody else reads."""

    def drop(self) -> None:
        """Remove all of it, for good."""

    def close(self) -> None:
        """Let go of the database."""
