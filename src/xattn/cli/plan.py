"""``xattn plan``: what a configuration will cost, before anything is allocated."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from xattn.cli.console import print_json, print_line, print_table
from xattn.cli.options import Json
from xattn.cli.sizes import size_of
from xattn.counts import CodecName
from xattn.errors import UsageError
from xattn.ledger.account import HEADER, Ledger, readable_bytes, readable_count
from xattn.ledger.alternatives import Alternative, alternatives
from xattn.ledger.amounts import KINDS
from xattn.ledger.fit import Fit, fit
from xattn.ledger.hardware import Estimate, estimate, machine_of, machines
from xattn.ledger.plan import NEW_TOKENS, plan
from xattn.ledger.shapes import shapes
from xattn.ledger.specs import spec_of
from xattn.ledger.training import (
    RANK,
    UTILISATION,
    Choice,
    Data,
    Training,
    choices,
    train,
)
from xattn.spec import Form

INPUTS, REQUESTS, MACHINE, SHOWN = "What is attended to", "Requests", "Machine", "What is shown"

ShapeName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A built-in shape (`--list`), a hub id, a config.json, or a model on disk.",
    ),
]


def _amount(kind: str, help: str) -> Any:
    return typer.Option(f"--{kind}", metavar="AMOUNT", rich_help_panel=INPUTS, help=help)


Document = Annotated[str | None, _amount("document", "Tokens or words: 250, 180w, 20x250.")]
TableRows = Annotated[str | None, _amount("table", "Rows, of columns: 1000r, 1000r8c; or tokens.")]
Audio = Annotated[str | None, _amount("audio", "A time: 30s, 2m, 3x30s; or positions: 1500p.")]
Image = Annotated[str | None, _amount("image", "Pictures: 2, or by pixels: 1024x768, 2x1024x768.")]
Batch = Annotated[int, typer.Option(min=1, rich_help_panel=REQUESTS, help="Requests at a time.")]
Beams = Annotated[int, typer.Option(min=1, rich_help_panel=REQUESTS, help="Beams of each.")]
FormName = Annotated[
    Form, typer.Option("--form", rich_help_panel=REQUESTS, help="How memories are read.")
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "int8"],
    typer.Option(rich_help_panel=REQUESTS, help="Of states, keys and values, and weights."),
]
WeightsDtype = Annotated[
    Literal["float32", "bfloat16", "float16", "int8"] | None,
    typer.Option(rich_help_panel=REQUESTS, help="Of weights, where that is another."),
]
StoreCodec = Annotated[
    CodecName | None,
    typer.Option(rich_help_panel=REQUESTS, help="Add what memories take on disk in this codec."),
]
SharedInputs = Annotated[
    bool,
    typer.Option("--shared", rich_help_panel=REQUESTS, help="All requests read the same inputs."),
]
PromptTokens = Annotated[
    int, typer.Option(min=1, rich_help_panel=REQUESTS, help="Decoder tokens before the first.")
]
NewTokens = Annotated[
    int, typer.Option(min=1, rich_help_panel=REQUESTS, help="Tokens that each generates.")
]
Gpu = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=MACHINE,
        help="Seconds and dollars on this machine: h100, a100, l4, t4, cpu; h100x8 is eight. "
        "Repeatable.",
    ),
]
Hardware = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=MACHINE,
        help="TOML with other machines or prices, laid over the built-in table.",
    ),
]
FitSize = Annotated[
    int | None,
    typer.Option(
        "--fit",
        metavar="SIZE",
        rich_help_panel=MACHINE,
        parser=size_of(at_least=1),
        help="The largest batch, beams and inputs that fit: 24GiB.",
    ),
]
ListShapes = Annotated[
    bool, typer.Option("--list", rich_help_panel=SHOWN, help="The shapes that are built in.")
]
Offline = Annotated[bool, typer.Option("--offline/--online", help="Never touch the network.")]
PlotFile = Annotated[
    Path | None,
    typer.Option(
        "--plot", metavar="FILE", rich_help_panel=SHOWN, help="Draw the bytes as PNG, SVG or PDF."
    ),
]


def plan_model(
    model: ShapeName = None,
    document: Document = None,
    table: TableRows = None,
    audio: Audio = None,
    image: Image = None,
    batch: Batch = 1,
    beams: Beams = 1,
    form: FormName = "materialized",
    dtype: Dtype = "float32",
    weights_dtype: WeightsDtype = None,
    store_codec: StoreCodec = None,
    shared: SharedInputs = False,
    prompt_tokens: PromptTokens = 1,
    new_tokens: NewTokens = NEW_TOKENS,
    gpu: Gpu = None,
    hardware: Hardware = None,
    fit_bytes: FitSize = None,
    list_shapes: ListShapes = False,
    plot: PlotFile = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """What MODEL will take, by arithmetic: bytes, operations, seconds and dollars.

    No weights are read, and nothing is allocated: a 90B model can be planned on a laptop. Beside
    the configuration that is asked for stand its alternatives, and what transformers would
    allocate. `xattn plan train MODEL` is the same for training.
    """
    if list_shapes:
        _list(json)
        return
    if model is None:
        raise UsageError("`MODEL` must be given: a shape of `xattn plan --list`, or a config.json.")
    spec = spec_of(model, offline=offline)
    given = {"document": document, "table": table, "audio": audio, "image": image}
    inputs = {str(kind): given[kind] for kind in KINDS if given.get(kind) is not None}
    settings: dict[str, Any] = {
        "batch": batch,
        "beams": beams,
        "dtype": dtype,
        "weights_dtype": weights_dtype,
        "store_codec": store_codec,
        "shared": shared,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
    }
    ledger = plan(spec, inputs, form=form, **settings)
    others = alternatives(spec, inputs, form=form, **settings) if inputs else []
    fits = None if fit_bytes is None else fit(spec, inputs, fit_bytes, **settings)
    estimates = [estimate(ledger, machine_of(name, hardware)) for name in gpu or ()]
    if plot is not None:
        ledger.plot(plot)
    if json:
        print_json(_document(model, ledger, others, fits, estimates))
        return
    print_table(HEADER, ledger.cells())
    if others:
        print_line("")
        print_table(_ALTERNATIVES, [_alternative(one) for one in others])
    if fits is not None:
        assert fit_bytes is not None
        print_line(f"\nfits {readable_bytes(fit_bytes)}, weights and workspace included:")
        kinds = list(inputs)
        print_table(
            ("form", "requests", "beams", *(f"{kind}s each" for kind in kinds)),
            [_fitted(one, kinds) for one in fits],
        )
    if estimates:
        _, day = machines(hardware)
        print_line(f"\nthe least that rates of data sheets allow, at prices of {day}:")
        print_table(_ESTIMATES, [_estimated(one) for one in estimates])
    if plot is not None:
        print_line(f"drawn to {plot}")


def _list(json: bool) -> None:
    from xattn.counts import parameters
    from xattn.ledger.amounts import kinds_of

    rows = []
    for shape in shapes().values():
        spec = spec_of(shape.name)
        rows.append((shape.name, spec.family, parameters(spec), kinds_of(spec), shape.hub_id))
    if json:
        names = ("name", "family", "parameters", "inputs", "hub_id")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    print_table(
        ("name", "family", "weights", "inputs", "hub id"),
        [(a, b, readable_count(c), ", ".join(d), e) for a, b, c, d, e in rows],
    )


_ALTERNATIVES = ("", "way", "held of inputs", "in all", "FLOPs to encode", "read a token")
_ESTIMATES = ("machine", "fits", "encoding", "a step", "bound by", "tokens/s", "$ a million tokens")


def _alternative(one: Alternative) -> tuple[str, ...]:
    return (
        ">" if one.chosen else "",
        one.name,
        readable_bytes(one.input_bytes),
        readable_bytes(one.total_bytes),
        readable_count(one.encode_flops),
        readable_bytes(one.bytes_per_token),
    )


def _fitted(one: Fit, kinds: list[str]) -> tuple[str, ...]:
    counts = (one.batch, one.beams, *(one.sources[kind] for kind in kinds))
    return (one.form, *(f"{count:,}" if count else "none" for count in counts))


def _estimated(one: Estimate) -> tuple[str, ...]:
    return (
        f"{one.machine.count} x {one.machine.name}" if one.machine.count > 1 else one.machine.name,
        "yes" if one.fits else "no",
        readable_seconds(one.encode_seconds),
        readable_seconds(one.step_seconds),
        one.bound,
        f"{one.tokens_per_second:,.0f}",
        f"{one.dollars_per_million_tokens:.3g}",
    )


def readable_seconds(seconds: float) -> str:
    """``2.1 ms``, ``3.4 s``, ``5.6 h``."""
    for unit, size in (("h", 3600.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _document(
    model: str,
    ledger: Ledger,
    others: list[Alternative],
    fits: list[Fit] | None,
    estimates: list[Estimate],
) -> dict[str, Any]:
    setting = ledger.setting
    found: dict[str, Any] = {
        "model": model,
        "setting": vars(setting),
        "rows": ledger.to_rows(),
        "total_bytes": ledger.total_bytes,
        "flops_per_token": ledger.flops_per_token,
        "bytes_per_token": ledger.bytes_per_token,
        "alternatives": [vars(one) for one in others],
    }
    if fits is not None:
        found["fit"] = [
            {"form": f.form, "batch": f.batch, "beams": f.beams, "sources": dict(f.sources)}
            for f in fits
        ]
    if estimates:
        found["machines"] = [
            {name: value for name, value in vars(one).items() if name != "machine"}
            | {"machine": one.machine.key, "count": one.machine.count}
            for one in estimates
        ]
    return found


# Training

TrainMethod = Annotated[
    list[str] | None, typer.Option("--method", help="full, lora or graft; repeatable.")
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
Budget = Annotated[float | None, typer.Option(min=0, help="Dollars that may be spent.")]


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
        tokens=_count(tokens),
        source_length=source_length,
        target_length=target_length,
        batch=batch,
    )
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
                "choices": [vars(one) for one in ways],
            }
        )
        return
    print_table(_TRAINING, [_trained(one) for one in found])
    print_line("\nto choose from:")
    print_table(_CHOICES, [_choice(one, budget) for one in ways])
    print_line("\n" + _FORMULAS.format(utilisation=utilisation, rank=rank))


def _count(given: str) -> int:
    try:
        value = float(given.replace("_", ""))
    except ValueError:
        value = -1.0
    if not 1 <= value <= 1e15:
        raise UsageError(f"`--tokens` must be a number from 1 to 1e15, but is {given!r} instead.")
    return int(value)


_TRAINING = (
    *("method", "trained", "weights", "gradients", "optimiser", "activations", "(checkpointed)"),
    *("in all", "(checkpointed)", "FLOPs", "hours", "$"),
)
_CHOICES = ("way", "trained", "hours", "$ once", "$ a million requests", "fits", "within budget")
_FORMULAS = """\
FLOPs: the forward pass, counted exactly, times 2 + the share of weights that is trained (6ND and
4ND: Kaplan et al. 2020); with checkpointing the forward pass once more (Chen et al. 2016).
Weights, gradients, AdamW: 2 + 2 + 12 bytes a trained weight (Rajbhandari et al. 2020), 2 a frozen
one. Activations: Korthikanti et al. 2022, without dropout and without scores. LoRA of rank {rank}
on all of attention (Hu et al. 2021). Hours at {utilisation:.0%} of the machine's bfloat16 rate."""


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


def _choice(one: Choice, budget: float | None) -> tuple[str, ...]:
    within = "" if budget is None else "yes" if one.training_dollars <= budget else "no"
    return (
        one.way,
        readable_count(one.trained) or "nothing",
        f"{one.hours:,.3g}",
        f"{one.training_dollars:,.3g}",
        f"{one.dollars_per_million_requests:,.3g}",
        "yes" if one.fits else "no",
        within,
    )
