"""Pictures of placements: what is kept against how good it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xattn.errors import MissingExtraError, SaveError
from xattn.tuning.probe import Probe
from xattn.tuning.sweep import Sweep, badness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, ACCENT = "#4c78a8", "#e45756"
UNITS = {"wer": "word error rate (%)", "bleu": "BLEU", "chrf": "chrF", "exact": "exact match (%)"}


def figure(width: float, height: float) -> "Figure":
    """An empty one; :class:`MissingExtraError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "pictures") from error
    return Figure(figsize=(width, height), layout="constrained")


def write(drawing: "Figure", path: Path) -> None:
    """Into a file of the kind that its suffix says; raises :class:`SaveError`."""
    try:
        drawing.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise SaveError(f"{path}: the picture cannot be written: {error}") from error


def draw_probe(found: Probe, path: Path) -> None:
    """The score against layers that are kept, each named where it is left out."""
    drawing = figure(7, 4)
    axes: Any = drawing.subplots()
    counts = [len(kept.layers) for kept in found.curve]
    axes.plot(counts, [kept.score for kept in found.curve], "o-", color=INK)
    for kept in found.curve[1:]:
        for value in kept.tried.values():
            axes.plot(len(kept.layers), value, "_", color="#bbbbbb", markersize=14, zorder=1)
        axes.annotate(
            f"without {kept.left_out}",
            (len(kept.layers), kept.score),
            textcoords="offset points",
            xytext=(6, 8),
            fontsize=8,
        )
    axes.set(
        xlabel="layers with cross-attention",
        ylabel=UNITS[found.metric],
        title=f"{Path(found.model).name}: {found.examples} examples",
    )
    axes.set_xticks(counts)
    if found.metric == "wer":
        axes.set_yscale("symlog", linthresh=10)
        axes.set_ylim(0, 300)
    axes.margins(x=0.12)
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    write(drawing, path)


def draw_sweep(found: Sweep, path: Path) -> None:
    """Quality against bytes of a position, the front as a line, and the placements as masks."""
    drawing = figure(11, 4.6)
    axes: Any
    rows: Any
    axes, rows = drawing.subplots(1, 2, width_ratios=(3, 2))
    ordered = sorted(found.placements, key=lambda one: one.cost.bytes_per_position)
    front = [one for one in ordered if one.on_front]
    kib = [one.cost.bytes_per_position / 1024 for one in front]
    axes.plot(kib, [one.quality for one in front], "-", color=ACCENT, alpha=0.6, label="front")
    for one in ordered:
        colour = ACCENT if one.on_front else INK
        x = one.cost.bytes_per_position / 1024
        if one.interval is not None:
            axes.vlines(x, *one.interval, color=colour, alpha=0.5)
        axes.plot(x, one.quality, "o", color=colour)
        axes.annotate(
            one.placement, (x, one.quality), textcoords="offset points", xytext=(5, 5), fontsize=8
        )
    axes.set(
        xlabel="keys and values of a position (KiB)",
        ylabel=UNITS.get(found.metric, "validation loss (nats a token)"),
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    best_first = sorted(found.placements, key=lambda one: badness(found.metric, one.quality))
    for row, one in enumerate(best_first):
        for layer, crosses in enumerate(one.mask):
            rows.add_patch(_cell(layer, row, INK if crosses else "#eeeeee"))
        text = f"{one.placement}  {one.quality:.2f}"
        rows.text(len(one.mask) + 0.3, row, text, va="center", fontsize=8)
    rows.set(xlim=(-0.6, len(best_first[0].mask) * 1.9), ylim=(len(best_first) - 0.4, -0.6))
    rows.set(xlabel="layer", yticks=[], xticks=range(len(best_first[0].mask)))
    rows.set_frame_on(False)
    write(drawing, path)


def _cell(layer: int, row: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((layer - 0.45, row - 0.4), 0.9, 0.8, color=colour)
