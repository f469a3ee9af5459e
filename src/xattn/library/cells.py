"""Tables as JSON that gives back the same types."""

from base64 import b64decode, b64encode
from datetime import date, datetime, time
from decimal import Decimal
from fractions import Fraction
from typing import Any

from xattn.inputs.table import Table, plain_cell

_WRITERS: dict[type, Any] = {
    bytes: lambda cell: b64encode(cell).decode(),
    Decimal: str,
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    Fraction: str,
    tuple: lambda cell: [_written(item) for item in cell],
}
_READERS: dict[str, Any] = {
    "bytes": b64decode,
    "Decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "Fraction": Fraction,
    "tuple": lambda items: tuple(map(_read, items)),
}


def table_json(table: Table) -> list[Any]:
    """Header and rows as JSON holds them."""
    return [list(table.header), [[_written(cell) for cell in row] for row in table.rows]]


def table_of(content: list[Any]) -> Table:
    """The table that :func:`table_json` was given."""
    header, rows = content
    return Table(tuple(header), tuple(tuple(map(_read, row)) for row in rows))


def _written(cell: Any) -> Any:
    cell = plain_cell(cell)
    write = _WRITERS.get(type(cell))
    return cell if write is None else {type(cell).__name__: write(cell)}


def _read(cell: Any) -> Any:
    if not isinstance(cell, dict):
        return cell
    [(kind, content)] = cell.items()
    return _READERS[kind](content)
