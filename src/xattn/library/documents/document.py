"""A document: where it is from, its title, and its sections as often as they are wanted."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from xattn.library.passage import Section

Kind = Literal["text", "markdown", "html", "code", "pdf", "docx", "csv", "jsonl", "parquet"]


class Content(NamedTuple):
    """What the reader of a format gives."""

    title: str
    sections: Callable[[], Iterator[Section]]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A file that can be read, or a text that a caller has."""

    source: str
    """The file, as an absolute path, or the name that a caller gave."""
    title: str
    kind: Kind
    sections: Callable[[], Iterator[Section]]
    """Reads them from the first on, each time it is called.

    One after the other their texts are the document's text, tables left out. Of plain text,
    Markdown and source code that is what the file holds, decoded, without a byte order mark; of the
    other formats what its reader extracts. Raises :class:`SourceError` where the file turns out to
    be damaged, or to say nothing.
    """


def document_of(text: str, source: str, title: str | None = None) -> Document:
    """A text as a document, under the name ``source``."""
    return Document(
        source=source,
        title=source if title is None else title,
        kind="text",
        sections=lambda: iter([Section(text=text, start=0)]),
    )


class Headings:
    """The headings above a place, as they come."""

    def __init__(self) -> None:
        self._open: list[tuple[int, str]] = []

    def add(self, level: int, heading: str) -> None:
        """A heading, which ends those of its ``level`` and below; 1 is the outermost."""
        self.leave(level)
        self._open.append((level, heading))

    def leave(self, level: int) -> None:
        """End the headings of this level and of those below."""
        self._open = [(above, name) for above, name in self._open if above < level]

    @property
    def path(self) -> tuple[str, ...]:
        """The outermost first."""
        return tuple(name for _, name in self._open)


def laid_out(sections: Iterable[Section]) -> Iterator[Section]:
    """Sections with their places, for formats whose text is what their reader extracts.

    Texts follow each other; rows are counted through the document.
    """
    start, row = 0, 1
    for section in sections:
        yield replace(section, start=start, first_row=row)
        start += len(section.text)
        row += len(section.table.rows) if section.table is not None else 0
