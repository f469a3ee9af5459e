"""What the figures should be, and whether they are."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, Literal

from xattn.bench.summary import ratio, straight_line

WARM_EACH, WARM_MEDIAN, COLD_EACH, TRANSFORMERS_EACH = 1.3, 1.5, 1.0, 3.0
PREFIXES_CTRANSLATE2, PREFIXES_TRANSFORMERS, REQUESTS = 20.0, 50.0, 3.0
STRAIGHT, FEWER_BYTES, ROOFLINE, FOLLOWED = 0.98, 40.0, 0.65, 0.95

Aim = dict[str, Any]
"""``aim``, ``wanted``, ``found`` (the worst or the median), ``cells``, ``verdict``, ``below``."""


def judge_aims(cells: Sequence[dict[str, Any]]) -> list[Aim]:
    """All aims; what nothing was measured for says so. Where outputs differ, nothing is faster."""
    sound = [cell for cell in cells if cell["equality"]["holds"]]
    return [
        *_against_peers(cells),
        *_int8(cells),
        *_many(cells),
        *_length(sound),
        *_roofline(sound),
    ]


def per_step(found: dict[str, Any], measure: str) -> list[float] | None:
    """Seconds of each round, per step; None where it was not measured."""
    one = found.get("measures", {}).get(measure)
    return None if one is None else [value / one["steps"] for value in one["seconds"]]


def fastest(found: dict[str, Any], measure: str) -> str:
    """The name of the fastest way of doing ``measure``: as such, or ``MEASURE, HOW``."""
    measures = found.get("measures", {})
    ways = [name for name in measures if name == measure or name.startswith(f"{measure}, ")]
    return min(ways, key=lambda name: measures[name]["median"], default=measure)


def comparable(cell: dict[str, Any], peer: str, measure: str) -> str:
    """Our measure of the same work as a peer's.

    What CTranslate2's Translator does after the first token reads keys and values that are there;
    its Whisper, and transformers, project a memory in every call, as our ``anew`` does.
    """
    projects = peer == "transformers" or cell["workload"] == "W1"
    return "anew" if measure == "warm" and projects and cell["workload"] != "W5" else measure


def times_faster(cell: dict[str, Any], peer: str, measure: str) -> float | None:
    """How many times as long ``peer`` takes, each at its best; None where one did not run.

    0 where they did other work.
    """
    engines = cell["engines"]
    ours, theirs = engines.get("xattn", {}), engines.get(peer, {})
    a = per_step(theirs, fastest(theirs, measure))
    b = per_step(ours, fastest(ours, comparable(cell, peer, measure)))
    if a is None or b is None:
        return None
    return ratio(a, b).median if cell["equality"]["holds"] else 0.0


def _aim(
    text: str, wanted: float, found: Sequence[tuple[str, float]], *, middle: bool = False
) -> Aim:
    """At least ``wanted`` in each cell, or in the middle of all."""
    if not found:
        return {"aim": text, "wanted": wanted, "found": None, "cells": 0, "verdict": "not measured"}
    values = [value for _, value in found]
    worst = median(values) if middle else min(values)
    below = [] if middle else [name for name, value in found if value < wanted]
    return {
        "aim": text,
        "wanted": wanted,
        "found": worst,
        "cells": len(found),
        "verdict": "reached" if worst >= wanted else "missed",
        "below": below,
    }


def _ratios(
    cells: Sequence[dict[str, Any]], workloads: Sequence[str], peer: str, *measures: str
) -> list[tuple[str, float]]:
    return [
        (f"{cell['name']}, {measure}", value)
        for cell in cells
        if cell["workload"] in workloads
        for measure in measures
        if (value := times_faster(cell, peer, measure)) is not None
    ]


def _against_peers(cells: Sequence[dict[str, Any]]) -> Iterator[Aim]:
    warm = _ratios(cells, ("W1", "W2"), "ctranslate2", "warm")
    cold = _ratios(cells, ("W1", "W2"), "ctranslate2", "cold")
    yield _aim("W1, W2: decoding from memory, times CTranslate2, every cell", WARM_EACH, warm)
    yield _aim(
        "W1, W2: decoding from memory, times CTranslate2, median", WARM_MEDIAN, warm, middle=True
    )
    yield _aim("W1, W2: cold, times CTranslate2, every cell", COLD_EACH, cold)
    first = _ratios(cells, ("W2",), "ctranslate2", "first")
    yield _aim("W2: encoding and the first token, times CTranslate2, every cell", COLD_EACH, first)
    every = _ratios(cells, ("W1", "W2"), "transformers", "warm", "cold")
    yield _aim("W1, W2: times transformers, every cell", TRANSFORMERS_EACH, every)


def _int8(cells: Sequence[dict[str, Any]]) -> Iterator[Aim]:
    """How long answers of int8 weights are float32's."""
    both = [
        (cell["name"], shares["xattn"] * cell["equality"]["holds"], shares["ctranslate2"])
        for cell in cells
        if {"xattn", "ctranslate2"} <= (shares := cell.get("followed", {})).keys()
    ]
    real = [(name, ours) for name, ours, _ in both if name.startswith("W1")]
    yield _aim("W1: share of int8's tokens before they leave float32's", FOLLOWED, real)
    more = [(name, 1 + ours - theirs) for name, ours, theirs in both]
    yield _aim("int8: 1 + that share, less CTranslate2's, median", 1.0, more, middle=True)


