"""What a library was made with, kept in its ``library.json``: all that its passages depend on."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from xattn.errors import LibraryError, LibraryFormatError, LibraryMismatchError, UnsafeStoreError
from xattn.store import files

FORMAT = 1
NAME = "library.json"
NEXT = "next.json"
"""Settings of the library that is being made in place of this one."""
LANCE = "lance"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Kept with the library, and the same for all its passages."""

    embedder: str
    """Its name."""
    identity: str
    """Digest of all that its vectors depend on."""
    dimensions: int
    passage_tokens: int
    """Of a passage, at most."""
    overlap: int
    """Tokens of a passage that the next one has too, at most."""
    language: str
    """Whose stems and stop words the search for words knows."""
    database: str = LANCE
    """``lance``, or how a server is reached; without a password."""
    name: str
    """Of the library on a server."""
    epoch: int = 1
    """One more each time it was made again."""

    def differences(self, wanted: dict[str, Any]) -> Iterator[str]:
        """What of ``wanted``, where it is not None, is otherwise here: ``overlap 32, not 64``."""
        for name, value in wanted.items():
            if value is not None and value != getattr(self, name):
                yield f"{name} {getattr(self, name)!r}, not {value!r}"


def read_settings(root: Path, name: str = NAME) -> Settings | None:
    """Those of the library in ``root``; None where there is none.

    Raises :class:`LibraryFormatError` where the file is damaged, or of another version.
    """
    path = root / name
    try:
        content = json.loads(path.read_bytes())
        found = content.pop("format")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LibraryError(f"{path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path) from error
    if found != FORMAT:
        raise LibraryFormatError(
            f"{root} is a library of format {found!r}, and this xattn reads {FORMAT}; update "
            "xattn, or make it again."
        )
    try:
        settings = Settings(**content)
    except TypeError as error:
        raise _damaged(path) from error
    if any(not isinstance(getattr(settings, field.name), field.type) for field in fields(Settings)):  # type: ignore[arg-type]
        raise _damaged(path)
    return settings


def write_settings(root: Path, settings: Settings, name: str = NAME) -> None:
    """Keep ``settings``, whole or not at all."""
    content = {"format": FORMAT} | asdict(settings)
    try:
        files.write_whole(root / name, json.dumps(content, indent=2).encode())
    except (OSError, UnsafeStoreError) as error:
        raise LibraryError(f"{root}: cannot be written: {error}.") from error


def require_same(root: Path, settings: Settings, wanted: dict[str, Any]) -> None:
    """Raise :class:`LibraryMismatchError` where the library has others than ``wanted``."""
    database = wanted.get("database")
    if database is not None and database != settings.database:
        raise LibraryMismatchError(
            f"{root} has its passages in {settings.database!r}, not {database!r}; leave the "
            "database out, or give another directory to make a library there."
        )
    found = list(settings.differences(wanted))
    if found:
        raise LibraryMismatchError(
            f"{root} was made with {'; '.join(found)}. Leave these settings out to use what it "
            f"has, or make it anew from its files with: {again(root, settings, wanted)}"
        )


def require_identity(root: Path, settings: Settings, name: str, identity: str) -> None:
    """Raise :class:`LibraryMismatchError` where its vectors are those of another embedder."""
    if identity != settings.identity:
        raise LibraryMismatchError(
            f"{root} was embedded by {settings.embedder!r} with the digest "
            f"{settings.identity[:12]}, and {name!r} has {identity[:12]}: their vectors cannot be "
            f"compared. Embed the library again with: {again(root, settings, {'embedder': name})}"
        )


def again(root: Path, settings: Settings, wanted: dict[str, Any]) -> str:
    """The command that makes the library anew, with ``wanted`` where that is not None."""
    kept = {name: getattr(settings, name) for name in wanted if name != "database"}
    values = kept | {name: wanted[name] for name in kept if wanted[name] is not None}
    flags = [part for name, value in values.items()
             for part in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    return shlex.join(["xattn", "index", "--again", "--library", str(root), *flags])


def _damaged(path: Path) -> LibraryFormatError:
    return LibraryFormatError(
        f"{path} does not say what the library was made with; put it back, or remove the directory "
        "and index its files again."
    )
