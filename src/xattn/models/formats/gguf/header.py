"""What stands in front of the weights in a GGUF file: metadata and tensor descriptions.

Layout, little-endian, versions 2 and 3 (``docs/gguf.md`` in ggml-org/ggml)::

    "GGUF", u32 version, u64 number of tensors, u64 number of metadata values
    each value:  string key, u32 type, the value; an array is u32 type, u64 length, its items
    each tensor: string name, u32 rank, u64 dimension[rank], u32 type, u64 offset
    padding to the alignment, then the data that offsets count from

A string is a u64 length and UTF-8. The types and their sizes are the ``gguf`` package's. Its own
reader is not used: it takes lengths on trust, so that a damaged one keeps it busy for hours, and
it needs seconds for a vocabulary that is read here in a tenth of one.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from xattn.errors import CorruptCheckpointError, MissingExtraError, UnsupportedModelError
from xattn.models.cursor import Cursor, map_file

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How ``struct`` calls each type of number."""
_MOST_AXES = 4


def gguf_package() -> ModuleType:
    """The ``gguf`` package; :class:`MissingExtraError` where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf", "reading GGUF files") from error
    return gguf


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    """Outermost axis first, as in torch."""
    type: str
    """The name ggml gives its number format: ``F32``, ``Q4_K`` …"""
    offset: int
    """First byte of its data in the file."""
    size_bytes: int


class Header:
    """Metadata and tensor descriptions of one file, and its bytes, memory-mapped.

    Raises :class:`CorruptCheckpointError` with the offset if the file is truncated or malformed,
    and :class:`UnsupportedModelError` for versions of the format that are not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = map_file(path)
        cursor = Cursor(path, self.data)
        if bytes(self.data[:4]) != MAGIC:
            raise cursor.error("the letters GGUF", f"found {bytes(self.data[:4])!r}")
        cursor.skip(4, "the letters GGUF")
        version = cursor.number("I", "the version")
        if version not in _VERSIONS:
            raise UnsupportedModelError(
                f"{path}: the GGUF version must be 2 or 3, but is {version} instead; big-endian "
                "files and version 1 are not read. Convert the model again."
            )
        tensors = cursor.number("Q", "the number of tensors")
        values = cursor.number("Q", "the number of metadata values")
        self.metadata: dict[str, Any] = {}
        for _ in range(values):
            key = _string(cursor, "the key of a metadata value")
            if key in self.metadata:
                raise cursor.error("a new key", f"{key!r} appears a second time")
            self.metadata[key] = _value(cursor, key)
        self.tensors = self._read_tensors(cursor, tensors)

    def _read_tensors(self, cursor: Cursor, count: int) -> dict[str, TensorEntry]:
        described = [_describe(cursor) for _ in range(count)]
        alignment = self.metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise cursor.error("an alignment that is a power of two", f"it is {alignment!r}")
        start = -(-cursor.offset // alignment) * alignment
        entries: dict[str, TensorEntry] = {}
        for name, shape, kind, offset in described:
            if name in entries:
                raise cursor.error("a new tensor", f"{name!r} appears a second time")
            entries[name] = self._locate(name, shape, kind, start + offset)
        return entries

    def _locate(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorEntry:
        gguf = gguf_package()
        try:
            type_ = gguf.GGMLQuantizationType(kind)
        except ValueError as error:
            raise CorruptCheckpointError(
                f"{self.path}: the number format of {name!r} is {kind}, which ggml does not have."
            ) from error
        block, size = gguf.GGML_QUANT_SIZES[type_]
        if not shape or 0 in shape or shape[-1] % block:
            raise CorruptCheckpointError(
                f"{self.path}: the rows of {name!r} must be a multiple of {block} long "
                f"({type_.name}), but its shape is {list(shape)}."
            )
        size_bytes = math.prod(shape) // block * size
        if offset + size_bytes > len(self.data):
            raise CorruptCheckpointError(
                f"{self.path}: {name!r} should end at byte {offset + size_bytes}, but the file has "
                f"{len(self.data)}; it is truncated: download or copy it again."
            )
        return TensorEntry(name, shape, type_.name, offset, size_bytes)

    def bytes_of(self, entry: TensorEntry) -> np.ndarray[Any, Any]:
        """The data of one tensor, as bytes in the map."""
        return self.data[entry.offset : entry.offset + entry.size_bytes]


def _describe(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = _string(cursor, "the name of a tensor")
    rank = cursor.number("I", f"the rank of {name!r}")
    if rank > _MOST_AXES:
        raise cursor.error(f"a rank of at most {_MOST_AXES} for {name!r}", f"it is {rank}")
    shape = cursor.numbers("Q", rank, f"the shape of {name!r}")
    kind = cursor.number("I", f"the number format of {name!r}")
    return name, tuple(reversed(shape)), kind, cursor.number("Q", f"the offset of {name!r}")


def _string(cursor: Cursor, what: str) -> str:
    return cursor.text(cursor.number("Q", f"the length of {what}"), what)


def _value(cursor: Cursor, key: str) -> Any:
    kind, what = cursor.number("I", f"the type of {key!r}"), f"the value of {key!r}"
    if kind == _STRING:
        return _string(cursor, what)
    if kind == _ARRAY:
        return _array(cursor, what)
    if kind in _CODES:
        return cursor.number(_CODES[kind], what)
    raise cursor.error(what, f"its type is {kind}, which GGUF does not have")


def _array(cursor: Cursor, what: str) -> list[Any]:
    kind = cursor.number("I", f"the type of the items of {what}")
    count = cursor.number("Q", f"the length of {what}")
    if kind == _STRING:
        return [_string(cursor, f"an item of {what}") for _ in range(count)]
    if kind in _CODES:
        return list(cursor.numbers(_CODES[kind], count, what))
    raise cursor.error(what, f"it is an array of type {kind}, which is not read")
