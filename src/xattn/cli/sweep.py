"""``xattn sweep``: which placement pays."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli.console import print_json, print_line, print_note, print_table
from xattn.cli.options import Json
from xattn.errors import UsageError
from xattn.placing import drawn
from xattn.readable import readable_bytes

if TYPE_CHECKING:
    from xattn.tuning.sweep import Sweep

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file.")]
Placements = Annotated[
    str | None,
    typer.Option(
        "--placements",
        metavar="LIST",
        help="Separated by commas: every:1,every:2,first,last. Layers of one by a plus: 0+3+5.",
    ),
]
Metric = Annotated[str, typer.Option("--metric", help="loss, or one that the recipe evaluates.")]
Seeds = Annotated[int, typer.Option(min=1, max=10, help="Of every placement.")]
Finalists = Annotated[int, typer.Option(min=0, help="The best so many are run with more seeds.")]
FinalistSeeds = Annotated[int, typer.Option(min=3, max=10, help="Of these.")]
Optuna = Annotated[
    int | None, typer.Option("--optuna", min=1, metavar="N", help="Let Optuna try N masks.")
]
OnRay = Annotated[bool, typer.Option("--ray/--here", help="Trials side by side on a Ray cluster.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; unset: all cores.")]
SweepDirectory = Annotated[str, typer.Argument(metavar="DIR", help="The sweep's directory.")]


def run(
    recipe: RecipeFile = "",
    placements: Placements = None,
    metric: Metric = "loss",
    seeds: Seeds = 1,
    finalists: Finalists = 3,
    finalist_seeds: FinalistSeeds = 3,
    optuna: Optuna = None,
    ray: OnRay = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Train RECIPE with each placement, the same budget for all, and draw what pays.

    A sweep that was interrupted goes on where it was.
    """
    if not recipe:
        raise UsageError("`RECIPE` must be given: a TOML file.")
    if (placements is None) == (optuna is None):
        raise UsageError("one of `--placements` and `--optuna` must be given, and not both.")
    import torch

    from xattn.tuning.recipe import read_recipe
    from xattn.tuning.report import report as write
    from xattn.tuning.sweep import search, sweep

    if threads is not None:
        torch.set_num_threads(threads)
    read = read_recipe(Path(recipe))
    if optuna is not None:
        if ray or seeds != 1:
            raise UsageError("`--ray` and `--seeds` must be left out with `--optuna`.")
        found = search(
            read,
            optuna,
            metric=metric,
            finalists=finalists,
            finalist_seeds=finalist_seeds,
            say=print_note,
        )
    else:
        run_all = None
        if ray:
            from xattn.tuning.cluster import on_ray

            run_all = on_ray(threads)
        found = sweep(
            read,
            _several(placements or ""),
            metric=metric,
            seeds=seeds,
            finalists=finalists,
            finalist_seeds=finalist_seeds,
            run_all=run_all,
            say=print_note,
        )
    files = write(found, Path(read.directory))
    _tell(found, [str(file) for file in files], json=json)


def _several(text: str) -> list[str]:
    """Placements separated by commas; in one that lists layers a plus stands for its commas."""
    given = [one.strip() for one in text.split(",")]
    return [one.replace("+", ",") if one[:1].isdigit() else one for one in given]


def report(directory: SweepDirectory = "", metric: Metric = "loss", json: Json = False) -> None:
    """Write the page, picture and table of a sweep again."""
    if not directory:
        raise UsageError("`DIR` must be given: a sweep's directory.")
    from xattn.tuning.report import report as write
    from xattn.tuning.sweep import read_trials, summarised

    found = summarised(read_trials(Path(directory)), metric)
    files = write(found, Path(directory))
    _tell(found, [str(file) for file in files], json=json)


def _tell(found: "Sweep", files: list[str], *, json: bool) -> None:
    from xattn.tuning.report import ordered, recommendation

    if json:
        told: dict[str, Any] = asdict(found) | {"files": files}
        print_json(told | {"recommended": found.recommended.placement})
        return
    rows = []
    for one in ordered(found):
        spread = "" if one.interval is None else f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"
        held, took = readable_bytes(one.cost.bytes_per_position), one.cost.seconds_per_token
        rows.append(
            (
                *(one.placement, drawn(one.mask), f"{one.quality:.4f}", spread, str(one.seeds)),
                *(held, f"{1000 * took:.2f} ms", "front" if one.on_front else ""),
            )
        )
    header = ("placement", "layers", found.metric, "95 %", "seeds", "a position", "a token", "")
    print_table(header, rows)
    print_line("\n" + recommendation(found))
    for file in files:
        print_line(f"written {file}")
