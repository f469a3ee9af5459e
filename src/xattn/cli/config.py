"""``xattn config show``: each value, and where it came from."""

from dataclasses import MISSING, fields
from inspect import signature
from pathlib import Path
from typing import Any

import typer

from xattn.cli.console import print_json, print_table
from xattn.cli.options import STORE, Json
from xattn.cli.settings import known_settings, leaves

_DEFAULT = "default"


def show(ctx: typer.Context, json: Json = False) -> None:
    """Print each setting, its value, and where that came from.

    Flags beat XATTN_* variables beat the nearest xattn.toml upward beat
    ~/.config/xattn/config.toml beat defaults. For generate and translate, a checkpoint's
    own generation config goes before a default.
    """
    rows = _effective(ctx)
    if json:
        print_json({"settings": rows})
        return
    print_table(
        ("setting", "value", "from"),
        [(f"{row['command']}.{row['name']}", _text(row["value"]), row["source"]) for row in rows],
    )


def _effective(ctx: typer.Context) -> list[dict[str, Any]]:
    """One row for each option of each command; a bad value raises as it would in that command."""
    root: Any = ctx.find_root()
    rows = []
    known = known_settings(root.command)
    for path, child in leaves(root.command):
        command = "_".join(path)
        if path[0] == "cache" or command not in known:
            continue  # each of them has the store's options, which others show
        values = child.make_context(command, [], parent=root).params
        for name in known[command]:
            setting = root.obj[command].get(name)
            value = values[name]
            source = setting.source if setting else _DEFAULT
            if isinstance(value, Path):
                value = str(value)
            if value is None:
                value, source = _library_default(command, name)
            rows.append({"command": command, "name": name, "value": value, "source": source})
    return rows


def _library_default(command: str, name: str) -> tuple[Any, str]:
    """What the library takes where nothing is said, and whether a checkpoint may say otherwise."""
    if name in STORE:
        from xattn.store import MemoryStore

        return signature(MemoryStore).parameters[STORE[name].keyword or name].default, _DEFAULT
    from xattn.decoding.settings import Settings
    from xattn.decoding.transcription_settings import TranscriptionSettings

    of_checkpoint = command != "transcribe"
    for field in fields(Settings if of_checkpoint else TranscriptionSettings):
        if field.name == name:
            value = None if field.default is MISSING else field.default
            return value, "default, or the checkpoint's" if of_checkpoint else _DEFAULT
    return None, _DEFAULT


def _text(value: Any) -> str:
    if value in (None, "", ()):
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
