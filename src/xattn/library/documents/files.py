"""What every reader asks of a file: its bytes, its text, and errors that name it."""

import codecs
import io
import os
import stat
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from blake3 import blake3

from xattn.errors import (
    InvalidSourceError,
    SourceNotFoundError,
    UnreadableSourceError,
    XattnError,
)
from xattn.readable import readable_bytes

BLOCK_CHARACTERS = 1 << 16
LINE_CHARACTERS = 1 << 24
"""Of a line that is a record by itself: as many are in memory at once."""
WHOLE_BYTES = 64 << 20
"""Of a file that can only be read as a whole."""
_BLOCK_BYTES = 1 << 20
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DAMAGE: tuple[type[Exception], ...] = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    EOFError,
    OSError,
    zlib.error,
)
"""What parsers raise, besides errors of their own, where a file is not as it should be."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it, errors of the system, and text that cannot be decoded, are ours and name the file.

    Raises :class:`SourceNotFoundError` and :class:`UnreadableSourceError`.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceNotFoundError(f"there is no file {str(path)!r} (any more).") from error
    except OSError as error:
        raise unreadable(path, f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise unreadable(
            path,
            f"is no text in {error.encoding.upper()}: {error.reason} (byte 0x{byte:02x}). Convert "
            "it to UTF-8, or leave it out",
        ) from error


@contextmanager
def parsing(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Within it, what a parser raises, ``errors`` of its own among it, says that a file is damaged.

    Raises :class:`UnreadableSourceError`.
    """
    try:
        yield
    except XattnError:
        raise
    except _DAMAGE + errors as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own
        said = " ".join(str(error).split()) or type(error).__name__
        raise unreadable(
            path, f"is damaged, or made in a way that is not read: {said:.200}. Save it again"
        ) from error


def unreadable(path: Path, what: str) -> UnreadableSourceError:
    """The error that a file is not what its name says; ``what`` goes on from its name."""
    return UnreadableSourceError(f"{str(path)!r} {what}.")


def size_of(path: Path) -> int:
    """Bytes of a file; raises :class:`UnreadableSourceError` where it is a directory or a pipe."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise unreadable(path, "is no regular file; name the files in it, or one that is")
    return status.st_size


def digest_of_file(path: str | os.PathLike[str]) -> str:
    """BLAKE3 of a file's bytes, 64 hexadecimal characters; the file is never in memory as a whole.

    Raises :class:`SourceNotFoundError` and :class:`UnreadableSourceError`.
    """
    file, digest = Path(path), blake3()
    with reading(file):
        size_of(file)
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def open_text(path: Path, encoding: str | None = None) -> io.TextIOWrapper:
    """A file of text as it stands, ends of lines included: UTF-8, or as its first bytes say."""
    with path.open("rb") as file:
        head = file.read(3)
    found = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    return path.open(encoding=found or encoding or "utf-8", newline="")


def blocks_of(path: Path) -> Generator[str]:
    """The text of a file, some of it at a time; close it where it is left before its end."""
    with open_text(path) as file:
        while block := file.read(BLOCK_CHARACTERS):
            _refuse_binary(path, block)
            yield block


def lines_of(path: Path, most: int = LINE_CHARACTERS) -> Generator[str]:
    """The lines of a file with their ends; one of more than ``most`` characters is several."""
    with open_text(path) as file:
        while line := file.readline(most):
            _refuse_binary(path, line)
            yield line


def records_of(path: Path) -> Generator[str]:
    """The lines of a file, each of them whole; close it where it is left before its end.

    Raises :class:`InvalidSourceError` where one has more than :data:`LINE_CHARACTERS`.
    """
    with closing(lines_of(path)) as lines:
        for number, line in enumerate(lines, start=1):
            if len(line) == LINE_CHARACTERS and not line.endswith(("\n", "\r")):
                raise InvalidSourceError(
                    f"{str(path)!r}: line {number} has {LINE_CHARACTERS} characters or more, which "
                    "is no record; if the file is plain text, name it .txt."
                )
            yield line


def whole_text(path: Path, encoding: str | None = None) -> str:
    """A file of text that can only be read as a whole.

    Raises :class:`InvalidSourceError` where it has more than :data:`WHOLE_BYTES`.
    """
    require_whole(path)
    with open_text(path, encoding) as file:
        text = file.read()
    _refuse_binary(path, text)
    return text


def require_whole(path: Path) -> None:
    """Raise :class:`InvalidSourceError` for a file of more than :data:`WHOLE_BYTES`."""
    size = size_of(path)
    if size > WHOLE_BYTES:
        raise InvalidSourceError(
            f"{str(path)!r} has {readable_bytes(size)}, but a file of its kind is read as a whole, "
            f"and at most {readable_bytes(WHOLE_BYTES)}; split it, or save it as plain text "
            "(.txt), which is read piece by piece."
        )


def is_text(path: Path) -> bool:
    """Whether the first bytes of a file are text."""
    with path.open("rb") as file:
        head = file.read(8192)
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    try:
        return "\0" not in codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False


def _refuse_binary(path: Path, text: str) -> None:
    if "\0" in text:
        raise unreadable(
            path,
            "holds NUL characters: it is no text, or UTF-16 without a byte order mark. Convert it "
            "to UTF-8, or leave it out",
        )
