"""What is in the store and what it is worth: an SQLite index beside the payloads.

Payloads say all there is to know about themselves, so the index may be lost at any time and is made
again from them. Reading a memory needs no index; only what counts, sorts or evicts does.

Eviction is by GreedyDual-Size (Cao and Irani 1997): an entry is worth the seconds of encoding that
it saves for each of its bytes, on top of a clock that is as high as the last entry evicted was
worth. A hit lifts an entry to the present clock, so that what is dear and what is new both stay.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from xattn.errors import StoreUnavailableError

VERSION = 1
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
    uses: int = 0


class Index:
    """The index of one store. One connection per thread; writers wait for each other.

    Raises :class:`StoreUnavailableError` where the file is locked, damaged, or cannot be written;
    a damaged one is set aside, and is empty the next time.
    """

    def __init__(self, path: Path, refill: Callable[[], Iterable[Row]]) -> None:
        self.path, self._refill = path, refill
        self._local = threading.local()
        self._generation = 0

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._connection()
            with connection:  # commits, or rolls back
                yield connection
        except sqlite3.DatabaseError as error:
            self.close()
            damaged = not isinstance(error, sqlite3.OperationalError) or "malformed" in str(error)
            if damaged:
                self._set_aside()
            raise StoreUnavailableError(f"{self.path}: {error}.") from error
        except OSError as error:
            raise StoreUnavailableError(f"{self.path}: {error.strerror or error}.") from error

    def _connection(self) -> sqlite3.Connection:
        found: tuple[int, sqlite3.Connection] | None = getattr(self._local, "held", None)
        if found is not None and found[0] == self._generation and self.path.exists():
            return found[1]
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            [version] = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._make(connection)
            elif version != VERSION:
                raise sqlite3.OperationalError(f"the index has version {version}, not {VERSION}")
        except BaseException:
            connection.close()
            raise
        self._local.held = (self._generation, connection)
        return connection

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
        held: tuple[int, sqlite3.Connection] | None = getattr(self._local, "held", None)
        if held is not None:
            held[1].close()
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
        with self._connected() as connection:
            _insert(connection, rows)

    def touch(self, uses: dict[str, int]) -> None:
        """Note that entries were used so many times."""
        now = time.time()
        with self._connected() as connection:
            [clock] = connection.execute("SELECT worth FROM clock").fetchone()
            connection.executemany(
                "UPDATE entries SET used = ?, uses = uses + ?, "
                "worth = ? + encode_seconds / MAX(size_bytes, 1) WHERE digest = ?",
                [(now, count, clock, digest) for digest, count in uses.items()],
            )

    def remove(self, digests: Iterable[str]) -> None:
        """Forget entries."""
        with self._connected() as connection:
            connection.executemany(
                "DELETE FROM entries WHERE digest = ?", [(digest,) for digest in digests]
            )

    def evicted(self, digest: str) -> None:
        """Forget an entry that had to make room, and set the clock to what it was worth."""
        with self._connected() as connection:
            connection.execute(
                "UPDATE clock SET worth = MAX(worth, COALESCE("
                "(SELECT worth FROM entries WHERE digest = ?), 0))",
                (digest,),
            )
            connection.execute("DELETE FROM entries WHERE digest = ?", (digest,))

    # Reading

    def size_bytes(self, tenant: str | None = None) -> int:
        """Bytes of all entries, or of one tenant's."""
        where, values = _of_tenant(tenant)
        with self._connected() as connection:
            query = f"SELECT COALESCE(SUM(size_bytes), 0) FROM entries {where}"
            return int(connection.execute(query, values).fetchone()[0])

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
        with self._connected() as connection:
            found = connection.execute(f"SELECT {', '.join(names)} FROM entries {rest}", values)
            return [Row(**dict(zip(names, line, strict=True))) for line in found]


def _insert(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    [clock] = connection.execute("SELECT worth FROM clock").fetchone()
    names = [*Row.__dataclass_fields__, "worth"]
    query = f"INSERT OR REPLACE INTO entries ({', '.join(names)}) VALUES ({', '.join('?' * 13)})"
    lines = [(*astuple(row), clock + row.encode_seconds / max(row.size_bytes, 1)) for row in rows]
    connection.executemany(query, lines)


def _of_tenant(tenant: str | None) -> tuple[str, list[Any]]:
    return ("", []) if tenant is None else ("WHERE tenant = ?", [tenant])
