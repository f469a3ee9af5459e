"""Which files are in a library, which passages each has, and where these stand: an SQLite file.

The catalogue says what counts. A file's new passages go to the database first, under a generation
of their own, and become the file's passages in the one transaction that ends it; readers find by
the catalogue what they may show, and so see the old passages until then and the new ones after.
A process may die at any point:

- before rows are written to the database their ids are announced here, so that a later run knows
  which rows may be there, asks for those alone, and embeds none again that it finds;
- rows that a committed file no longer has are noted as leaving in the same transaction, and are
  removed from the database after it, by this run or the next.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xattn.errors import LibraryBusyError, LibraryError, LibraryFormatError
from xattn.library.filters import BUILT_IN, Field, Kind
from xattn.library.indexes import MOST_AT_ONCE
from xattn.library.passage import Passage
from xattn.library.rows import Place

VERSION = 1
BUSY_SECONDS = 10.0
_SCHEMA = (
    """
    CREATE TABLE files (
        source TEXT PRIMARY KEY,
        digest TEXT NOT NULL DEFAULT '',
        size INTEGER NOT NULL DEFAULT -1,
        modified INTEGER NOT NULL DEFAULT -1,
        generation INTEGER NOT NULL DEFAULT 0,
        passages INTEGER NOT NULL DEFAULT 0,
        metadata TEXT NOT NULL DEFAULT '{}',
        problem TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE passages (
        source TEXT NOT NULL,
        generation INTEGER NOT NULL,
        ordinal INTEGER NOT NULL,
        id TEXT NOT NULL,
        start INTEGER NOT NULL,
        "end" INTEGER NOT NULL,
        page INTEGER,
        copy INTEGER NOT NULL,
        PRIMARY KEY (source, generation, ordinal)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX by_id ON passages (id)",
    # Rows that are in the database; of those announced (written = 0), perhaps.
    "CREATE TABLE rows (id TEXT PRIMARY KEY, written INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX announced ON rows (written) WHERE written = 0",
    "CREATE TABLE leaving (id TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE fields (name TEXT PRIMARY KEY, kind TEXT NOT NULL, number INTEGER NOT NULL)",
    # revision: of what readers see; generation: the last one given out; committed: the last one
    # that a file was ended in; unended: whether rows may be there that no file has.
    """
    CREATE TABLE state (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        revision INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        committed INTEGER NOT NULL,
        unended INTEGER NOT NULL
    )
    """,
    "INSERT INTO state VALUES (1, 0, 0, 0, 0)",
)
_OF_ITS_FILE = "JOIN files f ON f.source = p.source AND f.generation = p.generation"


@dataclass(frozen=True, kw_only=True)
class File:
    """A document of the library, as it was when it was read."""

    source: str
    digest: str = ""
    """Of its bytes; empty where it could not be read yet."""
    size: int = -1
    """Bytes."""
    modified: int = -1
    """Nanoseconds since 1970."""
    generation: int = 0
    """In which its passages are written; 0 where it could not be read yet."""
    passages: int = 0
    metadata: str = "{}"
    """That its passages have, as JSON."""
    problem: str = ""
    """Why it could not be read when it was last tried; its passages are then those from before."""


_FILE = tuple(File.__dataclass_fields__)


class Staged(NamedTuple):
    """A passage of a file that is being read."""

    generation: int
    ordinal: int
    """Its number in the file, from 0."""
    id: str
    passage: Passage

    @classmethod
    def of(cls, passage: Passage, generation: int, ordinal: int) -> "Staged":
        """With its id, which is a digest and taken once."""
        return cls(generation, ordinal, passage.id, passage)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How things are at one moment."""

    revision: int
    """Another number after each change of what can be found."""
    generation: int
    """The last one that a file was ended in."""
    unended: bool
    """Whether something is being written, or was when its writer died."""


class Catalogue:
    """The catalogue in ``path``, made if it is not there.

    It may be used from several threads, and by several processes of which one writes. Raises
    :class:`~xattn.errors.LibraryFormatError` for a file that is no catalogue of this version.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.RLock()
        with self._answering():
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with self._answering():
                self._open()
        except BaseException:
            self._connection.close()
            raise

    def _open(self) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            self._connection.execute(f"PRAGMA {pragma}")
        if self._version() == 0:
            with self._transaction() as connection:
                if self._version() == 0:  # nobody was sooner
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {VERSION}")
        version = self._version()
        if version != VERSION:
            raise LibraryFormatError(
                f"{self.path} is a catalogue of version {version}, and this xattn reads "
                f"{VERSION}; update xattn, or make the library again."
            )

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", None) or ""
            if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
                raise LibraryFormatError(
                    f"{self.path} is damaged ({error}); make the library again from its files."
                ) from error
            kind = LibraryBusyError if "BUSY" in name else LibraryError
            raise kind(f"{self.path}: {error}.") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._answering():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _query(self, text: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, self._answering():
            return self._connection.execute(text, values).fetchall()

    # What readers ask

    def standing(self) -> Standing:
        """How things are now."""
        [line] = self._query("SELECT revision, committed, unended FROM state")
        return Standing(revision=line[0], generation=line[1], unended=bool(line[2]))

    def file(self, source: str) -> File | None:
        """One file."""
        return next(iter(self._files("WHERE source = ?", [source])), None)

    def files(self) -> Iterator[File]:
        """All files, by name, read as they are asked for."""
        last, rest = "", "WHERE source > ? ORDER BY source LIMIT 200"
        while found := self._files(rest, [last]):
            yield from found
            last = found[-1].source

    def _files(self, rest: str, values: Sequence[Any]) -> list[File]:
        lines = self._query(f"SELECT {', '.join(_FILE)} FROM files {rest}", values)
        return [File(**dict(zip(_FILE, line, strict=True))) for line in lines]

    def count_files(self) -> int:
        """Files that have been read."""
        return int(self._query("SELECT count(*) FROM files WHERE generation > 0")[0][0])

    def count_passages(self) -> int:
        """Passages of all files."""
        return int(self._query("SELECT coalesce(sum(passages), 0) FROM files")[0][0])

    def places(self, ids: Sequence[str]) -> dict[str, Place]:
        """Where those of ``ids`` stand that are passages of a file."""
        found: dict[str, Place] = {}
        for first in range(0, len(ids), MOST_AT_ONCE):
            some = ids[first : first + MOST_AT_ONCE]
            query = (
                'SELECT p.id, p.source, p.start, p."end", p.page, p.copy '
                f"FROM passages p {_OF_ITS_FILE} WHERE p.id IN ({_marks(some)})"
            )
            for id, source, start, end, page, copy in self._query(query, some):
                found[id] = Place(source=source, start=start, end=end, page=page, copy=copy)
        return found

    def passage_ids(self, source: str | None = None) -> Iterator[list[str]]:
        """Ids of a file's passages in order, or of all, some at a time."""
        of_one = "" if source is None else "AND p.source = ?"
        last: tuple[str, int] = ("", -1)
        while True:
            lines = self._query(
                f"SELECT p.id, p.source, p.ordinal FROM passages p {_OF_ITS_FILE} "
                f"WHERE (p.source, p.ordinal) > (?, ?) {of_one} "
                f"ORDER BY p.source, p.ordinal LIMIT {MOST_AT_ONCE}",
                (*last, *([] if source is None else [source])),
            )
            if not lines:
                return
            yield [line[0] for line in lines]
            last = lines[-1][1:]

    def fields(self) -> list[Field]:
        """What passages can be filtered by."""
        lines = self._query("SELECT name, kind, number FROM fields ORDER BY number")
        own = [Field(name=name, kind=kind, column=f"field_{n}") for name, kind, n in lines]
        return [*BUILT_IN, *own]

    # What the one writer does

    def begin(self) -> int:
        """Say that something is being written; the last generation that was given out."""
        with self._transaction() as connection:
            connection.execute("UPDATE state SET unended = 1")
            return int(connection.execute("SELECT generation FROM state").fetchone()[0])

    def add_field(self, name: str, kind: Kind) -> None:
        """Let passages be filtered by another field."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO fields SELECT ?, ?, count(*) + 1 FROM fields", (name, kind)
            )

    def stage(self, staged: Sequence[Staged]) -> None:
        """Note passages of files that are being read."""
        lines = [
            (p.source, one.generation, one.ordinal, one.id, p.start, p.end, p.page, p.copy)
            for one in staged
            for p in [one.passage]
        ]
        with self._transaction() as connection:
            connection.executemany("INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?, ?, ?)", lines)
            last = max(one.generation for one in staged)
            connection.execute("UPDATE state SET generation = max(generation, ?)", (last,))

    def written(self, ids: Sequence[str]) -> set[str]:
        """Which of ``ids`` have their row in the database already."""
        query = f"SELECT id FROM rows WHERE written = 1 AND id IN ({_marks(ids)})"
        return {line[0] for line in self._query(query, ids)}

    def announce(self, ids: Iterable[str]) -> None:
        """Say that rows of these ids are about to be written."""
        with self._transaction() as connection:
            connection.executemany("INSERT INTO rows VALUES (?, 0)", [(id,) for id in ids])

    def commit(self, written: Iterable[str], ended: Iterable[File]) -> int:
        """Say that rows were written, and that files were read to their end; how many rows leave.

        From here on the passages of these files are those that were staged for them.
        """
        leaving = 0
        with self._transaction() as connection:
            lines = [(id,) for id in written]
            connection.executemany("UPDATE rows SET written = 1 WHERE id = ?", lines)
            for file in ended:
                leaving += _ended(connection, file)
            connection.execute("UPDATE state SET revision = revision + 1")
        return leaving

    def remove(self, source: str) -> int:
        """Take a file out; how many of its passages leave."""
        with self._transaction() as connection:
            leaving = connection.execute(
                "INSERT OR IGNORE INTO leaving SELECT id FROM passages WHERE source = ?", (source,)
            ).rowcount
            for table in ("passages", "files"):
                connection.execute(f"DELETE FROM {table} WHERE source = ?", (source,))
            connection.execute("UPDATE state SET revision = revision + 1")
        return leaving

    def note(self, source: str, *, problem: str = "", seen: tuple[int, int] | None = None) -> None:
        """Note why a file could not be read, or the size and time of one that is as it was."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO files (source) VALUES (?)", (source,))
            connection.execute(
                "UPDATE files SET problem = ? WHERE source = ?", (problem[:1000], source)
            )
            if seen is not None:
                connection.execute(
                    "UPDATE files SET size = ?, modified = ? WHERE source = ?", (*seen, source)
                )

    # What is left to do, by this run or the next

    def announced(self) -> list[str]:
        """Some rows of which nobody knows whether they were written."""
        return [
            line[0]
            for line in self._query(f"SELECT id FROM rows WHERE written = 0 LIMIT {MOST_AT_ONCE}")
        ]

    def settle(self, ids: Sequence[str], present: set[str]) -> None:
        """Say which of the announced rows are there."""
        with self._transaction() as connection:
            there = [(id,) for id in ids if id in present]
            connection.executemany("UPDATE rows SET written = 1 WHERE id = ?", there)
            absent = [(id,) for id in ids if id not in present]
            connection.executemany("DELETE FROM rows WHERE id = ?", absent)

    def discard(self, source: str | None = None) -> None:
        """Forget passages of files that were not read to their end; their rows stay for now."""
        of_one, values = ("", ()) if source is None else ("AND source = ?", (source,))
        with self._transaction() as connection:
            connection.execute(
                "DELETE FROM passages WHERE generation <> coalesce((SELECT generation FROM files f "
                f"WHERE f.source = passages.source), 0) {of_one}",
                values,
            )

    def end(self) -> None:
        """Nothing is being written any more: rows that no file has are leaving."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO leaving SELECT id FROM rows "
                "WHERE id NOT IN (SELECT id FROM passages)"
            )

    def leaving(self) -> list[str]:
        """Some rows that are to be removed from the database."""
        return [line[0] for line in self._query(f"SELECT id FROM leaving LIMIT {MOST_AT_ONCE}")]

    def left(self, ids: Sequence[str]) -> None:
        """Rows are gone from the database."""
        with self._transaction() as connection:
            for table in ("leaving", "rows"):
                connection.execute(f"DELETE FROM {table} WHERE id IN ({_marks(ids)})", ids)

    def rest(self) -> None:
        """All is as it should be: every row has its file."""
        with self._transaction() as connection:
            connection.execute("UPDATE state SET unended = 0")

    # Against a database that lost something

    def count_rows(self) -> int:
        """Rows that should be in the database."""
        return int(self._query("SELECT count(*) FROM rows")[0][0])

    def row_ids(self) -> Iterator[list[str]]:
        """Ids of rows that should be there, some at a time."""
        last = ""
        query = f"SELECT id FROM rows WHERE id > ? ORDER BY id LIMIT {MOST_AT_ONCE}"
        while lines := self._query(query, [last]):
            yield [line[0] for line in lines]
            last = lines[-1][0]

    def lost(self, ids: Sequence[str]) -> None:
        """Rows are not there that should be: their files have to be read again."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE files SET digest = '', size = -1 WHERE source IN "
                f"(SELECT source FROM passages WHERE id IN ({_marks(ids)}))",
                ids,
            )
            connection.execute(f"DELETE FROM rows WHERE id IN ({_marks(ids)})", ids)


def _ended(connection: sqlite3.Connection, file: File) -> int:
    now = (file.source, file.generation)
    leaving = connection.execute(
        "INSERT OR IGNORE INTO leaving SELECT id FROM passages WHERE source = ? "
        "AND generation <> ? EXCEPT SELECT id FROM passages WHERE source = ? AND generation = ?",
        (*now, *now),
    ).rowcount
    connection.execute("DELETE FROM passages WHERE source = ? AND generation <> ?", now)
    connection.execute(
        f"INSERT OR REPLACE INTO files ({', '.join(_FILE)}) VALUES ({_marks(_FILE)})",
        [getattr(file, name) for name in _FILE],
    )
    connection.execute(
        "UPDATE state SET generation = max(generation, ?), committed = max(committed, ?)",
        (file.generation, file.generation),
    )
    return leaving


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
