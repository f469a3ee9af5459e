"""Files -> documents: which reader a file is for, and what is said of those that none can read."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from xattn.errors import InvalidSourceError
from xattn.library.documents.code import read_code
from xattn.library.documents.document import Content, Document, Kind
from xattn.library.documents.docx import read_docx
from xattn.library.documents.files import reading, size_of, unreadable
from xattn.library.documents.html import read_html
from xattn.library.documents.kinds import kind_of, require_kind
from xattn.library.documents.markdown import read_markdown
from xattn.library.documents.pdf import read_pdf
from xattn.library.documents.rows import read_csv, read_jsonl, read_parquet
from xattn.library.documents.text import read_text
from xattn.library.passage import Section

READERS: Mapping[Kind, Callable[[Path], Content]] = {
    "text": read_text,
    "markdown": read_markdown,
    "html": read_html,
    "code": read_code,
    "pdf": read_pdf,
    "docx": read_docx,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
}


def read_document(path: str | os.PathLike[str]) -> Document:
    """The document in a file; its sections are read when they are asked for.

    What it is, its name's suffix says, and its first bytes must agree. Raises
    :class:`SourceNotFoundError`; :class:`UnreadableSourceError` (not what its name says, damaged,
    encrypted, no text); :class:`InvalidSourceError` (empty, or too large for its kind);
    :class:`MissingExtraError`.
    """
    file = Path(os.path.abspath(Path(path).expanduser()))
    if not has_name(file):
        raise unreadable(file, "has a name that is not UTF-8; rename it")
    with reading(file):
        if size_of(file) == 0:
            raise InvalidSourceError(f"{str(file)!r} is empty; leave it out.")
        kind = kind_of(file)
        require_kind(file, kind)
        content = READERS[kind](file)
    return Document(
        source=str(file),
        title=content.title,
        kind=kind,
        sections=lambda: _checked(file, content),
    )


def has_name(file: Path) -> bool:
    """Whether what the file is called is text."""
    return str(file).isascii() or shown_name(file) == str(file)


def shown_name(file: Path) -> str:
    """What it is called, other bytes escaped."""
    return os.fsencode(file).decode(errors="backslashreplace")


def _checked(path: Path, content: Content) -> Iterator[Section]:
    """The sections; an error names the file, and there is one if they say nothing."""
    says = False
    with reading(path):
        for section in content.sections():
            says = says or section.table is not None or not (section.text.isspace())
            yield section
    if not says:
        pages = path.suffix.lower() == ".pdf"
        raise InvalidSourceError(
            f"{str(path)!r} has no text and no rows in it: "
            + ("it holds pictures of pages; run OCR over it." if pages else "leave it out.")
        )
