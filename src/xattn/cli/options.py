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

from xattn.errors import UsageError

MODEL, SEARCH, SAMPLING, CONSTRAINTS = "Model", "Search", "Sampling", "Constraints"
RECORDS = "Records"

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        rich_help_panel=MODEL,
        help="Alias (`xattn models`), hub id, directory, GGUF file, or pkg:PACKAGE/PATH.",
    ),
]
Device = Annotated[str, typer.Option(rich_help_panel=MODEL, help="cpu, cuda, cuda:1, mps …")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option(rich_help_panel=MODEL, help="Number format of the computation."),
]
Offline = Annotated[
    bool, typer.Option("--offline/--online", rich_help_panel=MODEL, help="Never touch the network.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=MODEL, help="CPU threads; unset: all cores.")
]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        rich_help_panel=MODEL,
        help="Keep memories, and encode nothing twice.",
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        rich_help_panel=MODEL,
        help="Where memories are kept; unset: ~/.cache/xattn.",
    ),
]
Json = Annotated[bool, typer.Option("--json/--text", help="One JSON document on stdout.")]

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

    @property
    def annotation(self) -> Any:
        """What typer reads."""
        return Annotated[self.kind | None, typer.Option(rich_help_panel=self.panel, help=self.help)]


def takes(
    options: Mapping[str, Option],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command: ``options`` become flags, and those given its ``settings`` keyword."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.name != "settings"]
        added = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option.annotation
            )
            for name, option in options.items()
        ]

        @functools.wraps(command)
        def wrapped(*args: Any, **values: Any) -> Any:
            given = {name: values.pop(name) for name in options}
            settings = {
                name: options[name].convert(name, value)
                for name, value in given.items()
                if value is not None
            }
            return command(*args, **values, settings=settings)

        parameters = [*own, *added]
        # typer asks the function itself, not what it wraps.
        wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


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
    "do_sample": Option(bool, SAMPLING, "Draw tokens instead of taking the likeliest."),
    "temperature": Option(float, SAMPLING, "Divides the logits."),
    "top_k": Option(int, SAMPLING, "Among the likeliest K tokens; 0 is all."),
    "top_p": Option(float, SAMPLING, "Among the likeliest tokens that hold this probability."),
    "min_p": Option(float, SAMPLING, "Among tokens this many times as likely as the likeliest."),
    "typical_p": Option(float, SAMPLING, "Among locally typical tokens of this probability."),
    "seed": Option(int, SAMPLING, "Same seed, same samples."),
    "form": Option(
        Literal["materialized", "absorbed"], MODEL, "How cross-attention reads a memory."
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
