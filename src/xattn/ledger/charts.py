"""Pictures of ledgers. Needs matplotlib, the extra ``plot``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xattn.errors import MissingExtraError, UsageError
from xattn.ledger.account import Account, Ledger, What
from xattn.readable import readable_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS: dict[What, str] = {
    "states": "#1b6ca8",
    "int8 states": "#7db4d8",
    "projected states": "#9ecae9",
    "keys and values": "#e07a1f",
    "self-attention cache": "#9b5fb5",
    "weights": "#7a7a7a",
    "workspace": "#c9c9c9",
}


def draw_ledger(ledger: Account, path: Path) -> Path:
    """Bytes of each row, the largest first, coloured by what they are."""
    if path.suffix.lower() not in SUFFIXES:
        wanted = ", ".join(SUFFIXES)
        raise UsageError(f"a picture must end in {wanted}, but {str(path)!r} does not.")
    rows = [row for row in ledger.rows if row.resident and row.bytes]
    rows.sort(key=lambda row: row.bytes)
    figure = new_figure(8.5, 1.2 + 0.42 * len(rows))
    axes: Any = figure.subplots()
    for place, row in enumerate(rows):
        axes.barh(place, row.bytes / 2**20, color=COLOURS[row.what], height=0.7)
        text = f"  {readable_bytes(row.bytes)}  ({ledger.share(row):.0%})"
        axes.text(row.bytes / 2**20, place, text, va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [f"{row.input}: {row.what}" for row in rows], fontsize=9)
    axes.set_xlabel("MiB held", fontsize=9)
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
    title = f"{ledger.model}: {readable_bytes(ledger.total_bytes)} in all"
    if isinstance(ledger, Ledger):
        setting = ledger.setting
        title += f", {setting.batch} requests of {setting.beams} beams, {setting.form}"
    axes.set_title(title, fontsize=10, loc="left")
    tidy(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    return path


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure; :class:`MissingExtraError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing a ledger") from error
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def tidy(axes: Any) -> None:
    """No frame, and a light grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
