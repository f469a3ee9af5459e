"""Directories that appear whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from xattn.errors import SaveError


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """An empty directory to write into, which becomes ``directory`` at the end.

    What was there before stays until then, and for good where writing fails: :class:`SaveError`
    says why.
    """
    new, old = (directory.with_name(f".{directory.name}.{part}") for part in ("new", "old"))
    try:
        if old.exists() and not directory.exists():  # a run died between the two renames below
            old.rename(directory)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
    except OSError as error:
        raise _failed(directory, error) from error
    try:
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                _force(path)
        if directory.exists():
            shutil.rmtree(old, ignore_errors=True)
            directory.rename(old)
        new.rename(directory)
        _force(directory.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise _failed(directory, error) from error
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _force(path: Path) -> None:
    """To the disk."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(directory: Path, error: Exception) -> SaveError:
    why = getattr(error, "strerror", None) or error
    return SaveError(
        f"{directory}: cannot be written: {why}; what was there before is as it was. Make room, "
        "or choose another directory."
    )
