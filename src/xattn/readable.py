"""Numbers as people read them."""

from collections.abc import Sequence


def readable_bytes(size: float) -> str:
    """``1.5 KiB``, ``2.2 MiB``, ``3.1 GiB``; whole bytes below that."""
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), " ")


def readable_count(count: float) -> str:
    """``1.5G``, ``2.2T``; nothing for 0."""
    return _scaled(count, 1000, ("", "k", "M", "G", "T", "P", "E"), "") if count else ""


def readable_seconds(seconds: float) -> str:
    """``5.6 h``, ``1.25 s``, ``12.5 ms`` or ``125 µs``."""
    for unit, size in (("h", 3600.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def counted(count: int, name: str) -> str:
    """``1 beam``, ``2 beams``."""
    return f"{count} {name}{'' if count == 1 else 's'}"


def _scaled(value: float, base: int, units: Sequence[str], gap: str) -> str:
    power = 0
    while abs(value) >= base and power + 1 < len(units):
        value, power = value / base, power + 1
    number = f"{value:.0f}" if power == 0 or value >= 100 else f"{value:.1f}"
    return f"{number}{gap}{units[power]}"
