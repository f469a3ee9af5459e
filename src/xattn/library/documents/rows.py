"""Files of records: their rows in blocks, so that as few as are needed are in memory at once."""

import csv
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date, time
from decimal import Decimal
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from xattn.errors import InvalidSourceError, MissingExtraError
from xattn.inputs.table import Table
from xattn.library.documents.document import Content
from xattn.library.documents.files import LINE_CHARACTERS, parsing, records_of, unreadable
from xattn.library.passage import Section

BLOCK_ROWS = 256
_NAMING_ROWS = 256
"""Records of a file of JSON lines that are looked at before the first row: which fields it has."""

Row = tuple[tuple[str, ...], tuple[Any, ...]]
"""Names of the columns, and the cells."""


def read_csv(path: Path) -> Content:
    """Comma-separated values, or tab-separated ones, as :func:`~xattn.inputs.table.read_table`."""
    return Content(path.stem, lambda: _sections(_csv_rows(path)))


def read_jsonl(path: Path) -> Content:
    """A record in each line: its fields are columns, the absent ones empty.

    Columns are the fields of the first records; a new one further on is a column from there.
    """
    return Content(path.stem, lambda: _sections(_json_rows(path)))


def read_parquet(path: Path) -> Content:
    """A Parquet file. Raises :class:`MissingExtraError` and :class:`UnreadableSourceError`."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "library", f"reading {path.name!r} (Parquet)") from error

    @contextmanager
    def opened(**options: Any) -> Iterator[parquet.ParquetFile]:
        # Given a path, it would leave a damaged file open.
        with (
            parsing(path),
            pyarrow.OSFile(str(path)) as handle,
            parquet.ParquetFile(handle, **options) as file,
        ):
            yield file

    with opened() as file:
        names = tuple(file.schema_arrow.names)

    def rows() -> Iterator[Row]:
        # Without read-ahead, which would keep whole row groups.
        with opened(pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=BLOCK_ROWS) if names else ():
                columns = [column.to_pylist() for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    yield names, tuple(map(_cell, cells))

    return Content(path.stem, lambda: _sections(rows()))


def _sections(rows: Iterator[Row]) -> Iterator[Section]:
    first = 1
    for header, run in groupby(rows, key=itemgetter(0)):
        while block := tuple(cells for _, cells in islice(run, BLOCK_ROWS)):
            yield Section(text="", start=0, table=Table(header, block), first_row=first)
            first += len(block)


def _csv_rows(path: Path) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    csv.field_size_limit(LINE_CHARACTERS)  # of the process; the file's reader bounds records
    with closing(records_of(path)) as records:
        lines = csv.reader(records, delimiter=delimiter, strict=True)
        rows = filter(None, lines)
        try:
            header = tuple(next(rows, ()))
            for row in rows:
                if len(row) != len(header):
                    raise InvalidSourceError(
                        f"{str(path)!r}: the row that ends in line {lines.line_num} has "
                        f"{len(row)} cells between {delimiter!r}, but the header has "
                        f"{len(header)}; correct it."
                    )
                yield header, tuple(row)
        except csv.Error as error:
            raise unreadable(
                path, f"is badly quoted near line {lines.line_num}: {error}. Correct it"
            ) from error


def _json_rows(path: Path) -> Iterator[Row]:
    with closing(records_of(path)) as lines:
        records = _json_records(path, lines)
        first = list(islice(records, _NAMING_ROWS))
        names = dict.fromkeys(name for record in first for name in record)
        for record in chain(first, records):
            names.update(dict.fromkeys(record))
            if names:
                yield tuple(names), tuple(_cell(record.get(name)) for name in names)


def _json_records(path: Path, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "\\u" in line:  # what stands for half a surrogate pair has no bytes
                json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise unreadable(path, f"has no JSON in line {number}: {error}. Correct it") from error
        if not isinstance(record, dict):
            raise unreadable(
                path, f"must have an object in each line, but line {number} is {line.strip():.80}"
            )
        yield record


def _cell(value: Any) -> Any:
    """What a table's cell can be; anything else as JSON."""
    if value is None or isinstance(value, str | bytes | bool | int | float | Decimal | date | time):
        return value
    if isinstance(value, list) and not any(isinstance(one, dict | list | tuple) for one in value):
        return tuple(map(_cell, value))
    return json.dumps(value, ensure_ascii=False, default=str)
