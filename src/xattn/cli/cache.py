"""``xattn cache``: what is in the store, and how to tend it."""

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli.console import print_json, print_line, print_note, print_table
from xattn.cli.failures import FAILED
from xattn.cli.options import CacheDir, Json
from xattn.cli.sizes import mebibytes, parsed_bytes
from xattn.cli.stores import open_store
from xattn.errors import EntryNotFoundError, StoreUnavailableError, UsageError

if TYPE_CHECKING:
    from xattn.store import MemoryStore, Row

Keys = Annotated[list[str], typer.Argument(metavar="KEY…", help="Keys, or their first characters.")]
SHORT = 12


def ls(cache_dir: CacheDir = None, json: Json = False) -> None:
    """List the memories, the newest first."""
    store = open_store(cache_dir)
    rows = [_described(store, row) for row in store.entries()]
    if json:
        print_json({"directory": str(store.root), "memories": rows})
        return
    print_table(
        ("key", "of", "kind", "positions", "size", "codec", "uses", "made", "pinned"),
        [
            (
                row["key"][:SHORT],
                row["label"][:40],
                row["modality"],
                str(row["positions"]),
                mebibytes(row["bytes"]),
                row["codec"],
                str(row["uses"]),
                row["created"][:16].replace("T", " "),
                "yes" if row["pinned"] else "",
            )
            for row in rows
        ],
    )


def stats(cache_dir: CacheDir = None, json: Json = False) -> None:
    """Count the memories, their bytes, and the seconds of encoding that they save."""
    store = open_store(cache_dir)
    rows = store.entries()
    found: dict[str, Any] = {
        "directory": str(store.root),
        "memories": len(rows),
        "bytes": sum(row.size_bytes for row in rows),
        "uses": sum(row.uses for row in rows),
        "encode_seconds": round(sum(row.encode_seconds for row in rows), 3),
        "encode_seconds_saved": round(sum(row.uses * row.encode_seconds for row in rows), 3),
        "pinned": sum(store.is_pinned(row.digest) for row in rows),
        "quarantined": len(list((store.root / "quarantine").glob("*.safetensors"))),
    }
    if json:
        print_json(found)
        return
    print_line(f"{found['memories']} memories, {mebibytes(found['bytes'])}, in {store.root}")
    print_line(
        f"{found['encode_seconds']} s of encoding are kept, {found['encode_seconds_saved']} s were "
        f"saved by {found['uses']} uses"
    )
    print_line(f"{found['pinned']} pinned, {found['quarantined']} set aside")


def verify(cache_dir: CacheDir = None, json: Json = False) -> None:
    """Read every memory; those that are not what was written are set aside. Exit code 1 if any."""
    whole, bad = open_store(cache_dir).verify()
    if json:
        print_json({"whole": whole, "set_aside": bad})
    else:
        print_line(f"{whole} whole, {len(bad)} set aside")
    if bad:
        raise typer.Exit(FAILED)


def gc(
    cache_dir: CacheDir = None,
    capacity: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Evict until they fit: 500MiB, 10G.")
    ] = None,
) -> None:
    """Remove what has expired, what dead processes left, and what does not fit."""
    store = open_store(cache_dir)
    if capacity is not None:
        size = parsed_bytes("capacity", capacity)
        if size < 1:
            raise UsageError(f"--capacity must be at least 1 byte, but is {capacity!r}.")
        store.capacity_bytes = size
    removed = store.gc()
    print_line(f"{removed} removed, {len(store.entries())} left")


def pin(
    keys: Keys,
    cache_dir: CacheDir = None,
    off: Annotated[bool, typer.Option("--off", help="Let them go again.")] = False,
) -> None:
    """Keep memories whatever the budget."""
    store = open_store(cache_dir)
    for digest in _digests(store, keys):
        if off:
            store.unpin(digest)
        else:
            store.pin(digest)


def export(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEY…", help="Keys, or their first characters.")
    ] = None,
    cache_dir: CacheDir = None,
    all_of_them: Annotated[bool, typer.Option("--all", help="Every memory.")] = False,
) -> None:
    """Write memories to stdout as one bundle: xattn cache export KEY > bundle."""
    store = open_store(cache_dir)
    if bool(keys) == all_of_them:
        raise UsageError("give the keys to export, or --all.")
    if sys.stdout.isatty():
        raise UsageError("a bundle is not for a terminal; write it to a file: > bundle")
    chosen = [row.digest for row in store.entries()] if all_of_them else _digests(store, keys or [])
    count = store.export(chosen, sys.stdout.buffer)
    print_note(f"{count} exported")


def import_(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="A file; - is stdin.")],
    cache_dir: CacheDir = None,
) -> None:
    """Take the memories of a bundle, each verified before it is taken."""
    store = open_store(cache_dir)
    if bundle == "-":
        taken = store.import_bundle(sys.stdin.buffer)
    else:
        try:
            with Path(bundle).open("rb") as file:
                taken = store.import_bundle(file)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise StoreUnavailableError(f"{bundle}: {error.strerror}.") from error
    print_line(f"{len(taken)} imported")


def clear(
    cache_dir: CacheDir = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove all memories, pinned ones too."""
    store = open_store(cache_dir)
    count = len(store.entries())
    if count and not yes:
        typer.confirm(f"Remove {count} memories from {store.root}?", abort=True, err=True)
    print_line(f"{store.clear()} removed")


def _described(store: "MemoryStore", row: "Row") -> dict[str, Any]:
    return {
        "key": row.digest,
        "label": row.label,
        "modality": row.modality,
        "positions": row.positions,
        "bytes": row.size_bytes,
        "codec": row.codec,
        "encode_seconds": round(row.encode_seconds, 4),
        "uses": row.uses,
        "created": datetime.fromtimestamp(row.created).isoformat(timespec="seconds"),
        "expires": None
        if row.expires is None
        else datetime.fromtimestamp(row.expires).isoformat(timespec="seconds"),
        "pinned": store.is_pinned(row.digest),
    }


def _digests(store: "MemoryStore", keys: list[str]) -> list[str]:
    """Whole keys for keys or their beginnings."""
    known = [row.digest for row in store.entries()]
    found = []
    for key in keys:
        matches = [digest for digest in known if key and digest.startswith(key.lower())]
        if not matches:
            raise EntryNotFoundError(f"there is no memory {key!r}; `xattn cache ls` lists them.")
        if len(matches) > 1:
            raise UsageError(f"{key!r} begins {len(matches)} keys; give more of it.")
        found += matches
    return found
