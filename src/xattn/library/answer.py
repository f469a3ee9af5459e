"""An answer: what was said, what each sentence of it rests on, and where that stands."""

from dataclasses import dataclass
from typing import Literal

from xattn.generation import Generation
from xattn.library.passage import Passage

Standing = Literal["as it was", "changed", "gone", "unknown"]
"""How a passage's file is now, beside how it was when it was indexed."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a cited table: the row, from 1, and the column's name."""

    row: int
    column: str


@dataclass(frozen=True, kw_only=True)
class Citation:
    """A span of a file that a sentence of the answer rests on."""

    number: int
    """From 1, as the answer's footnotes count: the best supported first."""
    passage: Passage
    start: int
    end: int
    """Characters ``[start, end)`` of the document; of a table, rows from 1."""
    quote: str
    """What stands there, as it was indexed."""
    support: float
    """Of all that the sentence's tokens read of passages, the share that they read here."""
    cell: Cell | None = None
    standing: Standing = "unknown"

    @property
    def place(self) -> str:
        """The file and where in it, for people."""
        where = f"{self.passage.source}"
        if self.passage.page is not None:
            where += f", page {self.passage.page}"
        if self.cell is not None:
            return f"{where}, row {self.cell.row}, column {self.cell.column}"
        return f"{where}, characters {self.start} to {self.end}"


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence of the answer, ``[start, end)`` of its text."""

    start: int
    end: int
    support: float
    """What its best citation has; of a table, the row that it is in."""
    is_supported: bool
    """Whether that is as much as sentences have that are right."""
    citations: tuple[int, ...]
    """Numbers of those that it rests on, the best first."""


@dataclass(frozen=True, kw_only=True)
class Glance:
    """What a token of the answer read of a token of a passage."""

    passage: int
    """Its place among the passages that were read."""
    start: int
    end: int
    """Characters of the passage's text."""
    share: float
    """Of all that was read for the token."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token of the answer as text, and where its choice looked, the most read first."""

    text: str
    glances: tuple[Glance, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a library answers."""

    question: str
    text: str
    tokens: tuple[Token, ...]
    sentences: tuple[Sentence, ...]
    citations: tuple[Citation, ...]
    """Sorted by support, the best first; their numbers are those of the footnotes."""
    passages: tuple[Passage, ...]
    """What was read, the most relevant first."""
    generation: Generation
    reader: str
    encoder_passes: int
    """Passages that had to be encoded for it; 0 where all lay in the store."""

    @property
    def is_supported(self) -> bool:
        """Whether every sentence rests on something."""
        return all(sentence.is_supported for sentence in self.sentences)

    def with_footnotes(self) -> str:
        """The text with ``[1]`` behind what citation 1 supports, ``[?]`` where nothing does."""
        text, at = "", 0
        for sentence in self.sentences:
            end = sentence.start + len(self.text[sentence.start : sentence.end].rstrip())
            marks = "".join(f"[{number}]" for number in sentence.citations)
            text += self.text[at:end] + (marks if sentence.is_supported else "[?]")
            at = end
        return text + self.text[at:]

    def __str__(self) -> str:
        notes = [f'[{c.number}] "{" ".join(c.quote.split())}" ({c.place})' for c in self.citations]
        return "\n".join([self.with_footnotes(), *notes])
