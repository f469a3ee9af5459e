"""Numbers as people read them."""

import re
from typing import Any

from xattn.errors import UsageError

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)


def mebibytes(size: float) -> str:
    """``2.2 MiB``, and smaller sizes as KiB."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 2**10:.1f} KiB"


def parsed_bytes(name: str, value: Any) -> int:
    """``10GiB``, ``500M`` or a plain number as bytes; :class:`UsageError` names the option."""
    found = _SIZE.fullmatch(str(value).strip())
    if found is None:
        raise UsageError(f"--{name} must be a size such as 500MiB or 10G, but is {value!r}.")
    return int(float(found[1]) * _UNITS[found[2].lower()])
