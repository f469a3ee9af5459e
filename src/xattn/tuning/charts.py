"""Pictures of placements: what is kept against how good it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xattn.errors import MissingExtraError, SaveError
from xattn.tuning.probe import Probe

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
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    write(drawing, path)
