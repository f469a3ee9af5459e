"""``xattn train``: run a recipe."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn.cli.console import Progress, print_json, print_line, print_note
from xattn.cli.options import Json
from xattn.errors import UsageError
from xattn.readable import readable_bytes, readable_count

if TYPE_CHECKING:
    from xattn.tuning.train import Outcome

Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; unset: all cores.")]
RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file.")]


def train(recipe: RecipeFile = "", threads: Threads = None, json: Json = False) -> None:
    """Train what RECIPE says, or go on where a run of it was.

    Paths in the recipe are from the directory that this is called in. `accelerate launch -m xattn
    train RECIPE` runs it on several devices or machines.
    """
    _run(recipe, threads, json=json, preference=False)


def dpo(recipe: RecipeFile = "", threads: Threads = None, json: Json = False) -> None:
    """Train what RECIPE says, by direct preference optimisation.

    Its data have a `chosen` and a `rejected` answer; [preference] says how they are weighed.
    """
    _run(recipe, threads, json=json, preference=True)


def _run(recipe: str, threads: int | None, *, json: bool, preference: bool) -> None:
    if not recipe:
        raise UsageError("`RECIPE` must be given: a TOML file.")
    import torch

    from xattn.tuning.recipe import Preference, read_recipe
    from xattn.tuning.train import train as run

    if threads is not None:
        torch.set_num_threads(threads)
    read = read_recipe(Path(recipe))
    if preference and read.preference is None:
        read = read.model_copy(update={"preference": Preference()})
    with Progress("train", unit="updates", results_on_stdout=False) as progress:
        outcome = run(read, say=print_note, progress=progress.update)
    if json:
        print_json(asdict(outcome) | {"directory": str(outcome.directory)})
        return
    for line in _lines(outcome):
        print_line(line)


def _lines(outcome: "Outcome") -> list[str]:
    validated = (
        ""
        if outcome.best_loss is None
        else f", validation {outcome.best_loss:.4f} after update {outcome.best_step}"
    )
    rate = outcome.tokens / max(outcome.seconds, 1e-9)
    return [
        f"ended     {outcome.ended}, after {outcome.steps} updates",
        f"loss      {outcome.loss:.4f}{validated}",
        f"trained   {readable_count(outcome.trained)} weights",
        f"time      {outcome.seconds:.1f} s, {rate:.0f} learnt tokens/s",
        f"encoder   {outcome.encoder_passes} passes",
        f"memory    {readable_bytes(outcome.peak_bytes)} at most",
        *(f"{name:<10}{value:.2f}" for name, value in outcome.scores.items()),
        f"written   {outcome.directory}",
    ]
