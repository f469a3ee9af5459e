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
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from xattn.errors import StoreUnavailableError, UnsafeStoreError
from xattn.memory import digest_of

T = TypeVar("T")

VERSION = 3
NAME = f"index-{VERSION}.sqlite"
"""Another version has a file of its own, and each is made again from the payloads."""
BUSY_SECONDS = 3.0
PAGE = 64
"""Rows that are read at once where few may be needed."""
_NO_DAMAGE = (
    "BUSY",
    "LOCKED",
    "READONLY",
    "FULL",
    "IOERR",
    "CANTOPEN",
    "NOMEM",
    "PERM",
    "INTERRUPT",
)
"""Errors of SQLite, by the beginnings of their names, that say nothing of what is in the file."""
_SCHEMA = (
    """
    CREATE TABLE entries (
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
        relative_l2 REAL NOT NULL,
        largest REAL NOT NULL,
        used REAL NOT NULL,
        uses INTEGER NOT NULL,
        worth REAL NOT NULL,
        seal TEXT NOT NULL
    ) WITHOUT ROWID
    """,
    "CREATE INDEX by_worth ON entries (worth, used, digest)",
    "CREATE INDEX by_tenant ON entries (tenant, worth, used, digest)",
    "CREATE INDEX by_expiry ON entries (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE clock (one INTEGER PRIMARY KEY CHECK (one = 1), worth REAL NOT NULL)",
    "INSERT INTO clock VALUES (1, 0.0)",
    # Bytes of each tenant, kept by the database: to sum all entries for each put is slow.
    "CREATE TABLE held (tenant TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL) WITHOUT ROWID",
    """
    CREATE TRIGGER added AFTER INSERT ON entries BEGIN
        INSERT INTO held VALUES (new.tenant, new.size_bytes)
        ON CONFLICT (tenant) DO UPDATE SET size_bytes = size_bytes + new.size_bytes;
    END
    """,
    """
    CREATE TRIGGER removed AFTER DELETE ON entries BEGIN
        UPDATE held SET size_bytes = size_bytes - old.size_bytes WHERE tenant = old.tenant;
    END
    """,
)
_SEALED = (
    "digest", "tenant", "size_bytes", "encode_seconds", "modality", "codec", "positions", "label",
    "created", "expires", "relative_l2", "largest",
)  # fmt: skip
"""What the payload says of an entry, and use does not change."""


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
    worth: float = 0.0
    """Where it stands in the order of eviction; the index says so."""


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
            return self._once(work)

    def _once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        inode = self._inode()
        try:
            connection = self._connection()
            with connection:  # commits, or rolls back
                return work(connection)
        except (sqlite3.Error, UnicodeError, DamagedIndexError) as error:
            self.close()
            name = getattr(error, "sqlite_errorname", None) or ""
            if name.removeprefix("SQLITE_").startswith(_NO_DAMAGE):
                raise StoreUnavailableError(f"{self.path}: {error}.") from error
            if inode and inode == self._inode():  # else somebody has made it again
                self._set_aside()
            raise DamagedIndexError(f"{self.path}: {error}.") from error
        except OSError as error:
            raise StoreUnavailableError(f"{self.path}: {error.strerror or error}.") from error

    def _connection(self) -> sqlite3.Connection:
        held: _Connected | None = getattr(self._local, "held", None)
        now = (os.getpid(), self._generation, self._inode())
        if held is not None and held.when == now:
            return held.connection
        if held is not None and held.when[0] != now[0]:
            _LEFT_OPEN.append(held.connection)
        if self.path.is_symlink():
            raise UnsafeStoreError(f"{self.path} is a link, which a store never makes; remove it.")
        where = self.path if os.access(self.path.parent, os.W_OK) else ":memory:"
        connection = sqlite3.connect(where, timeout=BUSY_SECONDS)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            [version] = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._make(connection)
            elif version != VERSION:
                raise DamagedIndexError(f"its version is {version}, not {VERSION}")
        except BaseException:
            connection.close()
            raise
        when = (os.getpid(), self._generation, self._inode())
        self._local.held = _Connected(when, connection)
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
            for statement in _SCHEMA:
                connection.execute(statement)
            _insert(connection, self._refill())
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.commit()

    def close(self) -> None:
        """Close this thread's connection; the next call opens another."""
        held: _Connected | None = getattr(self._local, "held", None)
        if held is not None and held.when[0] == os.getpid():
            held.connection.close()
            self._local.held = None
        self._generation += 1

    def _set_aside(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            file = self.path.with_name(self.path.name + suffix)
            with suppress(FileNotFoundError):
                file.replace(file.with_name(f"{file.name}.damaged-{time.time_ns()}"))

    def check(self) -> None:
        """Look through all of it; what is damaged is made again."""

        def work(connection: sqlite3.Connection) -> None:
            [said] = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if said != "ok":
                raise DamagedIndexError(said)

        self._do(work)

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
        query = f"SELECT COALESCE(SUM(size_bytes), 0) FROM held {where}"
        return int(self._do(lambda c: c.execute(query, values).fetchone()[0]))

    def expired(self, tenant: str | None = None) -> list[Row]:
        """Entries whose time is over."""
        where, values = _of_tenant(tenant)
        and_ = "AND" if where else "WHERE"
        return self._rows(f"{where} {and_} expires < ?", [*values, time.time()])

    def cheapest(self, tenant: str | None = None) -> Iterator[Row]:
        """Entries, those first that are worth least, read as they are asked for."""
        where, values = _of_tenant(tenant)
        and_ = "AND" if where else "WHERE"
        rest = f"{where} {and_} (worth, used, digest) > (?, ?, ?) ORDER BY worth, used, digest"
        last: tuple[Any, ...] = (-1.0, 0.0, "")
        while rows := self._rows(f"{rest} LIMIT {PAGE}", [*values, *last]):
            yield from rows
            last = (rows[-1].worth, rows[-1].used, rows[-1].digest)

    def rows(self, tenant: str | None = None) -> list[Row]:
        """All entries, the newest first."""
        where, values = _of_tenant(tenant)
        return self._rows(f"{where} ORDER BY created DESC, digest", values)

    def get(self, digest: str) -> Row | None:
        """One entry."""
        return next(iter(self._rows("WHERE digest = ?", [digest])), None)

    def _rows(self, rest: str, values: list[Any]) -> list[Row]:
        names = list(Row.__dataclass_fields__)
        query = f"SELECT {', '.join(names)}, seal FROM entries {rest}"

        def work(connection: sqlite3.Connection) -> list[Row]:
            found = []
            for *line, seal in connection.execute(query, values):
                row = Row(**dict(zip(names, line, strict=True)))
                if seal != _seal(row):
                    raise DamagedIndexError("a row is not what was written")
                found.append(row)
            return found

        return self._do(work)


class _Connected(NamedTuple):
    """A connection, and where and when it was opened: process, generation, inode of the file."""

    when: tuple[int, int, int]
    connection: sqlite3.Connection


_LEFT_OPEN: list[sqlite3.Connection] = []
"""Connections that a fork has inherited: even closing them would let go of the parent's locks."""


def _seal(row: Row) -> str:
    """A few characters that say whether a row is what was written."""
    values = [getattr(row, name) for name in _SEALED]
    return digest_of(repr(values).encode("utf-8", "surrogatepass"))[:16]


def _insert(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    [clock] = connection.execute("SELECT worth FROM clock").fetchone()
    names = [*Row.__dataclass_fields__, "seal"]
    marks = ", ".join("?" * len(names))
    for row in rows:
        worth = clock + row.encode_seconds / max(row.size_bytes, 1)
        connection.execute("DELETE FROM entries WHERE digest = ?", (row.digest,))
        connection.execute(
            f"INSERT INTO entries ({', '.join(names)}) VALUES ({marks})",
            (*astuple(replace(row, worth=worth)), _seal(row)),
        )


def _of_tenant(tenant: str | None) -> tuple[str, list[Any]]:
    return ("", []) if tenant is None else ("WHERE tenant = ?", [tenant])
