"""``xattn models``: what can be loaded by a short name."""

from typing import TYPE_CHECKING, Any

from xattn.cli.console import print_json, print_table
from xattn.cli.options import Json

if TYPE_CHECKING:
    from xattn.models.catalog import Entry


def models(json: Json = False) -> None:
    """List the models that have a short name.

    The last column says whether one can be loaded right now without a network: from an installed
    package, or from the hub's cache.
    """
    from xattn.models.catalog import CATALOG

    rows = [_row(entry) for entry in CATALOG]
    if json:
        print_json({"models": rows})
        return
    print_table(
        ("name", "family", "size", "licence", "hub id", "package", "offline"),
        [
            (
                row["name"],
                row["family"],
                _size(row["parameters"]),
                row["licence"],
                row["hub_id"] or "-",
                row["package"] or "-",
                "yes" if row["available_offline"] else "no",
            )
            for row in rows
        ],
    )


def _row(entry: "Entry") -> dict[str, Any]:
    from xattn.models.catalog import available_offline

    return {
        "name": entry.name,
        "family": entry.family,
        "parameters": entry.parameters,
        "licence": entry.licence,
        "hub_id": entry.hub_id,
        "package": entry.package,
        "available_offline": available_offline(entry),
    }


def _size(parameters: int) -> str:
    """A count of weights as people say it: 751k, 38M, 1.5B."""
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if parameters >= unit:
            number = parameters / unit
            return f"{number:.1f}{letter}" if number < 10 else f"{number:.0f}{letter}"
    return f"{parameters / 1e3:.0f}k"
