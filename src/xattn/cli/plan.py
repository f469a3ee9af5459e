"""``xattn plan``: what a configuration will cost, before anything is allocated."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from xattn.cli.console import print_json, print_line, print_table
from xattn.cli.options import Hardware, Json, Offline, ShapeName
from xattn.cli.sizes import size_of
from xattn.counts import CodecName
from xattn.errors import UsageError
from xattn.ledger.account import HEADER, Alternative, Ledger
from xattn.ledger.alternatives import alternatives
from xattn.ledger.amounts import KINDS, MOST_COUNT
from xattn.ledger.fit import Fit, fit
from xattn.ledger.hardware import Estimate, Machine, estimate, machine_of, machines
from xattn.ledger.plan import NEW_TOKENS, plan
from xattn.ledger.shapes import shapes
from xattn.ledger.specs import spec_of
from xattn.readable import readable_bytes, readable_count, readable_seconds
from xattn.spec import Form

INPUTS, REQUESTS, MACHINE, SHOWN = "What is attended to", "Requests", "Machine", "What is shown"


def _amount(kind: str, help: str) -> Any:
    return typer.Option(f"--{kind}", metavar="AMOUNT", rich_help_panel=INPUTS, help=help)


Document = Annotated[str | None, _amount("document", "Tokens or words: 250, 180w, 20x250.")]
TableRows = Annotated[str | None, _amount("table", "Rows, of columns: 1000r, 1000r8c; or tokens.")]
Audio = Annotated[str | None, _amount("audio", "A time: 30s, 2m, 3x30s; or positions: 1500p.")]
Image = Annotated[str | None, _amount("image", "Pictures: 2, or by pixels: 1024x768, 2x1024x768.")]
Batch = Annotated[int, typer.Option(min=1, rich_help_panel=REQUESTS, help="Requests at a time.")]
Beams = Annotated[
    int,
    typer.Option("--beams", "--num-beams", min=1, rich_help_panel=REQUESTS, help="Beams of each."),
]
FormName = Annotated[
    Form, typer.Option("--form", rich_help_panel=REQUESTS, help="How memories are read.")
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "int8"],
    typer.Option(rich_help_panel=REQUESTS, help="Of states, keys and values, and weights."),
]
WeightsDtype = Annotated[
    Literal["float32", "bfloat16", "float16", "int8", "int4"] | None,
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
    int,
    typer.Option(
        "--new-tokens",
        "--max-new-tokens",
        min=1,
        rich_help_panel=REQUESTS,
        help="Tokens that each generates.",
    ),
]
Gpu = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=MACHINE,
        help="Seconds and dollars on this machine: h100, a100, l4, t4, cpu; h100x8 is eight. "
        "Repeatable.",
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
    if hardware is not None:
        machines(hardware)  # what is wrong with it is said whether it is used or not
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
            ("form", "requests", "beams", *(_SOURCES[kind] for kind in kinds)),
            [_fitted(one, kinds) for one in fits],
        )
    if estimates:
        print_line("\nmachines, each of so many:")
        print_table(_MACHINES, [_machine(one) for one in estimates])
        print_line("\nthe least that these rates allow, encoding included:")
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
_SOURCES = {
    "document": "documents each",
    "table": "tables each",
    "audio": "recordings each",
    "image": "pictures each",
}
_MACHINES = ("machine", "memory", "reads a second", "FLOPs a second", "$ an hour", "price of")
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
    return (one.form, *map(_most, counts))


def _most(count: int | None) -> str:
    """Of what no number that may be asked for is too many, memory is not the bound."""
    return f"over {MOST_COUNT:,}" if count is None else f"{count:,}" if count else "none"


def _named(machine: Machine) -> str:
    return f"{machine.count} x {machine.name}" if machine.count > 1 else machine.name


def _machine(one: Estimate) -> tuple[str, ...]:
    machine = one.machine
    return (
        _named(machine),
        readable_bytes(machine.total_memory_bytes),
        f"{machine.reading_rate / 1e9:,.0f} GB",
        f"{readable_count(machine.rate(one.dtype))} {one.dtype}",
        f"{machine.total_dollars_per_hour:,.2f}",
        machine.price,
    )


def _estimated(one: Estimate) -> tuple[str, ...]:
    return (
        _named(one.machine),
        "yes" if one.fits else "no",
        readable_seconds(one.encode_seconds),
        readable_seconds(one.step_seconds),
        one.bound,
        f"{one.tokens_per_second:,.0f}",
        f"{one.dollars_per_million_tokens:.3g}",
    )


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
            | {
                "memory_bytes": one.machine.total_memory_bytes,
                "bytes_per_second": one.machine.reading_rate,
                "flops_per_second": one.machine.rate(one.dtype),
                "dollars_per_hour": one.machine.total_dollars_per_hour,
                "price": one.machine.price,
                "source": one.machine.source,
            }
            for one in estimates
        ]
    return found
