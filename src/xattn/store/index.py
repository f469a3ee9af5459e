"""What is in the store and what it is worth: an SQLite index beside the payloads.

Payloads say all there is to know about themselves, so the index may be lost at any time and is made
again from them. Reading a memory needs no index; only what counts, sorts or evicts does.

Eviction is by GreedyDual-Size (Cao and Irani 1997): an entry is worth the seconds of encoding that
it saves for each of its bytes, on top of a clock that is as high as the last entry evicted was
worth. A hit lifts an entry to the present clock, so that what is dear and what is new both stay.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

from xattn.errors import StoreUnavailableError, UnsafeStoreError

T = TypeVar("T")

VERSION = 2
NAME = f"index-{VERSION}.sqlite"
"""Another version has a file of its own, and each is made again from the payloads."""
BUSY_SECONDS = 3.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    digest TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    encode_seconds REAL NOT NULL,
    modality TEXT NOT NULL,
    codec TEXT NOT NULL,
    positions INTEGER NOT NULL,
    label TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL,
    used REAL NOT NULL,
    uses INTEGER NOT NULL DEFAULT 0,
    relative_l2 REAL NOT NULL,
    largest REAL NOT NULL,
    worth REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entries_by_worth ON entries (worth);
CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY CHECK (one = 1), worth REAL NOT NULL);
INSERT OR IGNORE INTO clock VALUES (1, 0.0);
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One entry as the index knows it."""

    digest: str
    tenant: str
    size_bytes: int
    encode_seconds: float
    modality: str
    codec: str
    positions: int
    label: str
    created: float
    expires: float | None
    used: float
    relative_l2: float
    """What the codec lost: length of the difference over length of the states."""
    largest: float
    """Largest difference of one number."""
    uses: int = 0


class DamagedIndexError(StoreUnavailableError):
    """The file is no index; what it said can be made again."""


