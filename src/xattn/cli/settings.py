"""Where the value of an option comes from.

A flag beats an ``XATTN_*`` variable beats the nearest ``xattn.toml`` upward beats
``~/.config/xattn/config.toml`` beats the default. A key stands either at the top of a file, where
it holds for all commands, or in the table of one command::

    offline = true

    [transcribe]
    model = "whisper-tiny.en"
    beam_size = 5

The variables are ``XATTN_OFFLINE`` and ``XATTN_TRANSCRIBE_BEAM_SIZE``.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from xattn.cli.options import LOADING, STORE
from xattn.errors import UsageError

COMMON = ("model", *LOADING, "seed", "cache", *STORE)
"""Names that may stand at the top of a file, and in a variable without a command's name."""

PER_CALL = (
    "json",
    "jsonl",
    "output",
    "stream",
    "chat",
    "memory",
    "for_",
    "trust",
    "of_model",
    "document",
    "table",
    "audio",
    "image",
    "fit_bytes",
    "list_shapes",
    "plot",
    "inputs",
    "input_text",
    "tokens",
    "prompt",
    "html",
    "pictures",
    "measure",
    "again",
    "metadata",
)
"""Options that say what one call does, and so have no place in a file of settings."""

DEBUG = "XATTN_DEBUG"
FILE_NAME = "xattn.toml"

Known = Mapping[str, Mapping[str, bool]]
"""Command -> option -> whether it takes several values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A value that did not come from a flag, and where it came from."""

    value: Any
    source: str
    """A variable's name or a file's path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingsFile:
    """One parsed file of settings."""

    path: Path
    content: Mapping[str, Any]


def known_settings(command: Any) -> Known:
    """The options of each command that settings may give, read off typer's command tree."""
    known = {
        "_".join(path): {
            parameter.name: bool(parameter.multiple)
            for parameter in child.params
            if parameter.param_type_name == "option" and parameter.name not in PER_CALL
        }
        for path, child in leaves(command)
    }
    return {name: options for name, options in known.items() if options}


def leaves(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its names: ``("cache", "ls")``."""
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from leaves(child, *path, name)
        else:
            yield (*path, name), child


def command_of(context: Any) -> str:
    """The command that typer's ``context`` is of, as settings name it: ``cache_ls``."""
    names = []
    while context.parent is not None:
        names.append(context.info_name)
        context = context.parent
    return "_".join(reversed(names))


def settings_of(context: Any) -> Mapping[str, Setting]:
    """What variables and files say for the command of ``context``."""
    found = context.obj if isinstance(context.obj, Mapping) else {}
    return found.get(command_of(context), {})


def find_files(start: Path, environ: Mapping[str, str]) -> list[Path]:
    """The files that apply in ``start``, the strongest first."""
    nearest = (folder / FILE_NAME for folder in (start, *start.parents))
    found = [path for path in nearest if path.is_file()][:1]
    try:
        home = Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    except RuntimeError:  # a user without a home has no file there
        return found
    personal = home / "xattn" / "config.toml"
    return found + ([personal] if personal.is_file() else [])


def read_file(path: Path, known: Known) -> SettingsFile:
    """Parse and check one file; raises :class:`UsageError` for bad TOML and for unknown keys."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    content = _underscored(raw)
    for key, value in content.items():
        if key in known:
            _check_table(path, key, value, known[key])
        elif key not in COMMON:
            raise UsageError(f"{path}: unknown setting {key!r}; {_near(key, (*COMMON, *known))}")
        elif isinstance(value, Mapping):
            raise UsageError(
                f"{path}: {key!r} must be one value, but is a table instead; keys that begin with "
                f"it stand at the top of the file: {', '.join(n for n in COMMON if key in n)}."
            )
    return SettingsFile(path=path, content=content)


def collect(
    known: Known, files: Sequence[SettingsFile], environ: Mapping[str, str]
) -> dict[str, dict[str, Setting]]:
    """What variables and files say: command -> option -> setting; options left alone are absent."""
    return {
        command: {
            name: setting
            for name, several in options.items()
            for setting in _strongest(command, name, several, files, environ)
        }
        for command, options in known.items()
    }


def unknown_variables(known: Known, environ: Mapping[str, str]) -> Iterator[str]:
    """What to say of each ``XATTN_…`` variable that sets nothing."""
    names = [
        v for command, options in known.items() for o in options for v in variables(command, o)
    ]
    for variable in sorted(environ):
        if variable.startswith("XATTN_") and variable not in (*names, DEBUG):
            near = get_close_matches(variable, names, n=3, cutoff=0.75)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            yield f"{variable} sets nothing{hint}"


def _strongest(
    command: str,
    name: str,
    several: bool,
    files: Sequence[SettingsFile],
    environ: Mapping[str, str],
) -> Iterator[Setting]:
    for variable in variables(command, name):
        # An empty variable is an unset one: that is how a shell switches it off for one call.
        if text := environ.get(variable):
            value = [part.strip() for part in text.split(",")] if several else text
            yield Setting(value=value, source=variable)
            return
    for file in files:
        tables = (file.content.get(command, {}), file.content if name in COMMON else {})
        for table in tables:
            if name in table:
                value = table[name]
                if isinstance(value, list) and not several:
                    value = ",".join(map(str, value))  # what the flag takes
                yield Setting(value=value, source=str(file.path))
                return


def variables(command: str, name: str) -> list[str]:
    """The variables that set an option of a command, the strongest first."""
    own = f"XATTN_{command}_{name}".upper()
    return [own, f"XATTN_{name}".upper()] if name in COMMON else [own]


def _check_table(path: Path, command: str, table: Any, options: Mapping[str, bool]) -> None:
    if not isinstance(table, Mapping):
        raise UsageError(f"{path}: [{command}] must be a table, but is {table!r} instead.")
    for name in table:
        if name not in options:
            raise UsageError(
                f"{path}: unknown setting {name!r} in [{command}]; {_near(name, options)}"
            )


def _underscored(table: Mapping[str, Any]) -> dict[str, Any]:
    """``beam-size`` and ``beam_size`` are one name, in tables too."""
    return {
        key.replace("-", "_"): _underscored(value) if isinstance(value, dict) else value
        for key, value in table.items()
    }


def _near(name: str, names: Any) -> str:
    close = get_close_matches(name, list(names), n=3)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    return "known are " + ", ".join(names)
