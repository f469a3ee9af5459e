"""Tables: rows of typed cells in a form that tells 1 from 1.0 from "1" from true from nothing."""

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from xattn.errors import InvalidSourceError, require
from xattn.memory import Hash, digest_of


@dataclass(frozen=True)
class Table:
    """A header and rows of equal length."""

    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __post_init__(self) -> None:
        width = len(self.header)
        require(width > 0, "header", "at least one column", self.header)
        strange = next((n for n, row in enumerate(self.rows) if len(row) != width), None)
        if strange is not None:
            raise InvalidSourceError(
                f"row {strange} of the table has {len(self.rows[strange])} cells, but the header "
                f"has {width}."
            )

    @property
    def canonical_bytes(self) -> bytes:
        """What a memory's key digests: sizes, the header, then each cell with its type."""
        cells = (*self.header, *(cell for row in self.rows for cell in row))
        parts = [_cell(cell) for cell in cells]
        sizes = struct.pack("<2Q", len(self.rows), len(self.header))
        return sizes + b"".join(struct.pack("<Q", len(part)) + part for part in parts)

    def digest(self, hash: Hash = "blake3") -> str:
        """64 hexadecimal characters over :attr:`canonical_bytes`."""
        return digest_of(self.canonical_bytes, hash=hash)

    def chunks(self, count: Callable[["Table"], int], most: int) -> Iterator["Table"]:
        """Tables of as many whole rows as fit ``most`` by ``count``, the header on each.

        Where a chunk ends is decided by the rows in it, so that a changed row changes its own chunk
        and, at most, where the next one begins.
        """
        start = 0
        for end in range(1, len(self.rows) + 1):
            piece = Table(self.header, self.rows[start:end])
            full = (
                end < len(self.rows)
                and count(Table(self.header, self.rows[start : end + 1])) > most
            )
            row = Table(self.header, self.rows[end - 1 : end])
            stable = int(row.digest()[:8], 16) % 8 == 0 and 2 * count(piece) >= most
            if full or stable or end == len(self.rows):
                yield piece
                start = end


def _cell(value: Any) -> bytes:
    """A cell as bytes that no cell of another type or value has."""
    if value is None:
        return b"none"
    if isinstance(value, bool):
        return b"bool:true" if value else b"bool:false"
    if isinstance(value, str):
        return b"text:" + value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return b"bytes:" + value
    if isinstance(value, Integral):
        return f"int:{int(value)}".encode()
    if isinstance(value, Decimal):
        return f"decimal:{value}".encode()
    if isinstance(value, datetime):
        return f"datetime:{value.isoformat()}".encode()
    if isinstance(value, date):
        return f"date:{value.isoformat()}".encode()
    if isinstance(value, Real):
        number = float(value)
        return b"float:nan" if math.isnan(number) else b"float:" + struct.pack("<d", number)
    if isinstance(value, Sequence):
        parts = [_cell(item) for item in value]
        return b"list:" + b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    raise InvalidSourceError(f"a cell of a table cannot be a {type(value).__name__}: {value!r:.80}")
