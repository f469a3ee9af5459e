"""What one run has to remember of as many things as there are: in a file that vanishes with it."""

import sqlite3
from collections.abc import Iterator
from typing import Self


class _Scratch:
    """A private database of SQLite, in memory while it is small."""

    def __init__(self, table: str) -> None:
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", table):
            self._connection.execute(statement)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


class Counts(_Scratch):
    """How often each of some texts was seen."""

    def __init__(self) -> None:
        super().__init__("CREATE TABLE counts (text TEXT PRIMARY KEY, count INTEGER) WITHOUT ROWID")

    def add(self, text: str) -> int:
        """Count ``text``; how often it was seen before."""
        self._connection.execute(
            "INSERT INTO counts VALUES (?, 0) ON CONFLICT DO UPDATE SET count = count + 1", (text,)
        )
        query = "SELECT count FROM counts WHERE text = ?"
        return int(self._connection.execute(query, (text,)).fetchone()[0])


class Seen(_Scratch):
    """Files that were found, with their sizes, each once."""

    def __init__(self) -> None:
        super().__init__("CREATE TABLE seen (name TEXT UNIQUE, size INTEGER)")

    def add(self, name: str, size: int) -> None:
        """Note a file."""
        self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (name, size))

    def __contains__(self, name: str) -> bool:
        query = "SELECT count(*) FROM seen WHERE name = ?"
        return bool(self._connection.execute(query, (name,)).fetchone()[0])

    def __iter__(self) -> Iterator[str]:
        """The files in the order in which they were found."""
        for (name,) in self._connection.execute("SELECT name FROM seen ORDER BY rowid"):
            yield name

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        query = "SELECT coalesce(sum(size), 0) FROM seen"
        return int(self._connection.execute(query).fetchone()[0])
