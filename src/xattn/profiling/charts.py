"""Pictures of a profile. Needs matplotlib, the extra ``plot``.

They are narrow, with large letters: on a telephone they are shown at half their size.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xattn.ledger import plan
from xattn.ledger.charts import COLOURS, new_figure, tidy
from xattn.profiling.run import Profile, most_positions
from xattn.readable import counted
from xattn.spec import ModelSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, LETTERS = 6.4, 11
KIND_COLOURS = {
    "document": "#1b6ca8",
    "text": "#1b6ca8",
    "table": "#2a9d5c",
    "audio": "#e07a1f",
    "image": "#9b5fb5",
}
_PHASES = {
    "load": "#c9c9c9",
    "canonicalise": "#2a9d5c",
    "encode": "#1b6ca8",
    "project": "#e07a1f",
    "prefill": "#9b5fb5",
}
_STEP = "#b5485f"
MOST_NAMED = 30
MOST_DRAWN, POINTS = 16384, 9


def draw_profile(profile: Profile, spec: ModelSpec, directory: Path) -> dict[str, Path]:
    """Draw what there are figures for, as PNG and SVG; returns the files' stems by name."""
    makers: dict[str, Callable[[], Figure | None]] = {
        "phases": lambda: phases(profile),
        "bytes": lambda: bytes_over_lengths(profile, spec),
        "latency": lambda: latency(profile),
        "store": lambda: store(profile),
    }
    directory.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, maker in makers.items():
        figure = maker()
        if figure is not None:
            figure.savefig(directory / f"{name}.png", dpi=160)
            figure.savefig(directory / f"{name}.svg")
            found[name] = directory / name
    return found


def phases(profile: Profile) -> "Figure":
    """What comes before the first token, and what a step is made of."""
    before = [(name, value) for name, value in profile.phases.items() if "step" not in name]
    step = [
        (name.removeprefix("step: "), value)
        for name, value in profile.phases.items()
        if name.startswith("step: ")
    ]
    figure = new_figure(WIDTH, 2.3 + 0.42 * (len(before) + len(step)))
    _title(figure, profile, "Time by phase, measured")
    ratios = [len(before), len(step)]
    above, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": ratios})
    _bars(above, before, [_PHASES[name] for name, _ in before], "milliseconds, once")
    _bars(below, step, [_STEP] * len(step), "milliseconds, in each step")
    return figure


