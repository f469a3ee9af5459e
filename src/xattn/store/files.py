"""What the store asks of the file system, in one place: each call can fail, and is tested failing.

Files appear whole or not at all: they are written under another name, forced to the disk, renamed.
"""

import ctypes
import errno
import mmap
import os
import secrets
import stat
import threading
import time
import weakref
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from xattn.errors import StoreUnavailableError, UnsafeStoreError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

Pages = mmap.mmap | memoryview
"""The bytes of a mapped file."""
_FAILED = ctypes.c_void_p(-1).value
_mmap, _munmap = None, None
if os.name == "posix":
    _libc = ctypes.CDLL(None, use_errno=True)
    _mmap, _munmap = _libc.mmap, _libc.munmap
    _mmap.restype = ctypes.c_void_p
    _mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    _munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

PARTIAL = ".partial-"
PATIENCE_SECONDS = 10.0
"""A lock that is held for as long as a rename takes, and is not free by then, never will be."""
_CHANGING, _LEASED = ".changing", ".leased-"
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_EXCLUSIVE, _SHARED = getattr(fcntl, "LOCK_EX", 0), getattr(fcntl, "LOCK_SH", 0)


def make_private(directory: Path, mark: str, parts: Container[str]) -> None:
    """Make ``directory`` for its owner alone, or check one that is there.

    One without the file ``mark`` in it is taken over only if it holds nothing but ``parts``.

    Raises :class:`UnsafeStoreError` where it is a link, holds other things, is another's or can be
    written by others, and :class:`StoreUnavailableError` where it cannot be made.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
        names = os.listdir(directory)
    except FileExistsError as error:
        raise StoreUnavailableError(f"{directory} is a file; a store is a directory.") from error
    except OSError as error:
        raise unavailable(directory, error) from error
    if stat.S_ISLNK(status.st_mode):
        raise UnsafeStoreError(f"{directory} is a link; give the directory that it leads to.")
    strange = sorted(name for name in names if not _is_part(name, parts))
    if strange and mark not in names:
        raise UnsafeStoreError(
            f"{directory} holds other things than a store ({strange[0]!r}); give an empty "
            "directory, or a new one."
        )
    # The system's own files can be trusted as the system is: a store may come with a package.
    if hasattr(os, "getuid") and status.st_uid not in (os.getuid(), 0):
        raise UnsafeStoreError(f"{directory} belongs to another user; give a directory of yours.")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafeStoreError(
            f"{directory} can be written by others, who could put memories there; "
            f"make it yours with: chmod 700 {directory}"
        )
    if status.st_mode & 0o077 and os.access(directory, os.W_OK):
        with answering(directory):
            directory.chmod(0o700)


def _is_part(name: str, parts: Container[str]) -> bool:
    return name in parts or name.startswith((_CHANGING, _LEASED, PARTIAL, "index-"))


def require_real(root: Path, *parts: str) -> Path:
    """``root`` and the parts under it as a path.

    Raises :class:`UnsafeStoreError` where a part is a link, and so leads elsewhere.
    """
    path = root
    for part in parts:
        path = path / part
        try:
            if stat.S_ISLNK(path.lstat().st_mode):
                raise UnsafeStoreError(f"{path} is a link, which a store never makes; remove it.")
        except (FileNotFoundError, NotADirectoryError):
            continue
    return path


def make_folders(folder: Path) -> None:
    """Make a folder, and those it is in, for their owner alone."""
    try:
        folder.mkdir(mode=0o700)
    except FileNotFoundError:
        make_folders(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        if not folder.is_dir():
            raise


def write_whole(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``: all of it, on the disk, or an error and nothing.

    Raises OSError as the system does; a file that was there before is then still there. (Where
    only the last step fails, which makes the rename outlive a power cut, the new one is.)
    """
    make_folders(path.parent)
    partial = path.parent / f"{PARTIAL}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        with changing(path.parent):
            os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def map_private(path: Path) -> tuple[Pages, os.stat_result]:
    """The bytes of a file as they are now, and what the system says of that very file.

    The file may be replaced or removed at any time: it is opened once, and what was opened stays.
    The map is private, so that nobody who has it can change the file. Raises OSError as the system
    does, and ValueError for an empty file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | _NOFOLLOW)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no file")
        if status.st_size == 0:
            raise ValueError("an empty file cannot be mapped")
        return map_pages(handle, status.st_size), status
    finally:
        os.close(handle)


def map_pages(handle: int, size: int) -> Pages:
    """The first ``size`` bytes of an open file, which may be closed then.

    Python's own map keeps a handle for as long as it lives, and so as many memories could be held
    as a process may have files open.
    """
    if _mmap is None or _munmap is None:
        return mmap.mmap(handle, size, access=mmap.ACCESS_COPY)
    address = _mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, handle, 0)
    if address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    pages = (ctypes.c_char * size).from_address(address)
    # Not at exit, where tensors may outlive their finalizers.
    weakref.finalize(pages, lambda: _munmap(address, size)).atexit = False
    return memoryview(pages).cast("B")


_held: dict[int, object] = {}
"""Handles with locks; a forked child closes its copies, or it would hold the locks as well."""


class ThreadLock:
    """A lock among threads that a forked child finds open, whoever held it in its parent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _thread_locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def open_in_child(self) -> None:
        """Forget who held it."""
        self._lock = threading.Lock()