class Index:
    """The index of one store. One connection per thread; writers wait for each other.

    A damaged one is set aside and made again from the payloads; so is one that was lost. On a disk
    that cannot be written it is made in memory. Raises :class:`StoreUnavailableError` where the
    file is locked or cannot be written.
    """

    def __init__(self, root: Path, refill: Callable[[], Iterable[Row]]) -> None:
        self.path, self._refill = root / NAME, refill
        self._local = threading.local()
        self._generation = 0

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._once(work)
        except DamagedIndexError:
            self._set_aside()
            return self._once(work)

    def _once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._connection()
            with connection:  # commits, or rolls back
                return work(connection)
        except sqlite3.DatabaseError as error:
            self.close()
            harmless = (sqlite3.OperationalError, sqlite3.IntegrityError)
            damaged = not isinstance(error, harmless) or "malformed" in str(error)
            kind = DamagedIndexError if damaged else StoreUnavailableError
            raise kind(f"{self.path}: {error}.") from error
        except OSError as error:
            raise StoreUnavailableError(f"{self.path}: {error.strerror or error}.") from error

    def _connection(self) -> sqlite3.Connection:
        held: tuple[int, int, sqlite3.Connection] | None = getattr(self._local, "held", None)
        if held is not None and held[:2] == (self._generation, self._inode()):
            return held[2]
        readable_only = not os.access(self.path.parent, os.W_OK)
        if self.path.is_symlink():
            raise UnsafeStoreError(f"{self.path} is a link, which a store never makes; remove it.")
        connection = sqlite3.connect(
            ":memory:" if readable_only else self.path, timeout=BUSY_SECONDS
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            [version] = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._make(connection)
        except BaseException:
            connection.close()
            raise
        self._local.held = (self._generation, self._inode(), connection)
        return connection

    def _inode(self) -> int:
        """Which file the path is now: another process may have set aside the one that is open."""
        try:
            return self.path.stat().st_ino
        except FileNotFoundError:
            return 0

    def _make(self, connection: sqlite3.Connection) -> None:
        """Make the tables, and fill them from the payloads, once for all who find none."""
        connection.execute("BEGIN IMMEDIATE")
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            _insert(connection, self._refill())
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.commit()

    def close(self) -> None:
        """Close this thread's connection; the next call opens another."""
        held: tuple[int, int, sqlite3.Connection] | None = getattr(self._local, "held", None)
        if held is not None:
            held[2].close()
            self._local.held = None
        self._generation += 1

    def _set_aside(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            file = self.path.with_name(self.path.name + suffix)
            if file.exists():
                file.replace(file.with_name(f"{file.name}.damaged-{time.time_ns()}"))

    # Writing

    def put(self, rows: Iterable[Row]) -> None:
        """Add entries, or replace them."""
        self._do(lambda connection: _insert(connection, rows))

    def touch(self, uses: dict[str, int]) -> None:
        """Note that entries were used so many times."""
        now = time.time()

        def work(connection: sqlite3.Connection) -> None:
            [clock] = connection.execute("SELECT worth FROM clock").fetchone()
            connection.executemany(
                "UPDATE entries SET used = ?, uses = uses + ?, "
                "worth = ? + encode_seconds / MAX(size_bytes, 1) WHERE digest = ?",
                [(now, count, clock, digest) for digest, count in uses.items()],
            )

        self._do(work)

    def remove(self, digests: Iterable[str]) -> None:
        """Forget entries."""
        lines = [(digest,) for digest in digests]
        self._do(lambda c: c.executemany("DELETE FROM entries WHERE digest = ?", lines))

    def evicted(self, digest: str) -> None:
        """Forget an entry that had to make room, and set the clock to what it was worth."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE clock SET worth = MAX(worth, COALESCE("
                "(SELECT worth FROM entries WHERE digest = ?), 0))",
                (digest,),
            )
            connection.execute("DELETE FROM entries WHERE digest = ?", (digest,))

        self._do(work)

    # Reading

    def size_bytes(self, tenant: str | None = None) -> int:
        """Bytes of all entries, or of one tenant's."""
        where, values = _of_tenant(tenant)
        query = f"SELECT COALESCE(SUM(size_bytes), 0) FROM entries {where}"
        return int(self._do(lambda c: c.execute(query, values).fetchone()[0]))

    def cheapest(self, tenant: str | None = None, *, limit: int = 64) -> list[Row]:
        """Entries that are worth least, those first that have expired."""
        where, values = _of_tenant(tenant)
        order = "ORDER BY (expires IS NOT NULL AND expires < ?) DESC, worth, used, digest LIMIT ?"
        return self._rows(f"{where} {order}", [*values, time.time(), limit])

    def rows(self, tenant: str | None = None) -> list[Row]:
        """All entries, the newest first."""
        where, values = _of_tenant(tenant)
        return self._rows(f"{where} ORDER BY created DESC, digest", values)

    def get(self, digest: str) -> Row | None:
        """One entry."""
        return next(iter(self._rows("WHERE digest = ?", [digest])), None)

    def _rows(self, rest: str, values: list[Any]) -> list[Row]:
        names = list(Row.__dataclass_fields__)
        query = f"SELECT {', '.join(names)} FROM entries {rest}"
        lines = self._do(lambda c: c.execute(query, values).fetchall())
        return [Row(**dict(zip(names, line, strict=True))) for line in lines]


def _insert(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    [clock] = connection.execute("SELECT worth FROM clock").fetchone()
    names = [*Row.__dataclass_fields__, "worth"]
    marks = ", ".join("?" * len(names))
    query = f"INSERT OR REPLACE INTO entries ({', '.join(names)}) VALUES ({marks})"
    lines = [(*astuple(row), clock + row.encode_seconds / max(row.size_bytes, 1)) for row in rows]
    connection.executemany(query, lines)


def _of_tenant(tenant: str | None) -> tuple[str, list[Any]]:
    return ("", []) if tenant is None else ("WHERE tenant = ?", [tenant])
