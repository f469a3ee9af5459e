"""Plain text: whatever its length, a block of it at a time."""

from collections.abc import Iterator
from pathlib import Path

from xattn.library.documents.document import Content
from xattn.library.documents.files import blocks_of
from xattn.library.passage import Section


def read_text(path: Path) -> Content:
    """A plain text; its title is the file's name."""
    return Content(path.stem, lambda: _sections(path))


def _sections(path: Path) -> Iterator[Section]:
    start = 0
    for block in blocks_of(path):
        yield Section(text=block, start=start)
        start += len(block)
