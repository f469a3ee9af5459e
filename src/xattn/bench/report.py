"""The page: what was measured, on what, and whether it is what it should be."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xattn.bench.aims import (
    bandwidth,
    by_length,
    bytes_per_second,
    fastest,
    per_step,
    step_bytes,
    step_seconds,
)
from xattn.bench.charts import draw_all
from xattn.bench.rounds import REST_SECONDS
from xattn.bench.summary import ratio, spread
from xattn.readable import readable_seconds

PAGE = "bench.md"
TITLES = {
    "W1": "Whisper tiny.en on recordings",
    "W2": "One text",
    "W3": "One source, many prefixes",
    "W4": "Many requests over few documents",
    "W5": "A language model",
    "W6": "Cross-attention of one step against length",
    "W7": "The roofline",
}
METHOD = f"""\
Weights, inputs and thread counts are the same for all engines. Each runs in one process of its own,
pinned to the same cores, and they take turns: every engine once in each round, with
{REST_SECONDS * 1000:.0f} ms of rest between two turns. The others wait for a pipe meanwhile, and
what processor time they used then is in the record (`idle`). How an engine's threads wait within
its own turn is as it ships: OMP_WAIT_POLICY is unset, and libgomp's threads stop spinning
milliseconds after their work. A short call is repeated within a turn, and the turn's median counts.
Figures are medians over rounds; ratios are ratios of medians, with the tenth and ninetieth
percentile of the ratios within rounds behind them. Peak memory is VmHWM of a fresh process that
imports the engine, loads the model and makes one cold call."""

Table = list[str]


def write_report(record: dict[str, Any], directory: Path) -> Path:
    """Write the page and its pictures beside the record; returns the page."""
    directory.mkdir(parents=True, exist_ok=True)
    pictures = draw_all(record["cells"], directory)
    path = directory / PAGE
    path.write_text("\n".join(lines_of(record, pictures)) + "\n", encoding="utf-8")
    return path


def lines_of(record: dict[str, Any], pictures: dict[str, str]) -> Iterator[str]:
    """The page, line by line; ``pictures`` are file names by workload."""
    yield from ("# Side by side", "")
    facts = record["machine"] | {
        "rounds": record["settings"]["rounds"],
        **{name: value or "unset" for name, value in record["settings"]["environment"].items()},
    }
    yield from (f"- {name}: {value}" for name, value in facts.items())
    for engine, found in record["engines"].items():
        yield f"- {engine} runs with " + ", ".join(f"{key} {value}" for key, value in found.items())
    if record["settings"]["quick"]:
        yield from ("", "This is a quick run: small cells, few rounds. The aims are for full ones.")
    yield from ("", "## How it is measured", "", METHOD, "", "## Aims", "")
    yield from table(("aim", "wanted", "found", "verdict"), aim_rows(record))
    yield from _faults(record)
    for workload, title in TITLES.items():
        cells = [cell for cell in record["cells"] if cell["workload"] == workload]
        if cells:
            yield from ("", f"## {workload}: {title}", "")
            if workload in pictures:
                yield from (f"![{title}]({pictures[workload]})", "")
            yield from _section(workload, cells)
            yield from _remarks(cells)


def aim_rows(record: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Aims as a table: what, how much, what was found, and the verdict."""
    return [
        (
            aim["aim"],
            f"{aim['wanted']:g}",
            "-" if aim["found"] is None else f"{aim['found']:.2f}",
            aim["verdict"]
            + (f" in {len(aim['below'])} of {aim['cells']}" if aim.get("below") else ""),
        )
        for aim in record["aims"]
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """As Markdown."""
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _faults(record: dict[str, Any]) -> Iterator[str]:
    from xattn.bench.run import faults

    wrong = list(faults(record))
    if wrong:
        yield from ("", "## FAILED", "", "These cells do not count:", "")
        yield from (f"- {fault}" for fault in wrong)


def _section(workload: str, cells: Sequence[dict[str, Any]]) -> Table:
    if workload == "W6":
        return _lengths(cells)
    if workload == "W7":
        return _shares(cells)
    return _comparison(cells)


def _comparison(cells: Sequence[dict[str, Any]]) -> Table:
    """A row per cell and measure: each engine's figure, and how many times as long peers take."""
    peers = [peer for peer in PEERS if any("measures" in c["engines"].get(peer, {}) for c in cells)]
    rows = []
    for cell in cells:
        for measure, called in MEASURES.items():
            ours, *theirs = (_best(cell, engine, measure) for engine in ("xattn", *peers))
            if measure == "anew":
                theirs = [_best(cell, peer, "warm") if ours else None for peer in peers]
            if ours is None and not any(theirs):
                continue
            figures = [time_of(seconds) for seconds in (ours, *theirs)]
            ratios = [ratio_of(seconds, ours) for seconds in theirs]
            rows.append((cell["name"], called, *figures, *ratios, equal_of(cell)))
    names = [SHORT[peer] for peer in peers]
    header = ("cell", "measure", "xattn", *names, *(f"× {name}" for name in names), "outputs")
    return table(header, rows) + _memory(cells, peers)


def _best(cell: dict[str, Any], engine: str, measure: str) -> list[float] | None:
    found = cell["engines"].get(engine, {})
    return per_step(found, fastest(found, measure))


PEERS = ("ctranslate2", "transformers", "llama.cpp")
SHORT = {
    "xattn": "xattn",
    "ctranslate2": "CTranslate2",
    "transformers": "transformers",
    "llama.cpp": "llama.cpp",
}
MEASURES = {
    "warm": "from memory",
    "anew": "from memory, projected anew",
    "cold": "cold",
    "first": "to the first token",
}


def time_of(seconds: Sequence[float] | None) -> str:
    """A median as people read it."""
    if seconds is None:
        return "-"
    return readable_seconds(spread(seconds).median)


def ratio_of(theirs: Sequence[float] | None, ours: Sequence[float] | None) -> str:
    """``1.50 (1.42 to 1.61)``: how many times as long they take."""
    if theirs is None or ours is None:
        return "-"
    found = ratio(theirs, ours)
    return f"{found.median:.2f} ({found.p10:.2f} to {found.p90:.2f})"


def equal_of(cell: dict[str, Any]) -> str:
    """What the comparison of outputs found."""
    verdict = cell["equality"]
    if not verdict["holds"]:
        return "**DIFFER**"
    if verdict["agreement"] is None:
        return "nothing to compare"
    if verdict["rule"] == "same tokens":
        return "equal"
    shares = cell.get("followed", {})
    said = ", ".join(f"{SHORT[name]} {share:.0%}" for name, share in shares.items())
    same = f"as long, {verdict['agreement']:.0%} the same tokens"
    return f"{same}; float32's up to {said}" if said else same


def _memory(cells: Sequence[dict[str, Any]], peers: Sequence[str]) -> Table:
    """Peak memory, where it was taken."""

    def mebi(found: dict[str, Any]) -> str:
        if "memory" not in found:
            return "-"
        peak, loaded = found["memory"]["peak_bytes"], found["memory"]["loaded_bytes"]
        return f"{peak / 2**20:.0f} ({loaded / 2**20:.0f})"

    engines = ("xattn", *peers)
    taken = [cell for cell in cells if any("memory" in one for one in cell["engines"].values())]
    if not taken:
        return []
    rows = [
        (cell["name"], *(mebi(cell["engines"].get(name, {})) for name in engines)) for cell in taken
    ]
    header = ("peak memory, MiB (once loaded)", *(SHORT[name] for name in engines))
    return ["", *table(header, rows)]


def _lengths(cells: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for (form, beams), found in by_length(cells).items():
        for cell in found:
            held, read = step_bytes(cell, "held"), step_bytes(cell, "read")
            seconds = step_seconds(cell)
            rows.append(
                (
                    form,
                    beams.removeprefix("beam"),
                    str(cell["axes"]["positions"]),
                    readable_seconds(seconds),
                    f"{held / 2**20:.2f}",
                    f"{read / 2**20:.2f}",
                )
            )
    header = ("form", "beams", "positions", "time", "MiB held", "MiB read")
    return table(header, rows)


def _shares(cells: Sequence[dict[str, Any]]) -> Table:
    peak, rows = bandwidth(cells), []
    if peak is not None:
        rows.append((f"reading memory: {peak[0]}", "-", f"{peak[1] / 1e9:.1f}", "100 %"))
    for cell in cells:
        for engine in cell["engines"]:
            achieved = bytes_per_second(cell, engine)
            if achieved is not None:
                time = time_of(per_step(cell["engines"][engine], "warm"))
                share = f"{achieved / peak[1]:.0%}" if peak is not None else "-"
                what = f"{cell['name']}, {SHORT[engine]}"
                rows.append((what, time, f"{achieved / 1e9:.1f}", share))
    return table(("what", "a token", "GB/s", "share"), rows)


def _remarks(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Who did not run and why, and how those ran that could choose."""
    said: dict[str, list[str]] = {}
    for cell in cells:
        for engine, found in cell["engines"].items():
            if "not_run" in found:
                text = f"{SHORT.get(engine, engine)} not run: {found['not_run']}"
                said.setdefault(text, []).append(cell["name"])
            for measure, note in found.get("notes", {}).items():
                if isinstance(note, str):
                    text = f"{SHORT.get(engine, engine)}, {measure}: {note}"
                    said.setdefault(text, []).append(cell["name"])
    if said:
        yield ""
    for text, names in said.items():
        where = "all" if len(names) == len(cells) else ", ".join(names)
        yield f"- {text} ({where})"
