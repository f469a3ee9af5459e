"""Machines that a configuration may run on: what they hold, how fast they read and multiply."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from xattn.errors import UsageError, is_number, shown
from xattn.ledger.account import Ledger

TABLE = Path(__file__).with_name("hardware.toml")
MOST_MACHINES = 100_000
MOST_RATE = 1e24
"""No machine reads or multiplies so much in a second."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One accelerator, or several of a kind that share the work evenly."""

    key: str
    name: str
    source: str
    memory_bytes: int
    bytes_per_second: float
    flops_per_second: Mapping[str, float]
    """By number format; of those that it multiplies."""
    dollars_per_hour: float
    price: str = ""
    """Where the price is from: the day of the table, or the user's own file."""
    count: int = 1

    @property
    def reading_rate(self) -> float:
        """Bytes a second, of all of them together."""
        return self.count * self.bytes_per_second

    @property
    def total_dollars_per_hour(self) -> float:
        """Of all of them."""
        return self.count * self.dollars_per_hour

    def rate(self, dtype: str) -> float:
        """Operations a second in ``dtype``, of all of them together."""
        if dtype not in self.flops_per_second:
            known = ", ".join(self.flops_per_second)
            raise UsageError(f"{self.name} multiplies {known}, but is to multiply {dtype}.")
        return self.count * self.flops_per_second[dtype]

    @property
    def total_memory_bytes(self) -> int:
        """Of all of them."""
        return self.count * self.memory_bytes


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The least time that a configuration can take on a machine, and what that costs.

    The roofline (Williams et al. 2009): whatever is slower of reading and multiplying at the rates
    of the data sheet. Real runs reach a half to nine tenths of it.
    """

    machine: Machine
    fits: bool
    dtype: str
    """The number format whose rate was taken."""
    encode_seconds: float
    """Encoding and the prompts, after which each request has its first token."""
    step_seconds: float
    bound: str
    """``reading`` or ``multiplying``, whichever decides the step."""
    tokens_per_second: float
    """Of all requests together, encoding included."""
    dollars_per_million_tokens: float
    """Encoding included."""


def estimate(ledger: Ledger, machine: Machine) -> Estimate:
    """What ``ledger`` takes on ``machine`` at least."""
    setting = ledger.setting
    # Weights of four bits are taken apart into bytes, and multiplied so.
    dtype = "int8" if setting.weights_dtype == "int4" else setting.weights_dtype
    bytes_per_second, flops_per_second = machine.reading_rate, machine.rate(dtype)
    reading = ledger.sum("step_bytes") / bytes_per_second
    multiplying = ledger.sum("step_flops") / flops_per_second
    step = max(reading, multiplying)
    encoding = max(
        ledger.sum("encode_bytes") / bytes_per_second, ledger.encode_flops / flops_per_second
    )
    # The prompt gives the first token, each step one more.
    tokens, seconds = setting.batch * setting.new_tokens, encoding + (setting.new_tokens - 1) * step
    per_second = tokens / seconds
    return Estimate(
        machine=machine,
        fits=ledger.total_bytes <= machine.total_memory_bytes,
        dtype=dtype,
        encode_seconds=encoding,
        step_seconds=step,
        bound="reading" if reading >= multiplying else "multiplying",
        tokens_per_second=per_second,
        dollars_per_million_tokens=machine.total_dollars_per_hour / 3600 * 1e6 / per_second,
    )


def machines(override: Path | None = None) -> dict[str, Machine]:
    """All known machines by their keys.

    ``override`` is a TOML file whose entries replace or add to those here. Raises
    :class:`UsageError` that names the entry and what is wrong with it.
    """
    tables, day = _tables(TABLE)
    assert day is not None
    prices = dict.fromkeys(tables, str(day))
    if override is not None:
        theirs, day = _tables(override)
        for key, entry in theirs.items():
            tables[key] = {**tables.get(key, {}), **entry}
            if "dollars_per_hour" in entry:
                prices[key] = f"yours, {day or 'no date'}"
    path = override or TABLE
    return {key: _machine(key, entry, prices.get(key, ""), path) for key, entry in tables.items()}


def machine_of(name: str, override: Path | None = None) -> Machine:
    """``h100``, or ``h100x8`` for eight of them; :class:`UsageError` with near names."""
    known = machines(override)
    by_lower = {one.lower(): one for one in known}
    whole = name.strip().lower()
    if whole in by_lower:  # a name may have an x of its own
        return known[by_lower[whole]]
    key, _, count = whole.rpartition("x")
    key = by_lower.get(key or whole, key or whole)
    if key not in known:
        near = get_close_matches(key, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"`gpu` must be one of {', '.join(known)}, but is {name!r} instead.{hint}")
    number = int(count) if count.isdecimal() else 0 if count or name.endswith("x") else 1
    if not 1 <= number <= MOST_MACHINES:
        raise UsageError(
            f"`gpu` must be {key}, or {key}xN for 1 to {MOST_MACHINES} of them, "
            f"but is {name!r} instead."
        )
    one = known[key]
    return replace(one, count=number)


def _tables(path: Path) -> tuple[dict[str, dict[str, Any]], date | None]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is no TOML file: {error}.") from error
    prices = document.pop("prices", {})
    day = prices.get("date") if isinstance(prices, dict) else None
    if day is not None and not isinstance(day, date):
        raise UsageError(f"{path}: [prices] date must be a day, as 2026-05-29, but is {day!r}.")
    strange = next((key for key, entry in document.items() if not isinstance(entry, dict)), None)
    if strange is not None:
        raise UsageError(f"{path}: {strange!r} must be a table, as [h100].")
    return document, day


def _machine(key: str, entry: Mapping[str, Any], price: str, path: Path) -> Machine:
    wanted = {field.name for field in fields(Machine)} - {"key", "count", "price"}
    if unknown := entry.keys() - wanted:
        raise UsageError(f"{path}: [{key}] has {sorted(unknown)}, but may have {sorted(wanted)}.")
    if missing := wanted - entry.keys():
        raise UsageError(f"{path}: [{key}] lacks {sorted(missing)}.")
    for name in ("name", "source"):
        if not isinstance(entry[name], str):
            raise UsageError(f"{path}: [{key}] {name} must be text, but is {shown(entry[name])}.")
    for name in ("memory_bytes", "bytes_per_second", "dollars_per_hour"):
        _require_rate(path, key, name, entry[name], least=0 if name == "dollars_per_hour" else 1)
    rates = entry["flops_per_second"]
    if not isinstance(rates, dict) or not rates:
        raise UsageError(f"{path}: [{key}] flops_per_second must be a table of rates by dtype.")
    for name, rate in rates.items():
        _require_rate(path, key, f"flops_per_second.{name}", rate, least=1)
    return Machine(key=key, price=price, **entry)


def _require_rate(path: Path, key: str, name: str, value: Any, *, least: float) -> None:
    if not is_number(value) or not least <= value <= MOST_RATE:
        raise UsageError(
            f"{path}: [{key}] {name} must be a number from {least} to {MOST_RATE:.0e}, "
            f"but is {shown(value)}."
        )
