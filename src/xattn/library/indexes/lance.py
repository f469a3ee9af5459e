"""Passages in LanceDB: a database without a server, in the library's own directory."""

import json
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from xattn.errors import LibraryError, MissingExtraError
from xattn.library.embedder import Vectors
from xattn.library.filters import Condition, Field
from xattn.library.passage import Scalar
from xattn.library.rows import Row

ANN_FROM = 100_000
"""Rows from which vectors are searched through an index (IVF with HNSW); below, all are looked at,
which takes milliseconds and misses nothing."""
REFINE = 10
"""So many times more candidates of that index are compared by their exact vectors."""
KEEP = timedelta(hours=1)
"""How long versions stay that another process may be reading."""
_COLUMNS = ("id", "source", "title", "words", "rest", "generation")


class LanceIndex:
    """A ``table`` in ``directory``; made if it is not there."""

    def __init__(
        self,
        directory: Path,
        *,
        table: str,
        dimensions: int,
        language: str,
        ann_from: int = ANN_FROM,
    ) -> None:
        try:
            import lancedb
            import pyarrow as pa
        except ImportError as error:
            raise MissingExtraError("lancedb", "library", "a library of passages") from error
        self._pa: Any = pa
        self._directory, self._name, self._ann_from = directory, table, ann_from
        with _answering(directory):
            # At an age of 0 each call looks for what other processes wrote.
            self._database: Any = lancedb.connect(directory, read_consistency_interval=timedelta(0))
            if table in self._database.list_tables().tables:
                self._table: Any = self._database.open_table(table)
            else:
                self._table = self._make(dimensions, language)

    def _make(self, dimensions: int, language: str) -> Any:
        from lancedb.index import FTS, BTree

        pa = self._pa
        kinds = dict.fromkeys(_COLUMNS, pa.string()) | {"generation": pa.int64()}
        schema = pa.schema([*kinds.items(), ("vector", pa.list_(pa.float32(), dimensions))])
        table = self._database.create_table(self._name, schema=schema)
        table.create_index("id", config=BTree())
        table.create_index("words", config=FTS(language=language.capitalize()))
        return table

    def add_fields(self, fields: Sequence[Field]) -> None:
        """Add columns, empty for the rows that are there."""
        pa = self._pa
        kinds = {"text": pa.string(), "number": pa.float64(), "truth": pa.bool_()}
        with _answering(self._directory):
            known = set(self._table.schema.names)
            new = [pa.field(f.column, kinds[f.kind]) for f in fields if f.column not in known]
            if new:
                self._table.add_columns(pa.schema(new))

    def add(self, rows: Sequence[Row], vectors: Vectors) -> None:
        """Add rows in one new version of the table."""
        pa = self._pa
        with _answering(self._directory):
            schema = self._table.schema
            flat = pa.array(vectors.reshape(-1), pa.float32())
            lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
            columns = {"vector": lists} | {
                name: pa.array([_value(row, name) for row in rows], schema.field(name).type)
                for name in schema.names
                if name != "vector"
            }
            self._table.add(pa.table(columns, schema=schema))

    def remove(self, ids: Sequence[str]) -> None:
        """Remove rows in one new version of the table."""
        if ids:
            with _answering(self._directory):
                self._table.delete(_among("id", ids))

    def present(self, ids: Sequence[str]) -> set[str]:
        """Which of ``ids`` are there."""
        return {line["id"] for line in self._lines(ids, ["id"])}

    def rows(self, ids: Sequence[str]) -> list[Row]:
        """Those of ``ids`` that are there."""
        return [Row(**line) for line in self._lines(ids, list(_COLUMNS))]

    def _lines(self, ids: Sequence[str], columns: list[str]) -> list[dict[str, Any]]:
        if not ids:
            return []
        with _answering(self._directory):
            query = self._table.search().where(_among("id", ids)).select(columns)
            return list(query.limit(len(ids)).to_list())

    def search_vectors(self, vector: Vectors, k: int, where: Sequence[Condition]) -> list[str]:
        """The nearest rows, of those that ``where`` lets through."""
        with _answering(self._directory):
            query = self._table.search(vector, vector_column_name="vector")
            query = query.distance_type("cosine").refine_factor(REFINE)
            return _ranked(query, k, where, "_distance", lambda line: line["_distance"])

    def search_words(self, text: str, k: int, where: Sequence[Condition]) -> list[str]:
        """Rows with words of ``text``; stop words and signs find nothing."""
        from lancedb.query import MatchQuery

        match: Any = MatchQuery  # whose defaults its types do not tell
        with _answering(self._directory):
            query = self._table.search(match(text, "words"), query_type="fts")
            return _ranked(query, k, where, "_score", lambda line: -line["_score"])

    def count(self) -> int:
        """Rows of the newest version."""
        with _answering(self._directory):
            return int(self._table.count_rows())

    def ids(self) -> Iterator[list[str]]:
        """All ids, some at a time."""
        with _answering(self._directory):
            for batch in self._table.search().select(["id"]).to_batches(batch_size=1000):
                yield batch.column("id").to_pylist()

    def tidy(self, *, alone: bool) -> None:
        """Merge fragments, bring the indexes up to date, and remove old versions."""
        from lancedb.index import HnswSq

        with _answering(self._directory), warnings.catch_warnings():
            # That nobody else reads, or none for long, is what ``alone`` says.
            warnings.filterwarnings("ignore", "optimize", UserWarning)
            has_index = any(index.columns == ["vector"] for index in self._table.list_indices())
            if not has_index and self._table.count_rows() >= self._ann_from:
                self._table.create_index("vector", config=HnswSq(distance_type="cosine"))
            keep = timedelta(0) if alone else KEEP
            self._table.optimize(cleanup_older_than=keep, delete_unverified=alone)

    def drop(self) -> None:
        """Remove the table."""
        with _answering(self._directory):
            self._database.drop_table(self._name)

    def close(self) -> None:
        """Nothing is held open."""


def _value(row: Row, column: str) -> Scalar | None:
    return getattr(row, column) if column in _COLUMNS else row.fields.get(column)


def _ranked(
    query: Any, k: int, where: Sequence[Condition], score: str, order: Callable[[Any], float]
) -> list[str]:
    """Ids in order, those of one score by themselves: LanceDB says nothing of ties."""
    filtered = " AND ".join(map(_sql, where))
    if filtered:
        query = query.where(filtered, prefilter=True)
    lines = query.limit(k).select(["id", score]).to_list()
    return [line["id"] for line in sorted(lines, key=lambda line: (order(line), line["id"]))]


def _sql(condition: Condition) -> str:
    if condition.any_of:
        return _among(condition.column, condition.any_of)
    bounds = ((">=", condition.least), ("<=", condition.most))
    given = [(sign, value) for sign, value in bounds if value is not None]
    return " AND ".join(f"{condition.column} {sign} {_literal(value)}" for sign, value in given)


def _among(column: str, values: Sequence[Scalar]) -> str:
    return f"{column} IN ({', '.join(map(_literal, values))})"


def _literal(value: Scalar) -> str:
    if isinstance(value, str):
        quoted = value.replace("'", "''")
        return f"'{quoted}'"
    return json.dumps(value)


@contextmanager
def _answering(directory: Path) -> Iterator[None]:
    """Within it, an error of LanceDB is a :class:`LibraryError` that names the directory."""
    try:
        yield
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        remedy = shlex.join(["xattn", "index", "--again", "--library", str(directory)])
        raise LibraryError(
            f"{directory}: the database does not answer: {reason.removesuffix('.')}. If it is "
            f"damaged, make it anew from the files with: {remedy}"
        ) from error
