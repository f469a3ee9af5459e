"""The directory of a store: where it is, whose, of which version, and how much it may hold."""

import json
import os
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from xattn.errors import StoreFormatError, StoreUnavailableError, is_whole
from xattn.memory import digest_of
from xattn.store import files

FORMAT = 1
DEFAULT_CAPACITY_BYTES = 20 * 2**30
MARK = "store.json"
PARTS = ("tenants", "locks", "quarantine", MARK)


def default_root() -> Path:
    """``~/.cache/xattn``, or where ``XDG_CACHE_HOME`` says."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xattn"
    except RuntimeError as error:
        raise StoreUnavailableError(
            "there is no home directory to keep memories in; give a directory (`--cache-dir`)."
        ) from error


def open_root(root: Path, capacity_bytes: int | None, *, owner: bool) -> int:
    """Make the directory, or check what is there; returns the bytes that it may hold.

    They are kept with it, and changed by an ``owner`` only. Raises as
    :class:`~xattn.store.MemoryStore`.
    """
    files.make_private(root, MARK, PARTS)
    for part in PARTS:
        files.require_real(root, part)
    path = root / MARK
    recorded = _recorded(path)
    if recorded is None:
        recorded = int(capacity_bytes or DEFAULT_CAPACITY_BYTES)
        with files.answering(path):
            _record(path, recorded)
    elif owner and capacity_bytes is not None and capacity_bytes != recorded:
        recorded = int(capacity_bytes)
        with suppress(OSError):  # this store keeps to it all the same
            _record(path, recorded)
    return recorded


def salt_of(tenant: str, secret: bytes | None) -> str:
    """What enters every key, so that nobody else's entry is found under it."""
    name = tenant.encode("utf-8", "surrogatepass")
    if secret is not None:
        key = blake3(secret, derive_key_context="xattn 2026 store salt").digest()
        return str(blake3(name, key=key).hexdigest())
    return digest_of(name) if tenant else ""


def _record(path: Path, capacity_bytes: int) -> None:
    content = {"format": FORMAT, "capacity_bytes": capacity_bytes}
    files.write_whole(path, json.dumps(content).encode())


def _recorded(path: Path) -> int | None:
    """The budget in ``path``; None where there is no such file."""
    try:
        content = json.loads(path.read_bytes())
        found, capacity = content["format"], content.get("capacity_bytes", DEFAULT_CAPACITY_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise files.unavailable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreFormatError(
            f"{path} does not say which version of a store it is; remove the directory."
        ) from error
    if found != FORMAT:
        raise StoreFormatError(
            f"{path.parent} is a store of format {found}, and this xattn reads {FORMAT}; "
            "update xattn, or give another directory."
        )
    return int(capacity) if is_whole(capacity, 1) else DEFAULT_CAPACITY_BYTES
