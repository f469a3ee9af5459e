"""Options that several commands share, and how they become keywords of the library.

The keywords of ``generate`` and of ``transcribe`` are tables here. A flag that nobody gave reaches
the library not at all, so that the defaults are the library's and the checkpoint's.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from xattn.cli.sizes import seconds_of, size_of
from xattn.errors import UsageError
from xattn.spec import FormChoice

MODEL, SEARCH, SAMPLING, CONSTRAINTS = "Model", "Search", "Sampling", "Constraints"
RECORDS, MEMORIES = "Records", "Memory store"
LEAST_SECRET_BYTES, MOST_SECRET_BYTES = 16, 2**16

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        rich_help_panel=MODEL,
        help="Alias (`xattn models`), hub id, directory, GGUF file, or pkg:PACKAGE/PATH.",
    ),
]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        rich_help_panel=MEMORIES,
        help="Keep memories, and encode nothing twice.",
    ),
]
Json = Annotated[bool, typer.Option("--json/--text", help="One JSON document on stdout.")]

Offline = Annotated[bool, typer.Option("--offline/--online", help="Never touch the network.")]
ShapeName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A built-in shape (`--list`), a hub id, a config.json, or a model on disk.",
    ),
]
Hardware = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel="Machine",
        help="TOML with other machines or prices, laid over the built-in table.",
    ),
]

JsonLines = Annotated[
    str | None,
    typer.Option(
        "--jsonl",
        metavar="FILE",
        rich_help_panel=RECORDS,
        help="Read records from FILE, one JSON object a line; - is stdin.",
    ),
]
Output = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        rich_help_panel=RECORDS,
        help="Write records to FILE, and go on where an earlier run stopped; - is stdout.",
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, rich_help_panel=RECORDS, help="Records decoded at once.")
]


@dataclass(frozen=True)
class Option:
    """A keyword of the library as a flag."""

    kind: Any
    """What the flag's text becomes; ``bool`` gives ``--name`` and ``--no-name``."""
    panel: str
    help: str
    convert: Callable[[str, Any], Any] = lambda name, value: value
    """(name, parsed value) -> the library's value."""
    keyword: str | None = None
    """The library's name for it, where that is another."""
    flags: tuple[str, ...] = ()
    """How it is typed, where that is not ``--name``."""
    default: Any = None
    """What an unset flag says; None: it says nothing, and the library decides."""
    metavar: str | None = None
    least: int | None = None
    parser: Callable[[Any], Any] | None = None
    """Text -> value, where ``kind`` does not say how."""

    @property
    def annotation(self) -> Any:
        """What typer reads."""
        flag = typer.Option(
            *self.flags,
            rich_help_panel=self.panel,
            help=self.help,
            metavar=self.metavar,
            min=self.least,
            parser=self.parser,
        )
        return Annotated[self.kind | None if self.default is None else self.kind, flag]


Table = Mapping[str, Option]
"""Options by the names of their flags."""


def takes(**tables: Table) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command: the options of each table become flags, and its keyword those given."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.name not in tables]
        added = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=option.default,
                annotation=option.annotation,
            )
            for table in tables.values()
            for name, option in table.items()
        ]

        @functools.wraps(command)
        def wrapped(*args: Any, **values: Any) -> Any:
            found = {keyword: _taken(table, values) for keyword, table in tables.items()}
            return command(*args, **values, **found)

        parameters = [*own, *added]
        # typer asks the function itself, not what it wraps.
        wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def _taken(table: Table, values: dict[str, Any]) -> dict[str, Any]:
    """What was given of ``table``, out of ``values``, under the library's names."""
    given = {name: values.pop(name) for name in table}
    return {
        option.keyword or name: option.convert(name, given[name])
        for name, option in table.items()
        if given[name] is not None
    }


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether the option ``name`` stands on the command line itself, and not in a settings file."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def numbers(name: str, value: str) -> tuple[float, ...]:
    """``0,0.2,0.4`` as floats."""
    return tuple(_each(name, value, float, "numbers"))


def whole_numbers(name: str, value: str) -> tuple[int, ...]:
    """``50256,50362`` as ints."""
    return tuple(_each(name, value, int, "whole numbers"))


