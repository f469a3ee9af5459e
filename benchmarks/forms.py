"""What forms of cross-attention are predicted to cost, and what they cost.

    python benchmarks/forms.py [--seconds 90] [--positions 256 512 …] [--models DIRECTORY] [--torch]

A random T5-small reads memories of 256 to 16384 positions, with 1 and 4 beams, materialised and
absorbed. A projection and a step of the decoder are timed in turn, over and over, for as long as
there are seconds, and the least of each counts; what a memory adds to a step is the step with it,
less the step without. A call of n steps then takes a projection and n steps of the whole decoder.
The form that ``auto`` takes is right where that call is the sooner done; otherwise its regret is
how much longer it takes, as a share of the sooner one.

Writes a JSON record and a Markdown page to benchmarks/results/MACHINE-DATE/.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import xattn
from xattn.bench.machine import record, results
from xattn.bench.making import make
from xattn.costs import Rates, Reading, cost
from xattn.decoding.forms import EXACT, decide
from xattn.memory import Memory, MemoryKey, SpanTable, digest_of
from xattn.models.network import Network
from xattn.models.rates import measure, uses_kernels
from xattn.spec import Form

RESULTS = results(Path(__file__).parent / "results")
POSITIONS = (256, 512, 1024, 2048, 4096, 8192, 16384)
BEAMS, STEPS = (1, 4), (1, 8, 64, 256)


@dataclass(kw_only=True)
class Cell:
    """One thing that is timed."""

    run: Callable[[], object]
    least: float = float("inf")
    times: int = 0

    def time(self) -> None:
        start = time.perf_counter()
        self.run()
        self.least = min(self.least, time.perf_counter() - start)
        self.times += 1


@dataclass(kw_only=True)
class Length:
    """Everything that is timed on one memory."""

    positions: int
    projecting: Cell
    steps: dict[tuple[Form, int], Cell] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--positions", type=int, nargs="+", default=POSITIONS)
    parser.add_argument("--models", type=Path, help="where the model is kept; unset: nowhere")
    parser.add_argument("--torch", action="store_true", help="without the kernels")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        files = make("t5-small", arguments.models or Path(scratch))
        network = xattn.load(files.xattn, offline=True).network
    network.use_kernels = not arguments.torch
    kernels = uses_kernels(network)
    rates = measure(kernels=kernels)
    with torch.inference_mode():
        alone, lengths = cells(network, arguments.positions)
    end = time.monotonic() + arguments.seconds
    every = [
        *alone.values(),
        *(c for one in lengths for c in (one.projecting, *one.steps.values())),
    ]
    rounds = 0
    while rounds < 3 or time.monotonic() < end:
        for cell in every:
            cell.time()
        rounds += 1
    rows = [
        row(network, one, beams, alone[beams].least, rates) for one in lengths for beams in BEAMS
    ]
    found = {
        "machine": record(arguments.threads, packages=("torch",)),
        "kernels": kernels,
        "rates": asdict(rates),
        "rounds": rounds,
        "cells": rows,
        "summary": summary(rows),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    name = "forms" if kernels else "forms-torch"
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(page(found))
    print(page(found))


def cells(network: Network, positions: Sequence[int]) -> tuple[dict[int, Cell], list[Length]]:
    """Steps without a memory by beams, and everything on memories of these lengths."""
    alone = {beams: Cell(run=stepping(network, [], beams)) for beams in BEAMS}
    lengths = []
    for S in positions:
        memory = memory_of(S, network.spec.decoder.memory_width)
        one = Length(
            positions=S, projecting=Cell(run=lambda memory=memory: network.project(memory))
        )
        for form in EXACT:
            projection = network.project(memory, form=form)
            for beams in BEAMS:
                one.steps[form, beams] = Cell(run=stepping(network, [projection], beams))
        lengths.append(one)
    return alone, lengths


def stepping(network: Network, attended: list[Any], beams: int) -> Callable[[], object]:
    """One step of so many rows that read the same."""
    state = network.start([attended] * beams)
    tokens_R1 = torch.full((beams, 1), 5)

    def step() -> None:
        state.truncate([0] * beams)
        network.step(tokens_R1, state)

    return step


def memory_of(positions: int, width: int) -> Memory:
    generator = torch.Generator().manual_seed(positions)
    digest = digest_of(b"forms")
    return Memory(
        states_SD=torch.randn(positions, width, generator=generator),
        key=MemoryKey(
            source=digest, modality="text", preprocessing="none", encoder=digest, dtype="float32"
        ),
        spans=SpanTable.even(positions, 1.0, "tokens"),
    )


def row(network: Network, one: Length, beams: int, alone: float, rates: Rates) -> dict[str, Any]:
    """Predicted and measured, in milliseconds, and what each number of steps makes of it."""
    S, decoder = one.positions, network.spec.decoder
    reading = Reading(positions=S, rows=beams, prompt_tokens=beams)
    found: dict[str, Any] = {"positions": S, "beams": beams}
    seconds: dict[Form, Callable[[int], float]] = {}
    for form in EXACT:
        predicted = cost(decoder, [reading], form, rates, steps=1)
        step = one.steps[form, beams].least
        projecting = one.projecting.least if form == "materialized" else 0.0
        found[form] = {
            "predicted_step_ms": ms(predicted.step_seconds),
            "measured_step_ms": ms(step - alone),
            "predicted_projection_ms": ms(predicted.projection_seconds),
            "measured_projection_ms": ms(projecting),
        }
        seconds[form] = lambda n, projecting=projecting, step=step: projecting + n * step
    found["choices"] = []
    for n in STEPS:
        chosen = decide(network, [reading], n, lambda: rates).form
        least = min(seconds[form](n) for form in EXACT)
        regrets = {form: round(seconds[form](n) / least - 1, 4) for form in EXACT}
        found["choices"].append({"steps": n, "chosen": chosen, "regrets": regrets})
    return found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all cells and numbers of steps: regrets of auto, and of one form always."""
    choices = [choice for one in rows for choice in one["choices"]]
    regrets = [choice["regrets"][choice["chosen"]] for choice in choices]
    every = {"auto": regrets} | {form: [c["regrets"][form] for c in choices] for form in EXACT}
    return {
        "choices": len(choices),
        "right": sum(regret == 0 for regret in regrets),
        "mean_regret": {name: round(sum(all_) / len(all_), 4) for name, all_ in every.items()},
        "worst_regret": {name: max(all_) for name, all_ in every.items()},
    }


def ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def page(found: dict[str, Any]) -> str:
    """As Markdown."""
    about = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    lines = [
        "# Forms of cross-attention, predicted and measured",
        "",
        f"Measured on: {about}; {'the kernels' if found['kernels'] else 'torch alone'}; "
        f"{found['rounds']} rounds.",
        "",
        "| positions | beams | form | step, predicted ms | measured | to project, predicted ms "
        "| measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found["cells"]:
        for form in EXACT:
            values = " | ".join(f"{value:.2f}" for value in one[form].values())
            lines.append(f"| {one['positions']} | {one['beams']} | {form} | {values} |")
    lines += [
        "",
        "| positions | beams | steps | auto takes | regret of it | materialized | absorbed |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found["cells"]:
        for choice in one["choices"]:
            regrets = choice["regrets"]
            values = [regrets[form] for form in (choice["chosen"], *EXACT)]
            cells = " | ".join(f"{value:.1%}" for value in values)
            where = f"{one['positions']} | {one['beams']} | {choice['steps']}"
            lines.append(f"| {where} | {choice['chosen']} | {cells} |")
    total = found["summary"]
    mean, worst = total["mean_regret"], total["worst_regret"]
    told = "; ".join(f"{name} {mean[name]:.1%}, at worst {worst[name]:.1%}" for name in mean)
    lines += [
        "",
        f"{total['right']} of {total['choices']} choices were right. Mean regret: {told}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
