"""Files to read: those named, those in directories, those that patterns match."""

import glob
import os
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from xattn.errors import SourceNotFoundError
from xattn.library.documents.files import is_text, reading
from xattn.library.documents.kinds import KINDS

_SKIPPED = {"__pycache__", "node_modules"}
_LIBRARY, _LIBRARY_FILE = ".xattn", "library.json"


def find_files(paths: Iterable[str | os.PathLike[str]], *, hidden: bool = False) -> Iterator[Path]:
    """Each file once, as an absolute path: of a directory all below it, sorted.

    A file that is named itself is given whatever it is. From directories and patterns (``*``,
    ``?``, ``[…]``, ``**``) come those with a suffix that a reader knows, and others that begin as
    text, unless they are empty. Hidden ones (their name, or a directory below the one given, begins
    with a dot) come only with ``hidden``. Libraries (``.xattn``), directories of caches and
    packages, and links to directories are passed over. Raises :class:`SourceNotFoundError` for what
    names no file.
    """
    seen: set[Path] = set()
    for path in paths:
        for file in _matching(Path(path).expanduser(), hidden):
            absolute = Path(os.path.abspath(file))
            if absolute not in seen:
                seen.add(absolute)
                yield absolute


def _matching(path: Path, hidden: bool) -> Iterator[Path]:
    if path.is_dir():
        yield from _below(path, hidden)
    elif path.exists():
        yield path
    elif glob.has_magic(str(path)):
        yield from _matched(path, hidden)
    else:
        raise SourceNotFoundError(f"there is no file or directory {str(path)!r}.")


def _matched(pattern: Path, hidden: bool) -> Iterator[Path]:
    plain = list(takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    root, rest = Path(*plain), pattern.parts[len(plain) :]
    files = [
        file
        for file in sorted(root.glob(os.path.join(*rest)))
        if all(_is_shown(part, hidden) for part in file.relative_to(root).parts)
        and is_document(file)
    ]
    if not files:
        raise SourceNotFoundError(f"no file that can be read matches {str(pattern)!r}.")
    yield from files


def _below(directory: Path, hidden: bool) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        with reading(Path(error.filename)):
            raise error

    for folder, folders, names in os.walk(directory, onerror=fail):
        if _LIBRARY_FILE in names and any(name.startswith("passages") for name in folders):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if _is_shown(name, hidden))
        files = [Path(folder, name) for name in sorted(names) if _is_shown(name, hidden)]
        yield from (file for file in files if is_document(file))


def _is_shown(name: str, hidden: bool) -> bool:
    passed = name in _SKIPPED or name.endswith(_LIBRARY)
    return not passed and (hidden or not name.startswith("."))


def is_document(file: Path) -> bool:
    """Whether a file is there, says something, and is of a kind that a reader knows, or text."""
    try:
        if not file.is_file() or file.stat().st_size == 0:
            return False
        return file.suffix.lower() in KINDS or is_text(file)
    except OSError:
        return True  # whoever reads it will say why that cannot be done
