"""PDF: the text of each page."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from xattn.errors import MissingExtraError
from xattn.library.documents.document import Content
from xattn.library.documents.files import parsing, unreadable
from xattn.library.passage import Section

if TYPE_CHECKING:
    from pypdf import PdfReader


def read_pdf(path: Path) -> Content:
    """A PDF with a text in it; its title is that of its metadata.

    One that any reader opens without a password is read, though it be encrypted. Raises
    :class:`MissingExtraError` and :class:`UnreadableSourceError`.
    """
    try:
        import pypdf
    except ImportError as error:
        raise MissingExtraError("pypdf", "documents", f"reading {path.name!r} (PDF)") from error
    errors = (pypdf.errors.PyPdfError, pypdf.errors.DependencyError)
    with parsing(path, *errors), path.open("rb") as file:
        metadata = _opened(path, file).metadata
        title = (metadata.title or "").strip() if metadata is not None else ""
    return Content(title or path.stem, lambda: _sections(path, errors))


def _opened(path: Path, file: IO[bytes]) -> "PdfReader":
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    reader = PdfReader(file)
    try:
        if reader.is_encrypted and not reader.decrypt(""):
            raise unreadable(
                path, "is encrypted, and needs a password; save a copy of it without one"
            )
    except DependencyError as error:
        raise unreadable(
            path, f"is encrypted: {error}. Install that, or save a copy without encryption"
        ) from error
    return reader


def _sections(path: Path, errors: tuple[type[Exception], ...]) -> Iterator[Section]:
    start = 0
    with parsing(path, *errors), path.open("rb") as file:
        for number, page in enumerate(_opened(path, file).pages, start=1):
            text = page.extract_text() + "\n\n"
            yield Section(text=text, start=start, page=number)
            start += len(text)
