"""How much of each fault is tried: little in every run, all of it where ``STORE_FAULTS=full``."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = os.environ.get("STORE_FAULTS") == "full"


def times(small: int, full: int) -> int:
    """``full`` where all is asked for, else ``small``."""
    return full if FULL else small


@contextmanager
def quick_directory() -> Iterator[Path]:
    """A directory in memory where there is one: what is forced to a disk need not wait for it."""
    shared = Path("/dev/shm")
    usable = shared.is_dir() and os.access(shared, os.W_OK)
    with tempfile.TemporaryDirectory(dir=shared if usable else None) as directory:
        yield Path(directory)