def _each(name: str, value: str, kind: Callable[[str], Any], what: str) -> list[Any]:
    try:
        return [kind(part) for part in value.split(",") if part.strip()]
    except ValueError as error:
        flag = name.replace("_", "-")
        raise UsageError(
            f"`--{flag}` must be {what} with commas between, but is {value!r} instead."
        ) from error


def _early_stopping(name: str, value: str) -> bool | str:
    return {"true": True, "false": False}.get(value, value)


def _secret(name: str, path: Path) -> bytes:
    """The bytes in the file ``path``, without the newline that editors put at its end."""
    flag, least, most = f"--{name.replace('_', '-')}", LEAST_SECRET_BYTES, MOST_SECRET_BYTES
    try:
        with path.open("rb") as file:
            secret = file.read(most + 2).removesuffix(b"\n")
    except OSError as error:
        raise UsageError(
            f"`{flag}` must be a file that can be read, but {str(path)!r} cannot: {error.strerror}."
        ) from error
    if not least <= len(secret) <= most:
        found = f"more than {most}" if len(secret) > most else str(len(secret))
        raise UsageError(
            f"`{flag}` must be a file of {least} to {most} bytes, but {str(path)!r} has {found}."
        )
    return secret


LOADING: dict[str, Option] = {
    "device": Option(str, MODEL, "cpu, cuda, cuda:1, mps …", default="cpu"),
    "dtype": Option(
        Literal["float32", "bfloat16", "float16"],
        MODEL,
        "Number format of the computation.",
        default="float32",
    ),
    "quantize": Option(
        Literal["int8", "int4"],
        MODEL,
        "Weights as 8-bit integers, or those of layers as 4-bit ones: fewer bytes, and faster.",
    ),
    "offline": Option(
        bool, MODEL, "Never touch the network.", flags=("--offline/--online",), default=False
    ),
    "threads": Option(int, MODEL, "CPU threads; unset: all cores.", least=1),
}
"""How a model is loaded: keywords of :func:`xattn.cli.loading.load_model`."""

ADAPTED: dict[str, Option] = LOADING | {
    "adapter": Option(
        Path, MODEL, "A LoRA adapter to compute with, as `xattn train` writes it.", metavar="DIR"
    )
}
"""The same, for commands that decode or encode."""

STORE: dict[str, Option] = {
    "cache_dir": Option(
        Path,
        MEMORIES,
        "Where memories are kept; unset: ~/.cache/xattn.",
        keyword="root",
        metavar="DIR",
    ),
    "cache_codec": Option(
        Literal["float32", "bfloat16", "float16", "int8", "int4"],
        MEMORIES,
        "How numbers are written down. All but float32 lose something, in results too; unset: "
        "float32.",
        keyword="codec",
    ),
    "cache_capacity": Option(
        int,
        MEMORIES,
        "Budget of the local disk (500MiB, 10G), beyond which what saves least is removed. It is "
        "kept with the directory; with --cache-tenant it bounds that tenant alone. Unset: what was "
        "said last, or 20GiB.",
        keyword="capacity_bytes",
        metavar="SIZE",
        parser=size_of(at_least=1),
    ),
    "cache_ram": Option(
        int,
        MEMORIES,
        "Budget of the memories that this process holds; unset: 256MiB.",
        keyword="ram_bytes",
        metavar="SIZE",
        parser=size_of(at_least=0),
    ),
    "cache_quota": Option(
        int,
        MEMORIES,
        "The tenant's own budget of the local disk; unset: none.",
        keyword="quota_bytes",
        metavar="SIZE",
        parser=size_of(at_least=1),
    ),
    "cache_tenant": Option(
        str,
        MEMORIES,
        "Whose memories these are: those of another tenant are neither found nor listed.",
        keyword="tenant",
        metavar="NAME",
    ),
    "cache_secret_file": Option(
        Path,
        MEMORIES,
        f"File of {LEAST_SECRET_BYTES} bytes or more: only memories that were written with them "
        "are believed.",
        convert=_secret,
        keyword="secret",
        metavar="FILE",
    ),
    "cache_ttl": Option(
        float,
        MEMORIES,
        "How long new memories last: seconds, or 30m, 1h, 7d; unset: until they make room.",
        keyword="ttl_seconds",
        metavar="TIME",
        parser=seconds_of,
    ),
    "cache_verify_reads": Option(
        Literal["always", "first", "never"],
        MEMORIES,
        "When digests are taken again: at every read, at the first in a process, or never; unset: "
        "first.",
        keyword="verify",
    ),
    "cache_shared": Option(
        str,
        MEMORIES,
        "A place that machines share, as fsspec names it: s3://…, file://… It is asked after the "
        "local disk, and written behind.",
        keyword="cold",
        metavar="URL",
    ),
    "cache_shared_capacity": Option(
        int,
        MEMORIES,
        "Budget of the shared place; unset: none.",
        keyword="cold_bytes",
        metavar="SIZE",
        parser=size_of(at_least=1),
    ),
}
"""Keywords of :class:`xattn.MemoryStore`."""

