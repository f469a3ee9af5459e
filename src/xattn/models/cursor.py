"""Reading a binary file front to back, with every bound checked."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from xattn.errors import CheckpointError, CorruptCheckpointError


def map_file(path: Path) -> np.ndarray[Any, Any]:
    """The bytes of ``path``, memory-mapped; :class:`CheckpointError` where that fails."""
    try:
        if path.stat().st_size == 0:
            raise CorruptCheckpointError(f"{path}: the file is empty; download it again.")
        return np.memmap(path, mode="r")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from error


class Cursor:
    """A position in the file; reading past the end is an error that says where and what for.

    Numbers are little-endian; codes are those of :mod:`struct`.
    """

    def __init__(self, path: Path, data: np.ndarray[Any, Any]) -> None:
        self.path, self.offset = path, 0
        self._data = memoryview(data)  # type: ignore[arg-type]

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self.offset

    def error(self, expected: str, found: str) -> CorruptCheckpointError:
        """What to raise for something else than ``expected`` at this place."""
        return CorruptCheckpointError(
            f"{self.path}: expected {expected} at byte {self.offset}, but {found}; the file is "
            "truncated or malformed: download or convert it again."
        )

    def skip(self, size: int, what: str) -> int:
        """Step over ``size`` bytes of ``what``; returns where they begin."""
        if size > self.left:
            raise self.error(f"{what} ({size} bytes)", f"only {self.left} bytes are left")
        self.offset += size
        return self.offset - size

    def number(self, code: str, what: str) -> Any:
        """One number."""
        return self.numbers(code, 1, what)[0]

    def numbers(self, code: str, count: int, what: str) -> tuple[Any, ...]:
        """``count`` numbers."""
        start = self.skip(count * struct.calcsize(f"<{code}"), what)
        return struct.unpack_from(f"<{count}{code}", self._data, start)

    def text(self, size: int, what: str) -> str:
        """``size`` bytes of UTF-8."""
        start = self.skip(size, what)
        try:
            return str(self._data[start : self.offset], "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(what, "what stands there is not UTF-8") from error