def _bars(axes: Any, rows: list[tuple[str, float]], colours: list[str], unit: str) -> None:
    values = [1e3 * value for _, value in rows]
    axes.barh(range(len(rows)), values, color=colours, height=0.72)
    for place, value in enumerate(values):
        axes.text(value, place, f"  {_three_digits(value)}", va="center", fontsize=LETTERS - 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=LETTERS)
    axes.invert_yaxis()
    axes.set_xlabel(unit, fontsize=LETTERS)
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    tidy(axes)


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bytes_over_lengths(profile: Profile, spec: ModelSpec) -> "Figure | None":
    """What is held, by the ledger, over lengths of each kind of input, one below the other."""
    kinds = [kind for kind, _, _ in profile.inputs]
    kinds = list(dict.fromkeys(kinds))
    if not kinds:
        return None
    setting = profile.ledger.setting
    most = most_positions(spec, setting.prompt_tokens + setting.new_tokens)
    most = MOST_DRAWN if most is None else min(MOST_DRAWN, most)
    if most < POINTS:
        return None
    figure = new_figure(WIDTH, 0.6 + 3.4 * len(kinds))
    _title(figure, profile, "Bytes over length, predicted")
    panels = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
    for axes, kind in zip(panels, kinds, strict=True):
        lengths = _lengths(spec, most)
        ledgers = [
            plan(
                spec,
                _whole_inputs(spec, kind, length),
                beams=setting.beams,
                form=setting.form,
                dtype=setting.dtype,
                weights_dtype=setting.weights_dtype,
                prompt_tokens=setting.prompt_tokens,
                new_tokens=setting.new_tokens,
            )
            for length in lengths
        ]
        whats = [what for what in COLOURS if any(ledger.of(what) for ledger in ledgers)]
        stacks = [[ledger.of(what) / 2**20 for ledger in ledgers] for what in whats[::-1]]
        colours = [COLOURS[what] for what in whats[::-1]]
        axes.stackplot(lengths, stacks, labels=whats[::-1], colors=colours)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_major_locator(_few_ticks())
        axes.set_xlim(lengths[0], lengths[-1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"positions of {kind}", fontsize=LETTERS)
        axes.set_ylabel("MiB held", fontsize=LETTERS)
        axes.legend(fontsize=LETTERS - 2, loc="upper left", frameon=False, reverse=True)
        tidy(axes)
    return figure


def _lengths(spec: ModelSpec, most: int) -> list[int]:
    """Lengths at even steps; of whole windows, where an encoder has such."""
    unit = _whole(spec) or 1
    steps = (most * point // (POINTS - 1) for point in range(POINTS))
    return sorted({max(1, round(step / unit)) * unit for step in steps})


def _whole(spec: ModelSpec) -> int | None:
    """Positions that one source has at most; None where it may have any number."""
    encoder = spec.encoder
    if encoder is None:
        return None
    return encoder.position.limit if encoder.audio is None else encoder.audio.positions


def _whole_inputs(spec: ModelSpec, kind: str, positions: int) -> dict[str, Any]:
    """So many positions, in as many sources as an encoder with a limit needs."""
    unit = _whole(spec)
    return {kind: positions if unit is None else (positions // unit, unit)}


def latency(profile: Profile) -> "Figure | None":
    """Milliseconds of a step over the length of a memory, each kind a line."""
    if not profile.lengths:
        return None
    figure = new_figure(WIDTH, 4.0)
    _title(figure, profile, "A step over length, measured")
    axes: Any = figure.subplots()
    for kind in dict.fromkeys(one.kind for one in profile.lengths):
        some = [one for one in profile.lengths if one.kind == kind]
        xs, ys = [one.positions for one in some], [1e3 * one.seconds for one in some]
        axes.plot(xs, ys, "o-", color=KIND_COLOURS[kind], label=kind, linewidth=1.6)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.15 * max(1e3 * one.seconds for one in profile.lengths))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_locator(_few_ticks())
    axes.set_xlabel("positions of the memory", fontsize=LETTERS)
    axes.set_ylabel("milliseconds a step", fontsize=LETTERS)
    axes.legend(fontsize=LETTERS - 1, frameon=False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    tidy(axes)
    return figure


def _title(figure: "Figure", profile: Profile, what: str) -> None:
    """What is drawn, and of what."""
    model, wishes = Path(profile.model).name, profile.wishes
    if len(model) > MOST_NAMED:
        model = f"{model[: MOST_NAMED - 1]}…"
    about = f"{model}, {wishes.form}, {counted(wishes.beams, 'beam')}"
    figure.suptitle(f"{what}\n{about}", fontsize=LETTERS, x=0.02, ha="left")


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, steps=[1, 2, 5, 10])


def store(profile: Profile) -> "Figure | None":
    """Seconds for so many requests with and without a store, and where they should meet."""
    times = profile.store
    if times is None:
        return None
    figure = new_figure(WIDTH, 4.0)
    _title(figure, profile, "A store on disk or none, measured")
    axes: Any = figure.subplots()
    counts = [count for count, _, _ in times.measured]
    axes.plot(counts, [a for _, a, _ in times.measured], "o-", color="#7a7a7a", label="no store")
    axes.plot(counts, [b for _, _, b in times.measured], "o-", color="#1b6ca8", label="a store")
    if times.predicted_requests <= max(counts):
        label = f"predicted to meet: {times.predicted_requests:.2f} requests"
        axes.axvline(times.predicted_requests, color=_STEP, linestyle="--", label=label)
    axes.set_xlim(left=0)
    axes.set_xticks(counts)
    axes.set_ylim(0, 1.15 * max(max(a, b) for _, a, b in times.measured))
    axes.set_xlabel("requests for the same inputs", fontsize=LETTERS)
    axes.set_ylabel("seconds until all are encoded", fontsize=LETTERS)
    axes.legend(fontsize=LETTERS - 1, frameon=False)
    tidy(axes)
    return figure