GENERATION: dict[str, Option] = {
    "num_beams": Option(int, SEARCH, "Beams; 1 is greedy."),
    "max_new_tokens": Option(int, SEARCH, "New tokens at most."),
    "min_new_tokens": Option(int, SEARCH, "No end before this many new tokens."),
    "max_length": Option(int, SEARCH, "Tokens at most, the prompt included."),
    "min_length": Option(int, SEARCH, "No end before this many tokens, the prompt included."),
    "length_penalty": Option(float, SEARCH, "Above 0 favours long results, below 0 short ones."),
    "count_eos": Option(bool, SEARCH, "The end token counts for that length."),
    "early_stopping": Option(
        Literal["true", "false", "never"], SEARCH, "When a beam search ends.", _early_stopping
    ),
    "patience": Option(float, SEARCH, "Beam search ends at num-beams times this many results."),
    "num_return_sequences": Option(int, SEARCH, "Results per input, the best first."),
    "prompt_lookup_num_tokens": Option(
        int, SEARCH, "Tokens to guess from what was read, and to check in one step."
    ),
    "do_sample": Option(bool, SAMPLING, "Draw tokens instead of taking the likeliest."),
    "temperature": Option(float, SAMPLING, "Divides the logits."),
    "top_k": Option(int, SAMPLING, "Among the likeliest K tokens; 0 is all."),
    "top_p": Option(float, SAMPLING, "Among the likeliest tokens that hold this probability."),
    "min_p": Option(float, SAMPLING, "Among tokens this many times as likely as the likeliest."),
    "typical_p": Option(float, SAMPLING, "Among locally typical tokens of this probability."),
    "seed": Option(int, SAMPLING, "Same seed, same samples."),
    "form": Option(
        FormChoice,
        MODEL,
        "How cross-attention reads a memory; auto is the sooner done of those that lose nothing. "
        "`xattn doctor --model` explains it.",
    ),
    "repetition_penalty": Option(float, CONSTRAINTS, "Above 1 makes repeated tokens less likely."),
    "no_repeat_ngram_size": Option(int, CONSTRAINTS, "No n-gram of this size occurs twice."),
    "suppress_tokens": Option(str, CONSTRAINTS, "Token ids that never occur.", whole_numbers),
    "begin_suppress_tokens": Option(
        str, CONSTRAINTS, "Token ids that do not come first.", whole_numbers
    ),
    "forced_bos_token_id": Option(int, CONSTRAINTS, "First new token."),
    "forced_eos_token_id": Option(
        str, CONSTRAINTS, "Last token, where the length runs out.", whole_numbers
    ),
    "penalize_prompt": Option(bool, CONSTRAINTS, "Repetition counts over the prompt too."),
    "renormalize_logits": Option(bool, CONSTRAINTS, "Probabilities sum to 1 after constraints."),
    "stop_strings": Option(list[str], CONSTRAINTS, "Text that ends a result; may be repeated."),
    "logprobs": Option(int, SEARCH, "With --json: log-probabilities, and this many candidates."),
}
"""Keywords of ``generate``, under transformers' names; ``form`` is xattn's own."""
