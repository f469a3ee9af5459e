"""``xattn plan train``: what adapting a model will cost."""

from typing import Annotated, Any

import typer

from xattn.cli.console import print_json, print_line, print_table
from xattn.cli.options import Hardware, Json, Offline, ShapeName
from xattn.errors import UsageError
from xattn.ledger.hardware import machine_of
from xattn.ledger.specs import spec_of
from xattn.ledger.training import (
    RANK,
    UTILISATION,
    Choice,
    Data,
    Training,
    choices,
    train,
    training_dtype,
)
from xattn.readable import readable_bytes, readable_count

TrainMethod = Annotated[
    list[str] | None, typer.Option("--method", help="full, lora, graft or gates; repeatable.")
]
Tokens = Annotated[
    str, typer.Option(metavar="N", help="Tokens in all, sources and targets: 1e9, 500_000_000.")
]
SourceLength = Annotated[int, typer.Option(min=1, help="Tokens of a source.")]
TargetLength = Annotated[int, typer.Option(min=1, help="Tokens of a target.")]
TrainBatch = Annotated[
    int, typer.Option("--batch", min=1, help="Examples on each machine at a time.")
]
Rank = Annotated[int, typer.Option(min=1, help="Of LoRA's matrices.")]
Every = Annotated[int, typer.Option(min=1, help="A graft in one of so many layers.")]
Shots = Annotated[int, typer.Option(min=0, help="Examples in a prompt, to compare with.")]
Utilisation = Annotated[
    float, typer.Option(help="Share of the data sheet's operations that training reaches.")
]
TrainGpu = Annotated[str, typer.Option("--gpu", help="The machine: h100, h100x8, a100 …")]
Budget = Annotated[
    float | None, typer.Option(min=0, help="Dollars for training and for --requests.")
]
ServedRequests = Annotated[
    str, typer.Option("--requests", metavar="N", help="Requests to be answered: 1e6.")
]


def plan_train(
    model: ShapeName = None,
    method: TrainMethod = None,
    tokens: Tokens = "1e8",
    source_length: SourceLength = 512,
    target_length: TargetLength = 128,
    batch: TrainBatch = 8,
    rank: Rank = RANK,
    every: Every = 4,
    shots: Shots = 8,
    utilisation: Utilisation = UTILISATION,
    gpu: TrainGpu = "h100",
    hardware: Hardware = None,
    requests: ServedRequests = "1e6",
    budget: Budget = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """What training MODEL takes: memory, operations, hours and dollars, and where from.

    Prompting, LoRA and training whole stand side by side for the data that is given. Each machine
    is taken to hold the whole model: sharding divides what is said of weights, gradients and
    optimiser.
    """
    if model is None:
        raise UsageError("`MODEL` must be given: a shape of `xattn plan --list`, or a config.json.")
    spec, machine = spec_of(model, offline=offline), machine_of(gpu, hardware)
    data = Data(
        tokens=_count("tokens", tokens),
        source_length=source_length,
        target_length=target_length,
        batch=batch,
    )
    served = _count("requests", requests)
    common: dict[str, Any] = {"rank": rank, "utilisation": utilisation}
    default = ["graft"] if spec.decoder.cross_attention is None else []
    wanted = method or [*default, "lora", "full"]
    found = [train(spec, one, data, machine, every=every, **common) for one in wanted]
    ways = list(choices(spec, data, machine, shots=shots, **common))
    if json:
        print_json(
            {
                "model": model,
                "machine": machine.key,
                "methods": [
                    vars(one)
                    | {"total_bytes": one.total_bytes, "checkpointed_bytes": one.checkpointed_bytes}
                    for one in found
                ],
                "requests": served,
                "choices": [
                    vars(one)
                    | {"dollars": one.dollars(served)}
                    | ({} if budget is None else {"within_budget": one.dollars(served) <= budget})
                    for one in ways
                ],
            }
        )
        return
    print_table(_TRAINING, [_trained(one) for one in found])
    print_line(f"\nto choose from, for {readable_count(served)} requests:")
    print_table(_CHOICES, [_choice(one, served, budget) for one in ways])
    dtype = training_dtype(machine)
    print_line("\n" + _FORMULAS.format(utilisation=utilisation, rank=rank, dtype=dtype))


def _count(name: str, given: str) -> int:
    try:
        value = float(given.replace("_", ""))
    except ValueError:
        value = -1.0
    if not 1 <= value <= 1e15:
        raise UsageError(f"`--{name}` must be a number from 1 to 1e15, but is {given!r} instead.")
    return int(value)


_TRAINING = (
    *("method", "trained", "weights", "gradients", "optimiser", "activations", "(checkpointed)"),
    *("in all", "(checkpointed)", "FLOPs", "hours", "$"),
)
_CHOICES = (
    *("way", "trained", "hours", "$ once", "$ of requests", "$ in all"),
    *("fits", "within budget"),
)
_FORMULAS = """\
FLOPs: the forward pass, counted exactly, times 2 + the share of weights that is trained (6ND and
4ND: Kaplan et al. 2020); with checkpointing the forward pass once more (Chen et al. 2016).
Weights, gradients, AdamW: 2 + 2 + 12 bytes a trained weight (Rajbhandari et al. 2020), 2 a frozen
one. Activations: Korthikanti et al. 2022, without dropout and without scores. LoRA of rank {rank}
on all of attention (Hu et al. 2021). Hours at {utilisation:.0%} of the machine's {dtype} rate."""


def _trained(one: Training) -> tuple[str, ...]:
    sizes = (one.weights, one.gradients, one.optimiser, one.activations, one.checkpointed)
    return (
        one.method,
        readable_count(one.trained),
        *map(readable_bytes, sizes),
        readable_bytes(one.total_bytes),
        readable_bytes(one.checkpointed_bytes),
        readable_count(one.flops),
        f"{one.hours:,.3g}",
        f"{one.dollars:,.3g}",
    )


def _choice(one: Choice, served: int, budget: float | None) -> tuple[str, ...]:
    dollars = one.dollars(served)
    within = "" if budget is None else "yes" if dollars <= budget else "no"
    return (
        one.way,
        readable_count(one.trained) or "nothing",
        f"{one.hours:,.3g}",
        f"{one.training_dollars:,.3g}",
        f"{dollars - one.training_dollars:,.3g}",
        f"{dollars:,.3g}",
        "yes" if one.obstacle is None else f"no: {one.obstacle}",
        within,
    )
