"""The pictures of the page, one for each workload that has figures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xattn.bench.aims import (
    COLD_EACH,
    ROOFLINE,
    TRANSFORMERS_EACH,
    WARM_EACH,
    bandwidth,
    by_length,
    bytes_per_second,
    comparable,
    per_step,
    step_bytes,
    step_seconds,
)
from xattn.bench.summary import Spread, ratio, spread, straight_line
from xattn.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "xattn": "#1b6ca8",
    "ctranslate2": "#e07a1f",
    "transformers": "#7a7a7a",
    "llama.cpp": "#2a9d5c",
    "machine": "#444444",
}
FORM_COLOURS = ("#1b6ca8", "#e07a1f", "#2a9d5c", "#9b5fb5", "#b5485f")
Cells = Sequence[dict[str, Any]]


def draw_all(cells: Cells, directory: Path) -> dict[str, str]:
    """Draw what there are figures for; returns the file names by workload."""
    makers: dict[str, Callable[[Cells], Figure | None]] = {
        "W1": _ratios,
        "W2": _ratios,
        "W3": _bars,
        "W4": _bars,
        "W5": _bars,
        "W6": _lengths,
        "W7": _roofline,
    }
    drawn = {}
    for workload, make in makers.items():
        figure = make([cell for cell in cells if cell["workload"] == workload])
        if figure is not None:
            name = f"{workload.lower()}.png"
            figure.savefig(directory / name, dpi=130)
            drawn[workload] = name
    return drawn


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing the benchmark") from error
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _tidy(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def _label(cell: dict[str, Any]) -> str:
    return "  ".join(str(value) for value in cell["axes"].values())


# W1, W2: how many times faster, with the aims as lines


def _ratios(cells: Cells) -> "Figure | None":
    shown = [cell for cell in cells if any(_spread(cell, peer, m) for peer, m, _, _ in _PANELS)]
    if not shown:
        return None
    figure = _figure(13, 1.6 + 0.24 * len(shown))
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (peer, measure, title, aim) in zip(panels, _PANELS, strict=True):
        _dots(axes, shown, peer, measure)
        axes.axvline(aim, color="#b5485f", linewidth=1.2, linestyle="--")
        axes.set_title(f"{title}\naim: at least {aim:g}", fontsize=10, loc="left")
        axes.set_xlabel("times as fast (median; p10 to p90 of rounds)", fontsize=9)
        _tidy(axes)
        axes.set_xlim(left=0)
    panels[0].set_yticks(range(len(shown)), [_label(cell) for cell in shown], fontsize=8)
    panels[0].set_ylim(len(shown) - 0.5, -0.5)
    return figure


_PANELS = (
    ("ctranslate2", "warm", "from memory, against CTranslate2", WARM_EACH),
    ("ctranslate2", "cold", "cold, against CTranslate2", COLD_EACH),
    ("transformers", "warm", "from memory, against transformers", TRANSFORMERS_EACH),
)


def _spread(cell: dict[str, Any], peer: str, measure: str) -> Spread | None:
    engines = cell["engines"]
    a = per_step(engines.get(peer, {}), measure)
    b = per_step(engines.get("xattn", {}), comparable(cell, peer, measure))
    return None if a is None or b is None else ratio(a, b)


def _dots(axes: "Axes", cells: Cells, peer: str, measure: str) -> None:
    for row, cell in enumerate(cells):
        found = _spread(cell, peer, measure)
        if found is None:
            continue
        median, p10, p90 = found
        filled = COLOURS["xattn"] if cell["precision"] == "fp32" else "white"
        axes.plot([p10, p90], [row, row], color=COLOURS["xattn"], linewidth=1.4, alpha=0.6)
        axes.plot(median, row, "o", color=COLOURS["xattn"], markerfacecolor=filled, markersize=5.5)


# W3 to W5: times, side by side


def _bars(cells: Cells) -> "Figure | None":
    rows = []
    for cell in cells:
        for engine, found in cell["engines"].items():
            for measure in found.get("measures", {}):
                seconds = per_step(found, measure)
                if seconds is not None:
                    rows.append((cell, engine, measure, spread(seconds)))
    if not rows:
        return None
    figure = _figure(11, 1.3 + 0.3 * len(rows))
    axes = figure.subplots()
    for place, (_, engine, _, value) in enumerate(rows):
        axes.barh(place, value.median, color=COLOURS[engine], height=0.72)
        axes.plot([value.p10, value.p90], [place, place], color="black", linewidth=1.2)
        axes.text(value.p90, place, f"  {value.median:.3g} s", va="center", fontsize=8)
    names = [f"{_label(cell)}   {engine}, {measure}" for cell, engine, measure, _ in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if max(row[3].median for row in rows) > 20 * min(row[3].median for row in rows):
        axes.set_xscale("log")
    axes.set_xlabel("seconds, less is better (line: p10 to p90 of rounds)", fontsize=9)
    axes.margins(x=0.12)
    _tidy(axes)
    return figure


# W6: against length


def _lengths(cells: Cells) -> "Figure | None":
    series = by_length(cells)
    if not series:
        return None
    figure = _figure(12, 4.6)
    times, sizes = figure.subplots(1, 2)
    forms = list(dict.fromkeys(form for form, _ in series))
    for (form, beams), found in series.items():
        colour = FORM_COLOURS[forms.index(form) % len(FORM_COLOURS)]
        style = "-" if beams == "beam1" else "--"
        positions = [cell["axes"]["positions"] for cell in found]
        seconds = [step_seconds(cell) * 1e3 for cell in found]
        label = f"{form}, {beams.removeprefix('beam')} beams".replace("1 beams", "1 beam")
        if len(found) > 2:
            label += f" (R² {straight_line(positions, seconds).r_squared:.3f})"
        times.plot(positions, seconds, style, marker="o", markersize=4, color=colour, label=label)
        mebi = [step_bytes(cell, "held") / 2**20 for cell in found]
        # Bytes are the same for all beams: the dashes lie on the line.
        wide = 4.0 if beams == "beam1" else 1.6
        shade = colour if beams == "beam1" else "black"
        alpha = 0.5 if beams == "beam1" else 1.0
        sizes.plot(positions, mebi, style, color=shade, linewidth=wide, alpha=alpha, label=label)
    for axes, unit in ((times, "milliseconds"), (sizes, "MiB held")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("positions of the memory", fontsize=9)
        axes.set_ylabel(f"{unit}, all layers", fontsize=9)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    times.legend(fontsize=8, frameon=False)
    times.set_title("time", fontsize=10, loc="left")
    sizes.set_title("bytes: coloured one beam, dashed four", fontsize=10, loc="left")
    return figure


# W7: shares of what the memory gives


def _roofline(cells: Cells) -> "Figure | None":
    peak = bandwidth(cells)
    rows = [
        (f"{_label(cell)}   {engine}", engine, achieved)
        for cell in cells
        for engine in cell["engines"]
        if (achieved := bytes_per_second(cell, engine)) is not None
    ]
    if peak is None or not rows:
        return None
    figure = _figure(11, 1.4 + 0.36 * len(rows))
    axes = figure.subplots()
    for place, (_, engine, achieved) in enumerate(rows):
        axes.barh(place, achieved / 1e9, color=COLOURS[engine], height=0.7)
        axes.text(achieved / 1e9, place, f"  {achieved / peak[1]:.0%}", va="center", fontsize=9)
    axes.axvline(peak[1] / 1e9, color="black", linewidth=1.2)
    axes.axvline(ROOFLINE * peak[1] / 1e9, color="#b5485f", linewidth=1.2, linestyle="--")
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(
        f"GB/s read (black: {peak[0]}, {peak[1] / 1e9:.1f}; dashed: the aim, {ROOFLINE:.0%} of it)",
        fontsize=9,
    )
    axes.margins(x=0.08)
    _tidy(axes)
    return figure
