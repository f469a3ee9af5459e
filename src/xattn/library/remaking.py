"""A library made anew beside the one that is there, which readers use until it is done."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from xattn.errors import InvalidSourceError, LibraryError
from xattn.library.catalogue import File
from xattn.library.embedder import Embedder
from xattn.library.indexing import Source
from xattn.library.opening import Opened, catalogue_path, open_library
from xattn.library.settings import NAME, NEXT, Settings, read_settings, write_settings
from xattn.library.sources import file_source, is_file_name


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """``settings`` of the next epoch, with those changes that are not None."""
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(settings, epoch=settings.epoch + 1, **given)


@contextmanager
def remaking(root: Path, settings: Settings, database: str | None) -> Iterator[Opened]:
    """A library of ``settings``, gone on with where it was begun; it takes the other's place."""
    begun = read_settings(root, NEXT)
    if begun is not None and begun != settings:
        open_library(root, begun, database).drop(root)
    write_settings(root, settings, NEXT)
    opened = open_library(root, settings, database)
    try:
        yield opened
    finally:
        opened.close()
    try:
        os.replace(root / NEXT, root / NAME)
    except OSError as error:
        raise LibraryError(f"{root}: {error.strerror or error}.") from error


def drop_remains(root: Path, settings: Settings, database: str | None) -> None:
    """Remove the library of the epoch before, where whoever took its place died before that."""
    before = replace(settings, epoch=settings.epoch - 1)
    if before.epoch and catalogue_path(root, before).exists():
        open_library(root, before, database).drop(root)


def source_again(file: File, settings: Settings, embedder: Embedder) -> Source:
    """A document of the library that was, for the one that takes its place."""
    metadata = json.loads(file.metadata)
    if is_file_name(file.source):
        return file_source(Path(file.source), settings, embedder, metadata)

    def digest() -> str:
        raise InvalidSourceError(f"{file.source!r} is a text that no file holds; add it again.")

    return Source(name=file.source, size=0, modified=-1, digest=digest, passages=lambda about: [])
