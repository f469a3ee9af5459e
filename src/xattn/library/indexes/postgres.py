"""Passages on a PostgreSQL server with pgvector: one database for many machines."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from xattn.errors import LibraryError, MissingExtraError
from xattn.library.embedder import Vectors
from xattn.library.filters import Condition, Field
from xattn.library.indexes import MOST_AT_ONCE
from xattn.library.rows import Row

ANN_FROM = 100_000
"""Rows from which vectors are searched through an index (HNSW); below, all are looked at."""
MOST_ANN_DIMENSIONS = 2000
"""That pgvector has such an index for."""
_COLUMNS = ("id", "source", "title", "words", "rest", "generation")
_KINDS = {"text": 'text COLLATE "C"', "number": "double precision", "truth": "boolean"}
# BM25 as Lucene and LanceDB have it: k1 = 1.2, b = 0.75, and an inverse document frequency that is
# never below 0. How many passages have a word is counted before the filter, as there.
_BM25 = """
WITH asked AS (SELECT lexeme FROM unnest(to_tsvector(%s::regconfig, %s))),
corpus AS (
    SELECT count(*)::float8 AS many, greatest(avg(length), 1)::float8 AS mean FROM {table}
),
hits AS (
    SELECT id, length, ({where}) AS fits, lexeme, cardinality(positions)::float8 AS times
    FROM {table}, unnest(terms) WHERE lexeme IN (SELECT lexeme FROM asked) AND terms @@ (
        SELECT string_agg(
            '''' || replace(replace(lexeme, '\\', '\\\\'), '''', '''''') || '''', ' | '
        ) FROM asked
    )::tsquery
),
known AS (SELECT lexeme, count(*)::float8 AS holders FROM hits GROUP BY lexeme)
SELECT id FROM hits JOIN known USING (lexeme), corpus WHERE fits GROUP BY id ORDER BY sum(
    ln(1 + (many - holders + 0.5) / (holders + 0.5))
    * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length / mean))
) DESC, id LIMIT %s
"""


class PostgresIndex:
    """The table ``passages`` in ``schema`` of a database; made if it is not there.

    ``database`` is a connection string or URL as libpq reads it, and so are the variables
    ``PGPASSWORD`` and others.
    """

    def __init__(
        self,
        database: str,
        *,
        schema: str,
        dimensions: int,
        language: str,
        ann_from: int = ANN_FROM,
    ) -> None:
        self._psycopg = _psycopg()
        self._schema, self._table = schema, f"{schema}.passages"
        self._dimensions, self._language, self._ann_from = dimensions, language, ann_from
        with self._answering():
            self._connection: Any = self._psycopg.connect(database, autocommit=True)
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        columns = ", ".join(f"{name} {_KINDS['text']} NOT NULL" for name in _COLUMNS[:-1])
        with self._transaction() as connection:
            # Where it is there already, nobody need have the right to make it.
            if not connection.execute(
                "SELECT 1 FROM pg_extension WHERE extname = 'vector'"
            ).rowcount:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self._schema}")
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {self._table} ({columns}, generation bigint NOT NULL, "
                f"terms tsvector NOT NULL, length integer NOT NULL, "
                f"vector vector({self._dimensions}) NOT NULL, PRIMARY KEY (id))"
            )
            connection.execute(
                f"CREATE INDEX IF NOT EXISTS passages_terms ON {self._table} USING gin (terms)"
            )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.Error as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise LibraryError(f"the database does not answer: {reason}") from error

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._answering(), self._connection.transaction():
            yield self._connection

    def _lines(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._answering():
            return list(self._connection.execute(query, values).fetchall())

    def add_fields(self, fields: Sequence[Field]) -> None:
        """Add columns, empty for the rows that are there."""
        with self._transaction() as connection:
            for field in fields:
                connection.execute(
                    f"ALTER TABLE {self._table} ADD COLUMN IF NOT EXISTS "
                    f"{field.column} {_KINDS[field.kind]}"
                )

    def add(self, rows: Sequence[Row], vectors: Vectors) -> None:
        """Add rows in one transaction."""
        fields = sorted({name for row in rows for name in row.fields})
        columns = (*_COLUMNS, *fields, "vector", "terms", "length")
        marks = ", ".join(["%s"] * (len(_COLUMNS) + len(fields)))
        terms = "to_tsvector(%s::regconfig, %s)"
        length = f"(SELECT coalesce(sum(cardinality(positions)), 0) FROM unnest({terms}))"
        insert = (
            f"INSERT INTO {self._table} ({', '.join(columns)}) "
            f"VALUES ({marks}, %s::vector, {terms}, {length})"
        )
        lines = []
        for row, vector in zip(rows, vectors, strict=True):
            own = [_text(getattr(row, name)) for name in _COLUMNS]
            own += [_text(row.fields.get(name)) for name in fields]
            searched = (self._language, _text(row.words)) * 2
            lines.append((*own, _vector(vector), *searched))
        with self._transaction() as connection, connection.cursor() as cursor:
            cursor.executemany(insert, lines)

    def remove(self, ids: Sequence[str]) -> None:
        """Remove rows in one transaction."""
        with self._transaction() as connection:
            connection.execute(f"DELETE FROM {self._table} WHERE id = ANY(%s)", (list(ids),))

    def present(self, ids: Sequence[str]) -> set[str]:
        """Which of ``ids`` are there."""
        query = f"SELECT id FROM {self._table} WHERE id = ANY(%s)"
        return {line[0] for line in self._lines(query, (list(ids),))}

    def rows(self, ids: Sequence[str]) -> list[Row]:
        """Those of ``ids`` that are there."""
        query = f"SELECT {', '.join(_COLUMNS)} FROM {self._table} WHERE id = ANY(%s)"
        lines = self._lines(query, (list(ids),))
        return [Row(**dict(zip(_COLUMNS, line, strict=True))) for line in lines]

    def search_vectors(self, vector: Vectors, k: int, where: Sequence[Condition]) -> list[str]:
        """The nearest rows, of those that ``where`` lets through."""
        filtered, values = _filter(where)
        query = (
            f"SELECT id FROM {self._table} WHERE {filtered} "
            "ORDER BY vector <=> %s::vector, id LIMIT %s"
        )
        with self._transaction() as connection:
            # Of the index: how many it looks at, and that a filter makes it look on.
            connection.execute(f"SET LOCAL hnsw.ef_search = {min(1000, max(100, 2 * k))}")
            connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
            found = connection.execute(query, (*values, _vector(vector), k))
            return [line[0] for line in found.fetchall()]

    def search_words(self, text: str, k: int, where: Sequence[Condition]) -> list[str]:
        """Rows with words of ``text``; stop words and signs find nothing."""
        filtered, values = _filter(where)
        query = _BM25.format(table=self._table, where=filtered)
        found = self._lines(query, (self._language, _text(text), *values, k))
        return [line[0] for line in found]

    def count(self) -> int:
        """Rows that are there."""
        return int(self._lines(f"SELECT count(*) FROM {self._table}")[0][0])

    def ids(self) -> Iterator[list[str]]:
        """All ids, some at a time."""
        last = ""
        query = f"SELECT id FROM {self._table} WHERE id > %s ORDER BY id LIMIT {MOST_AT_ONCE}"
        while lines := self._lines(query, (last,)):
            yield [line[0] for line in lines]
            last = lines[-1][0]

    def tidy(self, *, alone: bool) -> None:
        """Let the server plan by what is there now, and index vectors where they are many."""
        if self.count() >= self._ann_from and self._dimensions <= MOST_ANN_DIMENSIONS:
            with self._transaction() as connection:
                connection.execute(
                    f"CREATE INDEX IF NOT EXISTS passages_vector ON {self._table} "
                    "USING hnsw (vector vector_cosine_ops)"
                )
        with self._answering():
            self._connection.execute(f"ANALYZE {self._table}")

    def drop(self) -> None:
        """Remove the schema and all in it."""
        with self._transaction() as connection:
            connection.execute(f"DROP SCHEMA IF EXISTS {self._schema} CASCADE")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def without_password(database: str) -> str:
    """How a server is reached, as a connection string; :class:`LibraryError` for what is none."""
    psycopg = _psycopg()
    try:
        parts = psycopg.conninfo.conninfo_to_dict(database)
    except psycopg.ProgrammingError as error:
        raise LibraryError(f"the database's URL cannot be read: {error}") from error
    return str(psycopg.conninfo.make_conninfo(**{**parts, "password": None}))


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtraError("psycopg", "postgres", "a library on a server") from error
    return psycopg


def _text(value: Any) -> Any:
    """PostgreSQL holds no zero characters; another in their place keeps all offsets."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _vector(vector: Vectors) -> str:
    return f"[{','.join(map(repr, vector.tolist()))}]"


def _filter(where: Sequence[Condition]) -> tuple[str, list[Any]]:
    parts: list[str] = ["true"]
    values: list[Any] = []
    for condition in where:
        if condition.any_of:
            parts.append(f"{condition.column} = ANY(%s)")
            values.append(list(condition.any_of))
        for sign, bound in ((">=", condition.least), ("<=", condition.most)):
            if bound is not None:
                parts.append(f"{condition.column} {sign} %s")
                values.append(bound)
    return " AND ".join(parts), values
