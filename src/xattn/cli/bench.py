"""``xattn bench``: side by side with the engines that people use today."""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from xattn.cli.console import print_error, print_json, print_line, print_note, print_table
from xattn.cli.failures import FAILED
from xattn.cli.options import Json
from xattn.errors import UsageError

QUICK_ROUNDS, FULL_ROUNDS, LEAST_CORES = 3, 7, 2

Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="CELLS",
        help="A workload (W2), or cells by name or glob (W2/t5-small/*/beam4/fp32); repeatable.",
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="Few and small cells: minutes, not hours.")]
ListCells = Annotated[bool, typer.Option("--list", help="Name the cells, and measure nothing.")]
Rounds = Annotated[
    int | None,
    typer.Option(min=1, help=f"Rounds; {FULL_ROUNDS} if not given, {QUICK_ROUNDS} with --quick."),
]
OutputDirectory = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="DIR",
        help="Where the record, the page and the pictures go; benchmarks/results/MACHINE-DATE here "
        "if not given.",
    ),
]
Models = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep the models here, 2.5 GiB in all; a temporary directory if not given.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run whose record is in the output directory."),
]
Cores = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="The cores that every engine is pinned to, and so its threads; the first two if not "
        "given.",
    ),
]


def bench(
    only: Only = None,
    quick: Quick = False,
    list_cells: ListCells = False,
    rounds: Rounds = None,
    output: OutputDirectory = None,
    models: Models = None,
    resume: Resume = False,
    cores: Cores = None,
    json: Json = False,
) -> None:
    """Compare with CTranslate2, transformers, llama.cpp: speed, memory, and equal outputs.

    The same weights and inputs for all, each engine in a process of its own, taking turns. Exits
    with 1 if outputs differ that must be equal, or an engine broke; an aim that is missed is only
    said.
    """
    from xattn.bench import machine
    from xattn.bench.run import Settings, bench, faults
    from xattn.bench.workloads import Plan

    pinned = _cores(cores)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (models or Path(temporary)).absolute()
        if list_cells:
            found = Plan(quick=quick, scratch=scratch).cells(tuple(only or ()))
            names = [cell.name for cell in found]
            print_json(names) if json else print_line("\n".join(names))
            return
        settings = Settings(
            output=output or machine.results(Path("benchmarks") / "results"),
            scratch=scratch,
            rounds=rounds or (QUICK_ROUNDS if quick else FULL_ROUNDS),
            quick=quick,
            cores=pinned,
            threads=len(pinned) or LEAST_CORES,
            resume=resume,
        )
        record = bench(settings, only or (), say=print_note)
    if json:
        print_json(record)
    else:
        print_line(_conditions(record))
        print_table(("aim", "wanted", "found", "verdict"), _rows(record))
        print_line(f"written to {settings.output}")
    wrong = list(faults(record))
    for fault in wrong:
        print_error(fault)
    if wrong:
        raise typer.Exit(FAILED)


def _cores(given: str | None) -> tuple[int, ...]:
    """The cores to pin to; none where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        if given is not None:
            raise UsageError("`--cores` must not be given on a system that cannot pin processes.")
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    if given is None:
        return tuple(allowed[:LEAST_CORES])
    try:
        wanted = tuple(int(part) for part in given.split(","))
    except ValueError:
        wanted = ()
    if not wanted or not set(wanted) <= set(allowed) or len(set(wanted)) < len(wanted):
        raise UsageError(
            f"`--cores` must be some of {allowed}, each once, as 0,1, but is {given!r} instead."
        )
    return wanted


def _conditions(record: dict[str, Any]) -> str:
    """What all engines ran with."""
    machine, settings = record["machine"], record["settings"]
    variables = ", ".join(f"{name} {value}" for name, value in settings["environment"].items())
    return (
        f"{machine['processor']}, pinned to {machine['pinned to']}, threads {machine['threads']}, "
        f"{settings['rounds']} rounds; {variables}"
    )


def _rows(record: dict[str, object]) -> list[tuple[str, str, str, str]]:
    from xattn.bench.report import aim_rows

    return aim_rows(record)
