"""``--where``: which passages of a library may be found."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from xattn.errors import UsageError

Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="NAME=VALUE",
        rich_help_panel="Reading",
        help="Only passages with that metadata: source=guide.md, year=2020, year>=2020, year<=2022."
        " Repeatable: all must hold.",
    ),
]
BOUNDS = {">=": "min", "<=": "max"}


def where_of(given: Sequence[str] | None) -> dict[str, Any] | None:
    """The filter of a search. Raises :class:`UsageError` for what is none."""
    if not given:
        return None
    found: dict[str, Any] = {}
    for text in given:
        sign = next((sign for sign in (*BOUNDS, "=") if sign in text), None)
        name, _, value = text.partition(sign or "=")
        if sign is None or not name:
            raise UsageError(f"`--where` must be NAME=VALUE, NAME>=VALUE or NAME<=VALUE, but is "
                             f"{text!r} instead.")  # fmt: skip
        if sign == "=":
            found[name] = scalar_of(value)
            continue
        bounds = found.setdefault(name, {})
        if not isinstance(bounds, dict):
            raise UsageError(f"`--where` names {name!r} with a value and with a bound; give one.")
        bounds[BOUNDS[sign]] = scalar_of(value)
    return found


def scalar_of(value: str) -> Any:
    """A number, or true or false, where it is one; else the text itself."""
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return parsed if isinstance(parsed, bool | int | float) else value
