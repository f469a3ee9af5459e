"""DOCX: paragraphs under their headings, and tables."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from xattn.errors import InvalidSourceError, MissingExtraError
from xattn.library.documents.document import Content
from xattn.library.documents.files import WHOLE_BYTES, parsing, require_whole
from xattn.library.documents.outline import Outline
from xattn.library.passage import Section
from xattn.readable import readable_bytes

if TYPE_CHECKING:
    from docx.document import Document as Docx
    from docx.table import Table as DocxTable

_HEADING = re.compile(r"Heading ([1-9])")
_TITLE = "Title"
_MOST_UNPACKED = 8 * WHOLE_BYTES


def read_docx(path: Path) -> Content:
    """A DOCX file; its title is that of its properties, or its paragraph in the style Title.

    Raises :class:`MissingExtraError`, :class:`UnreadableSourceError`, and
    :class:`InvalidSourceError` where it is too large.
    """
    try:
        import docx
        from docx.opc.exceptions import OpcError
    except ImportError as error:
        raise MissingExtraError(
            "python-docx", "documents", f"reading {path.name!r} (DOCX)"
        ) from error
    require_whole(path)
    # lxml's errors of syntax are Python's.
    with parsing(path, OpcError, zipfile.BadZipFile, SyntaxError):
        _require_small(path)
        document = docx.Document(str(path))
        titled = (p.text for p in document.paragraphs if p.style and p.style.name == _TITLE)
        title = document.core_properties.title.strip() or next(titled, "").strip()
    return Content(title or path.stem, lambda: _sections(path, document))


def _require_small(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > _MOST_UNPACKED:
        raise InvalidSourceError(
            f"{str(path)!r} has {readable_bytes(size)} once it is unpacked, but at most "
            f"{readable_bytes(_MOST_UNPACKED)} are read; split it."
        )


def _sections(path: Path, document: "Docx") -> Iterator[Section]:
    from docx.text.paragraph import Paragraph

    outline = Outline()
    with parsing(path):
        for block in document.iter_inner_content():
            if not isinstance(block, Paragraph):
                yield from outline.table(_rows(block))
                continue
            style = (block.style.name if block.style else None) or ""
            if found := _HEADING.match(style):
                outline.heading(int(found[1]), block.text.strip())
            else:
                mark = "- " if style.startswith("List") and block.text.strip() else ""
                yield from outline.paragraph(mark + block.text.strip())
        yield from outline.rest()


def _rows(table: "DocxTable") -> list[tuple[str, ...]]:
    """Cells as a grid; one that spans several places is in each of them."""
    rows = [
        ["", *[""] * (row.grid_cols_before - 1)][: row.grid_cols_before]
        + [" ".join(cell.text.split()) for cell in row.cells]
        for row in table.rows
    ]
    width = max(map(len, rows), default=0)
    return [(*row, *[""] * (width - len(row))) for row in rows]
