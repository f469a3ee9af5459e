"""CTranslate2's ``model.bin``: its variables, memory-mapped, with every bound checked.

Layout, little-endian (``ctranslate2/specs/model_spec.py`` writes it, binary version 6)::

    u32 binary version      string spec name, u32 spec revision   (both from version 2)
    u32 number of variables
    each: string name, u8 rank, u32 dimension[rank], u8 type, u32 bytes, data
    u32 number of aliases   (from version 3)
    each: string alias, string name of the variable it stands for

A string is a u16 length that counts a closing NUL, then the characters. Before version 4 the type
is the width of an item and the size counts items.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xattn.errors import CorruptCheckpointError, TensorError, UnsupportedModelError
from xattn.models.cursor import Cursor, map_file
from xattn.native.pages import forget_mapped

NEWEST_BINARY_VERSION = 6
TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
_STORED_AS = {"bfloat16": "int16"}
_TYPE_OF_WIDTH = {4: "float32", 2: "int16", 1: "int8"}
_SOME = 1 << 20
"""Numbers that are converted together."""
_INT16_SCALE = 1000.0
"""Scale of int16 variables in files that store none (written before there was one per tensor)."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of the file: where it lies and what it is."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """First byte of its data in the file."""

    @property
    def size_bytes(self) -> int:
        """Size of its data."""
        return math.prod(self.shape) * _numpy_type(self.dtype).itemsize


class ModelFile:
    """The variables of one ``model.bin``.

    ``variables`` maps every name, aliases too, to its :class:`Variable`. Raises
    :class:`CorruptCheckpointError` with the offset if the file is truncated or malformed, and
    :class:`UnsupportedModelError` if a later CTranslate2 wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = map_file(path)
        cursor = Cursor(path, self._bytes)
        self.version = cursor.number("I", "the binary version")
        if not 1 <= self.version <= NEWEST_BINARY_VERSION:
            raise UnsupportedModelError(
                f"{path}: the binary version must be 1 to {NEWEST_BINARY_VERSION}, but is "
                f"{self.version} instead; this is no CTranslate2 model, or one of a later version."
            )
        self.spec_name = (
            _string(cursor, "the name of the model specification") if self.version > 1 else ""
        )
        self.revision = (
            cursor.number("I", "the specification's revision") if self.version > 1 else 1
        )
        self.variables = dict(self._read_variables(cursor))
        if self.version >= 3:
            self.variables |= dict(self._read_aliases(cursor))
        if cursor.left:
            raise cursor.error("the end of the file", f"{cursor.left} more bytes follow")

    def _read_variables(self, cursor: Cursor) -> Iterator[tuple[str, Variable]]:
        seen: set[str] = set()
        for _ in range(cursor.number("I", "the number of variables")):
            variable = _read_variable(cursor, self.version)
            if variable.name in seen:
                raise cursor.error("a new variable", f"{variable.name!r} appears a second time")
            seen.add(variable.name)
            yield variable.name, variable

    def _read_aliases(self, cursor: Cursor) -> Iterator[tuple[str, Variable]]:
        for _ in range(cursor.number("I", "the number of aliases")):
            alias = _string(cursor, "an alias")
            target = _string(cursor, f"the variable that {alias!r} stands for")
            if target not in self.variables:
                raise cursor.error(
                    f"the variable that {alias!r} stands for", f"there is no {target!r}"
                )
            if alias in self.variables:
                raise cursor.error("a new alias", f"{alias!r} is a variable already")
            yield alias, self.variables[target]

    def find(self, name: str) -> Variable:
        """The variable called ``name``; :class:`TensorError` if there is none."""
        if name not in self.variables:
            raise TensorError(f"{self.path}: the variable {name!r} is missing.")
        return self.variables[name]

    def scalar(self, name: str) -> float:
        """The one number that the variable ``name`` holds."""
        variable = self.find(name)
        if variable.shape:
            raise self._malformed(variable, f"a single number, but its shape is {variable.shape}")
        value = float(self._view(variable))
        if not math.isfinite(value):
            raise self._malformed(variable, f"a finite number, but is {value}")
        return value

    def text(self, name: str) -> str:
        """The characters that the variable ``name`` holds (files before version 6)."""
        variable = self.find(name)
        try:
            return self._view(variable).tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._malformed(variable, "UTF-8 text") from error

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of a variable as a new float32 tensor, dequantised."""
        variable = self.find(name)
        rows = self._view(variable)[start:stop] if variable.shape else self._view(variable)
        values, flat = torch.empty(rows.shape), rows.reshape(-1)
        for first in range(0, flat.size, _SOME):
            some = slice(first, first + _SOME)
            # The copy is aligned; conversions straight from the map are many times slower.
            stored = torch.from_numpy(np.array(flat[some]))
            values.view(-1)[some] = (
                stored.view(torch.bfloat16) if variable.dtype == "bfloat16" else stored
            )
        forget_mapped(flat)
        if variable.dtype in ("int8", "int16"):
            values /= self._scale(variable, start, stop)
        return values

    def _scale(self, variable: Variable, start: int, stop: int | None) -> Tensor:
        """Divisor of a quantised variable: one number, or one per row shaped to broadcast."""
        scale = self.variables.get(f"{variable.name}_scale")
        if scale is None:
            if variable.dtype == "int16":
                return torch.tensor(_INT16_SCALE)
            raise TensorError(
                f"{self.path}: {variable.name!r} is {variable.dtype} and its "
                f"'{variable.name}_scale' is missing."
            )
        if scale.dtype != "float32" or scale.shape not in ((), variable.shape[:1]):
            raise self._malformed(
                scale,
                f"float32 of shape () or {variable.shape[:1]}, but is {scale.dtype} {scale.shape}",
            )
        values = torch.from_numpy(np.array(self._view(scale)))
        if not values.isfinite().all() or not values.all():
            raise self._malformed(scale, "finite numbers other than zero")
        if not scale.shape:
            return values
        return values[start:stop].reshape(-1, *[1] * (len(variable.shape) - 1))

    def _view(self, variable: Variable) -> np.ndarray[Any, Any]:
        # A slice of the map, read in place: data is not aligned in these files.
        raw = self._bytes[variable.offset : variable.offset + variable.size_bytes]
        return np.frombuffer(raw, dtype=_numpy_type(variable.dtype)).reshape(variable.shape)

    def _malformed(self, variable: Variable, expected: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"{self.path}: {variable.name!r} at byte {variable.offset} must be {expected}; "
            "download or convert the model again."
        )


