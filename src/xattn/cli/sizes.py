"""Numbers as people write and read them."""

import re
from collections.abc import Callable
from typing import Any

import typer

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_MOST_BYTES = 2**63 - 1

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", re.IGNORECASE)
_MOST_DAYS = 36500


def size_of(*, at_least: int) -> Callable[[Any], int]:
    """A parser of sizes: ``10GiB``, ``500M`` or a plain number as bytes.

    It raises :class:`typer.BadParameter`, to which typer adds the flag.
    """

    def parse(value: Any) -> int:
        size = _number(value, _SIZE, _UNITS)
        if size is None or not at_least <= size <= _MOST_BYTES:
            least = "1 byte" if at_least == 1 else f"{at_least} bytes"
            raise typer.BadParameter(
                f"it must be a size of at least {least} and below 8388608T, such as 500MiB or 10G, "
                f"but is {value!r}"
            )
        return int(size)

    return parse


def seconds_of(value: Any) -> float:
    """``90``, ``30m``, ``1h`` or ``7d`` as seconds.

    Raises :class:`typer.BadParameter`, to which typer adds the flag.
    """
    seconds = _number(value, _TIME, _SECONDS)
    if seconds is None or not 0 < seconds <= _MOST_DAYS * _SECONDS["d"]:
        raise typer.BadParameter(
            f"it must be a time above 0 and of at most {_MOST_DAYS}d, such as 90, 30m, 1h or 7d, "
            f"but is {value!r}"
        )
    return seconds


def _number(value: Any, form: re.Pattern[str], units: dict[str, int]) -> float | None:
    """``value`` in its unit; None where it is nothing of that ``form``."""
    found = form.fullmatch(str(value).strip())
    return None if found is None else float(found[1]) * units[found[2].lower()]
