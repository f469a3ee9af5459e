"""A library that is there: its settings, its catalogue, its database."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xattn.errors import LibraryError, UsageError, shown
from xattn.library.catalogue import Catalogue
from xattn.library.indexes import PassageIndex
from xattn.library.locks import Reading
from xattn.library.settings import LANCE, NAME, Settings

POSTGRES = ("postgresql://", "postgres://")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A library that is there."""

    settings: Settings
    catalogue: Catalogue
    index: PassageIndex
    reading: Reading

    def close(self) -> None:
        """Let go of it."""
        self.reading.close()
        self.index.close()
        self.catalogue.close()

    def drop(self, root: Path) -> None:
        """Remove what it holds, for good."""
        self.index.drop()
        self.close()
        # Last, since while it is there somebody knows that there is something to remove.
        for suffix in ("-wal", "-shm", ""):
            path = catalogue_path(root, self.settings)
            with suppress(FileNotFoundError):
                os.unlink(f"{path}{suffix}")


def open_library(root: Path, settings: Settings, database: str | None) -> Opened:
    """The library of ``settings`` in ``root``, its catalogue and database made if need be.

    ``database`` is the URL of a server with the password that the settings do not have.
    """
    catalogue = Catalogue(catalogue_path(root, settings))
    try:
        index = _index(root, settings, database)
    except BaseException:
        catalogue.close()
        raise
    reading = Reading(root)
    return Opened(settings=settings, catalogue=catalogue, index=index, reading=reading)


def catalogue_path(root: Path, settings: Settings) -> Path:
    """Where the catalogue of these settings is."""
    return root / f"catalogue{_suffix(settings)}.sqlite"


def _suffix(settings: Settings) -> str:
    return "" if settings.epoch == 1 else f"-{settings.epoch}"


def _index(root: Path, settings: Settings, database: str | None) -> PassageIndex:
    if settings.database == LANCE:
        from xattn.library.indexes.lance import LanceIndex

        return LanceIndex(
            root,
            table=f"passages{_suffix(settings)}",
            dimensions=settings.dimensions,
            language=settings.language,
        )
    from xattn.library.indexes.postgres import PostgresIndex

    return PostgresIndex(
        database or settings.database,
        schema=f"xattn_{settings.name}_{settings.epoch}",
        dimensions=settings.dimensions,
        language=settings.language,
    )


def version_of(root: Path) -> tuple[int, int] | None:
    """Which ``library.json`` there is now; None where there is none."""
    try:
        status = (root / NAME).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_mtime_ns


def make_directory(root: Path) -> None:
    """A directory for a new library; raises :class:`LibraryError` where it holds other things."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        names = sorted(name for name in os.listdir(root) if not name.startswith("."))
    except OSError as error:
        raise LibraryError(f"{root}: cannot be made: {error.strerror or error}.") from error
    if names:
        raise LibraryError(
            f"{root} is no library, and holds other things ({names[0]!r}); give a new directory."
        )


def as_kept(database: str) -> str:
    """A database as settings have it; raises :class:`UsageError` for what is none."""
    if database == LANCE:
        return database
    if not database.startswith(POSTGRES):
        raise UsageError(
            f"`database` must be {LANCE!r} or begin with {POSTGRES[0]}, but is {shown(database)} "
            "instead."
        )
    from xattn.library.indexes.postgres import without_password

    return without_password(database)
