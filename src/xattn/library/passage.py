"""A passage: what is found, encoded, read and cited."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from xattn.inputs.table import Table
from xattn.inputs.text import canonical_text
from xattn.memory import digest_of

Scalar = str | int | float | bool
Metadata = Mapping[str, Scalar]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A stretch of a document under one heading and on one page, as a reader of files gives it.

    Readers give sections one after the other, so that no file need be in memory as a whole.
    """

    text: str
    start: int
    """Characters of the document before it. Of a plain text they are the file's own characters."""
    heading: tuple[str, ...] = ()
    """Headings above it, the outermost first."""
    page: int | None = None
    """From 1, where the file has pages."""
    table: Table | None = None
    """The rows of a table, of which ``text`` is empty."""
    first_row: int = 1
    """Number of the table's first row here, within the file."""
    is_code: bool = False
    """Cut at blank lines and definitions, not at sentences."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Some sentences of a document, or some rows of a table."""

    source: str
    """The file, as an absolute path, or the name that a caller gave to a text of theirs."""
    title: str
    """Of the document."""
    heading: tuple[str, ...] = ()
    text: str
    """In Unicode normalisation form C; of a table, what :func:`pieces_of` it add up to."""
    start: int
    end: int
    """Characters ``[start, end)`` of the document's text; of a table, of its rows from 1."""
    page: int | None = None
    table: Table | None = None
    metadata: Metadata = field(default_factory=dict)
    copy: int = 0
    """How many passages before it in the document say the same."""

    @property
    def id(self) -> str:
        """Digest of what it says and of which document: 32 hexadecimal characters.

        Where in the document it stands is no part of it, so that a passage which only moved, since
        something was put in before it, is still the same.
        """
        metadata = sorted(self.metadata.items())
        about = [self.source, self.copy, self.title, self.heading, metadata]
        table = "" if self.table is None else self.table.digest()
        parts = (json.dumps(about), self.text, table)
        return digest_of(*(part.encode("utf-8", "surrogatepass") for part in parts))[:32]


def lead_of(passage: Passage) -> str:
    """Title and headings as a line before the text: what embedders and word search read first."""
    names = dict.fromkeys(name for name in (passage.title, *passage.heading) if name)
    return " — ".join(names) + "\n" if names else ""


def pieces_of(table: Table) -> list[str]:
    """A passage's table as text, a piece for each cell, in Unicode normalisation form C.

    Rows count from 1 in every passage, so that a row more before it leaves its text as it is.
    """
    return [canonical_text(piece) for piece in table.pieces()]
