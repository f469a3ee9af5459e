"""A document: where it is from, its title, and its sections as often as they are wanted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