def _read_variable(cursor: Cursor, version: int) -> Variable:
    name = _string(cursor, "the name of a variable")
    rank = cursor.number("B", f"the rank of {name!r}")
    shape = cursor.numbers("I", rank, f"the shape of {name!r}")
    code = cursor.number("B", f"the type of {name!r}")
    size = cursor.number("I", f"the size of {name!r}")
    if version >= 4:
        dtype = TYPES[code] if code < len(TYPES) else None
    else:
        dtype, size = _TYPE_OF_WIDTH.get(code), size * code
    if dtype is None:
        raise cursor.error(f"a type that holds numbers for {name!r}", f"the code is {code}")
    variable = Variable(name=name, dtype=dtype, shape=shape, offset=cursor.offset)
    if variable.size_bytes != size:
        raise cursor.error(
            f"{variable.size_bytes} bytes for {name!r}, {dtype} {shape}", f"its header says {size}"
        )
    cursor.skip(size, f"the data of {name!r}")
    return variable


def _numpy_type(dtype: str) -> np.dtype[Any]:
    return np.dtype(_STORED_AS.get(dtype, dtype)).newbyteorder("<")


def _string(cursor: Cursor, what: str) -> str:
    """Characters that end in one NUL, which their length counts."""
    text = cursor.text(cursor.number("H", f"the length of {what}"), what)
    if not text.endswith("\0") or "\0" in text[:-1]:
        raise cursor.error(what, "what stands there does not end in one NUL")
    return text[:-1]