def _many(cells: Sequence[dict[str, Any]]) -> Iterator[Aim]:
    def against(workload: str, peer: str) -> list[tuple[str, float]]:
        return _ratios(cells, (workload,), peer, "cold")

    yield _aim(
        "W3: one source, 32 prefixes, times CTranslate2's best",
        PREFIXES_CTRANSLATE2,
        against("W3", "ctranslate2"),
    )
    yield _aim(
        "W3: one source, 32 prefixes, times transformers",
        PREFIXES_TRANSFORMERS,
        against("W3", "transformers"),
    )
    yield _aim(
        "W4: 32 requests over 8 documents, times CTranslate2's best",
        REQUESTS,
        against("W4", "ctranslate2"),
    )
    lower = [
        (cell["name"], theirs / ours * cell["equality"]["holds"])
        for cell in cells
        if cell["workload"] == "W4"
        and (ours := _peak(cell, "xattn")) is not None
        and (theirs := _peak(cell, "ctranslate2")) is not None
    ]
    yield _aim("W4: CTranslate2's peak memory, times ours", 1.0, lower)


def _peak(cell: dict[str, Any], engine: str) -> int | None:
    found: int | None = cell["engines"].get(engine, {}).get("memory", {}).get("peak_bytes")
    return found


def by_length(cells: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """W6's cells that ran, by form and beams, in the order of their lengths."""
    series: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["workload"] == "W6" and "measures" in cell["engines"]["xattn"]:
            series.setdefault((cell["axes"]["form"], cell["axes"]["beams"]), []).append(cell)
    for found in series.values():
        found.sort(key=lambda cell: cell["axes"]["positions"])
    return series


def step_seconds(cell: dict[str, Any]) -> float:
    """A W6 cell's median."""
    return float(cell["engines"]["xattn"]["measures"]["step"]["median"])


def step_bytes(cell: dict[str, Any], what: Literal["held", "read"]) -> int:
    """What is held of a W6 cell's memory, or what cross-attention reads of it in all layers."""
    return int(cell["engines"]["xattn"]["notes"][f"{what}_bytes"])


def _length(cells: Sequence[dict[str, Any]]) -> Iterator[Aim]:
    series = by_length(cells)
    lines = []
    for (form, beams), found in series.items():
        if len(found) > 2:
            xs = [cell["axes"]["positions"] for cell in found]
            fit = straight_line(xs, [step_seconds(cell) for cell in found])
            lines.append((f"W6/{form}/{beams}", fit.r_squared))
    yield _aim("W6: time is linear in the memory's length (R²)", STRAIGHT, lines)
    sizes = {
        (form, beams, cell["axes"]["positions"]): step_bytes(cell, "held")
        for (form, beams), found in series.items()
        for cell in found
    }
    flat = [
        (f"W6/{form}/{positions}", size / sizes[form, "beam4", positions])
        for (form, beams, positions), size in sizes.items()
        if beams == "beam1" and (form, "beam4", positions) in sizes
    ]
    yield _aim("W6: bytes held for one beam over those for four", 1.0, flat)
    fewer = [
        (f"W6/{form}/{positions}", sizes["materialized", beams, positions] / size)
        for (form, beams, positions), size in sizes.items()
        if "absorbed" in form and "int8" in form and ("materialized", beams, positions) in sizes
    ]
    yield _aim("W6: bytes held in float32, times absorbed in int8", FEWER_BYTES, fewer)


def bandwidth(cells: Sequence[dict[str, Any]]) -> tuple[str, float] | None:
    """The fastest way of reading memory, and its bytes per second."""
    for cell in cells:
        found = cell["engines"].get("machine", {})
        if "measures" in found:
            size, measures = found["notes"]["bytes"], found["measures"]
            name = min(measures, key=lambda one: measures[one]["median"])
            return name, size / measures[name]["median"]
    return None


def bytes_per_second(cell: dict[str, Any], engine: str) -> float | None:
    """Bytes that a step must read, by the time it takes; None where the engine did not run."""
    seconds = per_step(cell["engines"].get(engine, {}), "warm")
    notes = cell["engines"].get("xattn", {}).get("notes", {})
    if seconds is None or "weight_bytes" not in notes:
        return None
    read = notes["weight_bytes"] + notes["cross_bytes"] + notes["self_bytes"]
    return float(read / median(seconds))


def _roofline(cells: Sequence[dict[str, Any]]) -> Iterator[Aim]:
    peak = bandwidth(cells)
    for precision in ("fp32", "int8"):
        shares = [
            (cell["name"], achieved / peak[1])
            for cell in cells
            if peak is not None and cell["workload"] == "W7" and cell["precision"] == precision
            if (achieved := bytes_per_second(cell, "xattn")) is not None
        ]
        yield _aim(f"W7: share of the memory bandwidth, {precision}", ROOFLINE, shares)
