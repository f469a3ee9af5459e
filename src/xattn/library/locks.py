"""One writer at a time, and whether anybody else reads."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xattn.errors import LibraryBusyError, LibraryError, UnsafeStoreError
from xattn.library.settings import NAME
from xattn.store import files

_LOCK, _WRITER = ".writing", ".writer"


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Hold the library's lock, which falls with the process.

    Raises :class:`LibraryBusyError`, which says who has it, where another does.
    """
    lock = files.locked(root / _LOCK, patience_seconds=0)
    try:
        lock.__enter__()
    except TimeoutError as error:
        raise LibraryBusyError(
            f"{root} is being written by {_who(root)}; wait for it, or end it: what it has done "
            "is kept."
        ) from error
    except (OSError, UnsafeStoreError) as error:
        raise LibraryError(f"{root}: cannot be written: {error}.") from error
    try:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        (root / _WRITER).write_text(f"process {os.getpid()} on {platform.node()} since {now}")
        yield
    finally:
        lock.__exit__(None, None, None)


def _who(root: Path) -> str:
    with suppress(OSError):
        return (root / _WRITER).read_text(errors="replace")[:200] or "another process"
    return "another process"


class Reading:
    """A mark that somebody reads the library; it falls with the process."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lease: files.Lease | None = self._taken()

    def _taken(self) -> files.Lease:
        try:
            return files.Lease(self._root / NAME)
        except OSError as error:
            raise LibraryError(f"{self._root}: {error.strerror or error}.") from error

    def close(self) -> None:
        """Take the mark away."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def is_alone(self) -> bool:
        """Whether nobody but this one reads."""
        self.close()
        try:
            with files.changing(self._root):
                return not files.is_leased(self._root / NAME)
        except OSError as error:
            raise LibraryError(f"{self._root}: {error.strerror or error}.") from error
        finally:
            self._lease = self._taken()
