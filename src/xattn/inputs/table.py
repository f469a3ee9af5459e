"""Tables: rows of typed cells in a form that tells 1 from 1.0 from "1" from true from nothing.

An encoder of text reads them as TAPEX writes them (Liu et al. 2022, arXiv 2107.07653):
``col : name | height row 1 : Ada | 41 row 2 : …``.
"""

import csv
import io
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Rational, Real
from pathlib import Path
from typing import Any

import numpy as np

from xattn.errors import (
    InvalidSourceError,
    SourceNotFoundError,
    UnreadableSourceError,
    require,
)
from xattn.inputs.chunks import group
from xattn.memory import Hash, digest_of

LINEARISATION = "table/1 tapex"
"""Name and version of :meth:`Table.pieces`; part of a memory's key."""


@dataclass(frozen=True)
class Table:
    """A header and rows of equal length.

    Cells are None, bool, str, bytes, whole and other real numbers, Decimal, date, time, datetime,
    and lists of these; numpy's scalars count as what they hold. Raises :class:`UsageError` for a
    header of no columns or of other things than texts, :class:`InvalidSourceError` where a row has
    another length.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __post_init__(self) -> None:
        header: Any = self.header
        named = not isinstance(header, str) and all(isinstance(name, str) for name in header)
        require(named and len(header) > 0, "header", "the names of one column or more", header)
        object.__setattr__(self, "header", tuple(header))
        object.__setattr__(self, "rows", tuple(map(tuple, self.rows)))
        width = len(self.header)
        strange = next((n for n, row in enumerate(self.rows) if len(row) != width), None)
        if strange is not None:
            raise InvalidSourceError(
                f"row {strange} of the table has {len(self.rows[strange])} cells, but the header "
                f"has {width}."
            )

    @property
    def cells(self) -> Iterator[Any]:
        """The header's cells, then those of each row."""
        yield from self.header
        for row in self.rows:
            yield from row

    @property
    def canonical_bytes(self) -> bytes:
        """What a memory's key digests: sizes, the header, then each cell with its type."""
        parts = [_cell(cell) for cell in self.cells]
        sizes = struct.pack("<2Q", len(self.rows), len(self.header))
        return sizes + b"".join(struct.pack("<Q", len(part)) + part for part in parts)

    def digest(self, hash: Hash = "blake3") -> str:
        """64 hexadecimal characters over :attr:`canonical_bytes`."""
        return digest_of(self.canonical_bytes, hash=hash)

    def pieces(self, first: int = 1) -> Iterator[str]:
        """The table as text, a piece for each of :attr:`cells`; joined, they are the text.

        What stands between two cells begins the piece of the second. Rows count from ``first``.
        """
        width = len(self.header)
        for n, cell in enumerate(self.cells):
            row, column = divmod(n, width)
            if column:
                before = " | "
            else:
                before = "col : " if row == 0 else f" row {first + row - 1} : "
            yield before + cell_text(cell)

    def chunks(self, count: Callable[["Table"], int], most: int) -> Iterator["Table"]:
        """Tables of as many whole rows as fit ``most`` by ``count``, the header on each.

        Where a chunk ends is decided by the rows in it, as for sentences
        (:mod:`xattn.inputs.chunks`): a changed row changes its own chunk and, at most, where its
        neighbours end. ``count`` sees each row once, with the header; a row that is too long alone
        is a chunk, and so is a header without rows.
        """
        bare = count(Table(self.header, ()))
        rows = [Table(self.header, (row,)) for row in self.rows]
        sizes = [count(row) - bare for row in rows]
        ends = group(sizes, [(0, row.digest()) for row in rows], max(0, most - bare))
        for start, end in zip([0, *ends], ends or [0], strict=False):
            yield Table(self.header, self.rows[start:end])


def read_table(path: str | os.PathLike[str]) -> Table:
    """A file of comma-separated values, or tab-separated ones (``.tsv``, ``.tab``); UTF-8.

    The first line is the header; empty lines are left out; every cell is text, as it stands there.
    Raises :class:`SourceNotFoundError`, :class:`UnreadableSourceError` (not UTF-8, or badly
    quoted), and :class:`InvalidSourceError` (no header, or rows of other lengths).
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode("utf-8-sig")
        delimiter = "\t" if file.suffix.lower() in (".tsv", ".tab") else ","
        # With newline="", so that line ends inside quotes stay as they are.
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header, *rows = [row for row in lines if row] or [[]]
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"there is no file {str(file)!r}.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableSourceError(
            f"{str(file)!r} is not a table that can be read: {error}"
        ) from error
    if not header:
        raise InvalidSourceError(f"{str(file)!r} is empty; its first line must name the columns.")
    try:
        return Table(tuple(header), tuple(map(tuple, rows)))
    except InvalidSourceError as error:
        raise InvalidSourceError(f"{str(file)!r}: {error}") from error


def cell_text(value: Any) -> str:
    """A cell as an encoder reads it: nothing for None, lists with commas, bytes in hexadecimal."""
    value = plain_cell(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, tuple):
        return ", ".join(map(cell_text, value))
    return str(value)


def _cell(value: Any) -> bytes:
    """A cell as bytes that no cell of another type or value has."""
    value = plain_cell(value)
    if value is None:
        return b"none"
    if isinstance(value, str):
        return b"text:" + value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return b"bytes:" + value
    if isinstance(value, float):
        return b"float:nan" if math.isnan(value) else b"float:" + struct.pack("<d", value)
    if isinstance(value, tuple):
        parts = [_cell(item) for item in value]
        return b"list:" + b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    return f"{type(value).__name__.lower()}:{cell_text(value)}".encode()


def plain_cell(value: Any) -> Any:
    """A cell as one of Python's own types: text and canonical bytes are made of the same value."""
    match value:
        case None | bool():
            return value
        case np.bool_():
            return bool(value)
        case str():
            return str(value)
        case bytes() | bytearray() | memoryview():
            return bytes(value)
        case np.timedelta64():  # an Integral to numpy, but 1 of it may be a second or a day
            pass
        case Integral():
            return int(value)
        case Decimal() | datetime() | date() | time():
            return value
        case Rational():
            return Fraction(value)
        case Real():
            return float(value)
        case Sequence():
            return tuple(value)
    raise InvalidSourceError(f"a cell of a table cannot be a {type(value).__name__}: {value!r:.80}")
