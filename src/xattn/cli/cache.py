"""``xattn cache``: what is in the store, and how to tend it."""

import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli.console import print_json, print_line, print_note, print_table
from xattn.cli.failures import FAILED
from xattn.cli.options import STORE, Json, takes
from xattn.cli.sizes import size_of
from xattn.cli.stores import open_store
from xattn.errors import EntryNotFoundError, StoreUnavailableError, UsageError
from xattn.readable import readable_bytes

if TYPE_CHECKING:
    from xattn.store import MemoryStore, Row

Keys = Annotated[list[str], typer.Argument(metavar="KEY", help="Keys, or their first characters.")]
SHORT = 12


@takes(store=STORE)
def ls(*, json: Json = False, store: dict[str, Any]) -> None:
    """List the memories, the newest first.

    "error" is what the codec lost: the length of the difference over the length of the numbers.
    """
    opened = open_store(store)
    rows = [_described(opened, row) for row in opened.entries()]
    if json:
        print_json({"directory": str(opened.root), "memories": rows})
        return
    print_table(
        ("key", "of", "kind", "positions", "size", "codec", "error", "uses", "made", "pinned"),
        [
            (
                row["key"][:SHORT],
                row["label"][:40],
                row["modality"],
                str(row["positions"]),
                readable_bytes(row["bytes"]),
                row["codec"],
                f"{row['relative_l2']:.2g}",
                str(row["uses"]),
                row["created"][:16].replace("T", " "),
                "yes" if row["pinned"] else "",
            )
            for row in rows
        ],
    )


@takes(store=STORE)
def stats(*, json: Json = False, store: dict[str, Any]) -> None:
    """Count memories, their bytes, and the seconds they saved."""
    opened = open_store(store)
    rows = opened.entries()
    codecs = Counter(row.codec for row in rows)
    found: dict[str, Any] = {
        "directory": str(opened.root),
        "capacity_bytes": opened.capacity_bytes,
        "memories": len(rows),
        "bytes": sum(row.size_bytes for row in rows),
        "codecs": dict(codecs.most_common()),
        "uses": sum(row.uses for row in rows),
        "encode_seconds": round(sum(row.encode_seconds for row in rows), 3),
        "encode_seconds_saved": round(sum(row.uses * row.encode_seconds for row in rows), 3),
        "pinned": sum(opened.is_pinned(row.digest) for row in rows),
        "quarantined": len(list((opened.root / "quarantine").glob("*.safetensors"))),
    }
    if json:
        print_json(found)
        return
    by_codec = ", ".join(f"{count} {codec}" for codec, count in codecs.most_common())
    what = "memory" if len(rows) == 1 else "memories"
    print_line(
        f"{len(rows)} {what}, {readable_bytes(found['bytes'])} of "
        f"{readable_bytes(found['capacity_bytes'])}, in {opened.root}"
        + (f" ({by_codec})" if by_codec else "")
    )
    print_line(
        f"{found['encode_seconds']} s of encoding are kept, {found['encode_seconds_saved']} s were "
        f"saved by {found['uses']} uses"
    )
    print_line(f"{found['pinned']} pinned, {found['quarantined']} set aside")


@takes(store=STORE)
def verify(*, json: Json = False, store: dict[str, Any]) -> None:
    """Read all memories; set aside what is not as written.

    With --cache-secret-file they must have been written with that secret, too. Exit code 1 if any
    is set aside; it is encoded again when it is next asked for.
    """
    whole, bad = open_store(store).verify()
    if json:
        print_json({"whole": whole, "set_aside": bad})
    else:
        print_line(f"{whole} whole, {len(bad)} set aside")
    if bad:
        raise typer.Exit(FAILED)


@takes(store=STORE)
def gc(
    *,
    capacity: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=size_of(at_least=1),
            help="Evict until they fit into this, for once: 500MiB, 10G. --cache-capacity is what "
            "holds from now on.",
        ),
    ] = None,
    json: Json = False,
    store: dict[str, Any],
) -> None:
    """Remove what has expired, and what does not fit.

    What processes that died have left is removed, too. Pinned memories stay.
    """
    opened = open_store(store)
    before = opened.entries()
    if capacity is not None:
        opened.capacity_bytes = capacity
    count = opened.gc()
    left = {row.digest for row in opened.entries()}
    gone = [row for row in before if row.digest not in left]
    if json:
        names = [{"key": row.digest, "label": row.label} for row in gone]
        print_json({"removed": count, "memories": names, "left": len(left)})
        return
    for row in gone:
        print_line(f"{row.digest[:SHORT]}  {row.label[:40]}  {readable_bytes(row.size_bytes)}")
    print_line(f"{count} removed, {len(left)} left")


@takes(store=STORE)
def pin(
    keys: Keys,
    *,
    off: Annotated[bool, typer.Option("--off", help="Let them go again.")] = False,
    json: Json = False,
    store: dict[str, Any],
) -> None:
    """Keep memories whatever the budget, and though they expire."""
    opened = open_store(store)
    digests = _digests(opened, keys)
    for digest in digests:
        if off:
            opened.unpin(digest)
        else:
            opened.pin(digest)
    if json:
        print_json({"unpinned" if off else "pinned": digests})


@takes(store=STORE)
def export(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEY", help="Keys, or their first characters.")
    ] = None,
    *,
    all_of_them: Annotated[bool, typer.Option("--all", help="Every memory.")] = False,
    store: dict[str, Any],
) -> None:
    """Write memories to stdout as one bundle.

    For example: xattn cache export --all > bundle; 'xattn cache import bundle' takes them.
    """
    if bool(keys) == all_of_them:
        raise UsageError("give the keys to export, or --all, and not both.")
    if sys.stdout.isatty():
        raise UsageError("a bundle is not for a terminal; write it to a file: > bundle")
    opened = open_store(store)
    everything = [row.digest for row in opened.entries()] if all_of_them else []
    count = opened.export(everything or _digests(opened, keys or []), sys.stdout.buffer)
    print_note(f"{count} exported")


@takes(store=STORE)
def import_(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="A file; - is stdin.")],
    *,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Believe whoever made the bundle. A store with a secret otherwise takes only what "
            "was written with that secret; one without takes all that is whole.",
        ),
    ] = False,
    json: Json = False,
    store: dict[str, Any],
) -> None:
    """Take the memories of a bundle, each verified first."""
    opened = open_store(store)
    if bundle == "-":
        taken = opened.import_bundle(sys.stdin.buffer, trust=trust)
    else:
        try:
            with Path(bundle).open("rb") as file:
                taken = opened.import_bundle(file, trust=trust)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise StoreUnavailableError(f"{bundle}: {error.strerror}.") from error
    if json:
        print_json({"imported": taken})
    else:
        print_line(f"{len(taken)} imported")


@takes(store=STORE)
def clear(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
    store: dict[str, Any],
) -> None:
    """Remove all memories of a tenant, pinned ones too.

    With --cache-shared they are removed from the place that machines share, too.
    """
    opened = open_store(store)
    count = len(opened.entries())
    if count and not yes:
        typer.confirm(f"Remove {count} memories from {opened.root}?", abort=True, err=True)
    removed = opened.clear()
    if json:
        print_json({"removed": removed})
    else:
        print_line(f"{removed} removed")


def _described(store: "MemoryStore", row: "Row") -> dict[str, Any]:
    return {
        "key": row.digest,
        "label": row.label,
        "modality": row.modality,
        "positions": row.positions,
        "bytes": row.size_bytes,
        "codec": row.codec,
        "relative_l2": row.relative_l2,
        "largest": row.largest,
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