_thread_locks: "weakref.WeakSet[ThreadLock]" = weakref.WeakSet()


def _let_go_in_child() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()
    for lock in list(_thread_locks):
        lock.open_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _lock(handle: int, how: int, patience_seconds: float) -> None:
    """Raises TimeoutError where somebody else holds it for longer than that."""
    if fcntl is None:
        return
    until, pause = time.monotonic() + patience_seconds, 0.0002
    while True:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"another process has held a lock for {patience_seconds:g} s"
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _release(handle: int, token: object) -> None:
    if _held.get(handle) is token:  # else this is a child, which has let go of it
        del _held[handle]
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _locked_handle(path: Path, how: int, patience_seconds: float) -> tuple[int, object]:
    """An open file that is locked, and what tells it from another with the same number."""
    make_folders(path.parent)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | _NOFOLLOW, 0o600)
    token = _held[handle] = object()
    try:
        _lock(handle, how, patience_seconds)
    except BaseException:
        _release(handle, token)
        raise
    return handle, token


@contextmanager
def locked(path: Path, patience_seconds: float) -> Iterator[None]:
    """Hold the lock ``path``, whoever else wants it; it falls with the process that holds it.

    Raises TimeoutError where another holds it for ``patience_seconds``: it hangs, or was stopped.
    """
    held = _locked_handle(path, _EXCLUSIVE, patience_seconds)
    try:
        yield
    finally:
        _release(*held)


def changing(folder: Path) -> AbstractContextManager[None]:
    """Within it, nobody else replaces, removes or leases a file of ``folder``.

    It is held for a rename, and to look again at a file that is to be set aside; never while
    something is written or encoded. Who only reads does without.
    """
    return locked(folder / _CHANGING, PATIENCE_SECONDS)


def remove(path: Path) -> bool:
    """Remove a file; whether there was one."""
    if not path.parent.is_dir():
        return False
    with changing(path.parent):
        return _unlink(path)


def _unlink(path: Path) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


class Lease:
    """A mark on a file that says it is in use; it falls with the process that holds it.

    The mark is a lock beside the file, so that it outlives the file's replacement. Files share it
    with some others of their folder, which are then kept a little longer than they need be.
    """

    def __init__(self, path: Path) -> None:
        with changing(path.parent):
            self._held: tuple[int, object] | None = _locked_handle(
                _lease(path), _SHARED, PATIENCE_SECONDS
            )

    def release(self) -> None:
        """Give it back; a second time is no harm."""
        if self._held is not None:
            _release(*self._held)
            self._held = None


def _lease(path: Path) -> Path:
    return path.with_name(f"{_LEASED}{path.name[:3]}")


def is_leased(path: Path) -> bool:
    """Whether somebody holds a :class:`Lease` on it; to be asked while nobody can take one."""
    try:
        handle = os.open(_lease(path), os.O_RDWR | os.O_CLOEXEC | _NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def remove_unless(path: Path, in_use: Callable[[Path], bool]) -> bool:
    """Remove a file that is not ``in_use``, and cannot come to be meanwhile; whether it is gone."""
    if not path.parent.is_dir():
        return True
    with changing(path.parent):
        if in_use(path):
            return False
        _unlink(path)
    return True


@contextmanager
def answering(path: Path) -> Iterator[None]:
    """Within it, an error of the system is a :class:`StoreUnavailableError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise unavailable(path, error) from error


def unavailable(path: Path, error: OSError) -> StoreUnavailableError:
    """The error of the system in the store's words."""
    return StoreUnavailableError(f"{path}: {error.strerror or error}.")
