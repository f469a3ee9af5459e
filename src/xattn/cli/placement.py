"""``xattn placement``: which layers cross-attend, and which of a model's need to."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xattn.cli.console import print_json, print_line, print_note, print_table
from xattn.cli.loading import load_model
from xattn.cli.options import ADAPTED, STORE, Json, takes
from xattn.cli.stores import use_store
from xattn.errors import UsageError
from xattn.placing import drawn, layers_of, written
from xattn.readable import readable_bytes

if TYPE_CHECKING:
    from xattn.tuning.probe import Probe

PlacementArgument = Annotated[str, typer.Argument(metavar="PLACEMENT", help="every:4, 3,8,13 …")]
Layers = Annotated[int, typer.Option(min=1, help="Of the decoder.")]
ProbedModel = Annotated[str, typer.Argument(metavar="MODEL", help="A model with cross-attention.")]
DataFile = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help='JSON lines, {"source": …, "target": …}, a recording as {"audio": PATH}; or two '
        "files of lines, by giving it twice.",
    ),
]
MetricName = Annotated[
    Literal["wer", "bleu", "chrf", "exact", "loss"],
    typer.Option("--metric", help="By which it is scored."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Examples, at most.")]
Picture = Annotated[
    str | None, typer.Option("--plot", metavar="FILE", help="The curve as a picture (PNG, SVG).")
]


def show(placement: PlacementArgument = "", layers: Layers = 12, json: Json = False) -> None:
    """Which of --layers layers PLACEMENT names."""
    mask = layers_of(placement or "all", layers)
    if json:
        print_json({"placement": written(mask), "layers": [n for n, one in enumerate(mask) if one]})
        return
    print_line(f"{drawn(mask)}  {sum(mask)} of {layers}: {written(mask)}")


@takes(store=STORE, loading=ADAPTED)
def probe(
    model: ProbedModel = "",
    data: DataFile = None,
    metric: MetricName = "wer",
    limit: Limit = None,
    plot: Picture = None,
    json: Json = False,
    *,
    store: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Leave out a trained model's cross-attention layer by layer, and score what it still says.

    Beside that stand how widely each layer reads and how much it adds, which cost no scoring.
    """
    if not data:
        raise UsageError("`--data` must be given: what the model is to say of which sources.")
    from xattn.tuning.examples import read_examples
    from xattn.tuning.probe import probe as run

    loaded = load_model(model, **loading)
    examples = read_examples(data if len(data) > 1 else data[0], Path(), limit)
    use_store(loaded, store)
    found = run(loaded, examples, metric, say=print_note)
    if plot is not None:
        from xattn.tuning.charts import draw_probe

        draw_probe(found, Path(plot))
    if json:
        print_json(asdict(found) | {"ranked": found.ranked})
        return
    for line in _lines(found):
        print_line(line)
    print_table(
        ("layer", f"{found.metric} without it", "entropy", "size", "gate"),
        [
            (
                *(str(one.layer), f"{one.alone:.2f}", f"{one.entropy:.0%}"),
                *("-" if value is None else f"{value:.0%}" for value in (one.size, one.gate)),
            )
            for one in found.layers
        ],
    )


def _lines(found: "Probe") -> list[str]:
    layers = 1 + max(found.curve[0].layers)
    lines = [f"{found.model}, {found.examples} examples, {found.metric} against layers kept:"]
    for kept in found.curve:
        mask = [layer in kept.layers for layer in range(layers)]
        held = readable_bytes(kept.bytes_per_position)
        lines.append(f"  {drawn(mask)}  {kept.score:8.2f}  {held} a position")
    return [*lines, ""]
