"""``xattn profile``: run a model, measure, and set what was measured beside what was foretold."""

import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli.console import print_json, print_line, print_note, print_table
from xattn.cli.options import LOADING, Json, takes, whole_numbers
from xattn.errors import UsageError
from xattn.spec import Form

if TYPE_CHECKING:
    from xattn.profiling.run import Profile

INPUTS, MEASURED, SHOWN = "What is attended to", "What is measured", "What is shown"
TABLES = (".csv", ".tsv", ".tab")
MOST_RANDOM = 90
"""Of random token ids: every vocabulary has these."""

Name = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Alias (`xattn models`), hub id, directory, GGUF file, or pkg:…"
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="FILE",
        rich_help_panel=INPUTS,
        help="A text file, a table (.csv, .tsv), or a recording; repeatable, and all are attended "
        "to at once.",
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Option("--input-text", rich_help_panel=INPUTS, help="A text itself; repeatable."),
]
RandomTokens = Annotated[
    list[int] | None,
    typer.Option(
        "--tokens",
        min=1,
        rich_help_panel=INPUTS,
        help="A text of so many random tokens, for models without a tokenizer; repeatable.",
    ),
]
PromptText = Annotated[
    str | None,
    typer.Option("--prompt", rich_help_panel=INPUTS, help="What the decoder goes on from."),
]
Beams = Annotated[int, typer.Option("--num-beams", "--beams", min=1, rich_help_panel=MEASURED)]
NewTokens = Annotated[
    int,
    typer.Option(
        "--max-new-tokens",
        "--new-tokens",
        min=1,
        rich_help_panel=MEASURED,
        help="Tokens decoded.",
    ),
]
FormName = Annotated[
    Form, typer.Option("--form", rich_help_panel=MEASURED, help="How memories are read.")
]
Rounds = Annotated[
    int, typer.Option(min=1, rich_help_panel=MEASURED, help="Times are medians over so many.")
]
Lengths = Annotated[
    str,
    typer.Option(
        metavar="S,S,…", rich_help_panel=MEASURED, help="Lengths of a memory to time a step over."
    ),
]
Requests = Annotated[
    str,
    typer.Option(
        metavar="N,N,…",
        rich_help_panel=MEASURED,
        help="Numbers of requests to compare a store with none.",
    ),
]
Page = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", rich_help_panel=SHOWN, help="Write a page with pictures here."
    ),
]
Pictures = Annotated[
    Path | None,
    typer.Option(
        "--pictures", metavar="DIR", rich_help_panel=SHOWN, help="Write PNG and SVG files here."
    ),
]


@takes(loading=LOADING)
def profile(
    model: Name = "",
    inputs: Inputs = None,
    input_text: Texts = None,
    tokens: RandomTokens = None,
    prompt: PromptText = None,
    num_beams: Beams = 1,
    max_new_tokens: NewTokens = 64,
    form: FormName = "materialized",
    rounds: Rounds = 5,
    lengths: Lengths = "256,1024,4096,16384",
    requests: Requests = "1,2,4,8",
    html: Page = None,
    pictures: Pictures = None,
    json: Json = False,
    *,
    loading: dict[str, Any],
) -> None:
    """Run MODEL on real input, and measure: bytes by owner, time by phase, when a store pays.

    What was measured stands beside what `xattn plan` says. The page needs no other file.
    """
    from xattn.profiling.report import write_page
    from xattn.profiling.run import Wishes, profile

    if not model:
        raise UsageError("no model was named; `xattn models` lists some.")
    wishes = Wishes(
        prompt=prompt,
        beams=num_beams,
        new_tokens=max_new_tokens,
        form=form,
        rounds=rounds,
        lengths=whole_numbers("lengths", lengths),
        requests=whole_numbers("requests", requests),
    )
    sources = [*map(_source, inputs or ()), *(input_text or ()), *map(random_ids, tokens or ())]
    threads = loading.pop("threads", None)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    found = profile(model, sources, wishes, loading=loading, say=print_note)
    if json:
        print_json(found.to_dict())
    else:
        _print(found)
    if html is not None or pictures is not None:  # last: what was measured is shown by then
        from xattn.profiling.charts import draw_profile

        with tempfile.TemporaryDirectory() as temporary:
            stems = draw_profile(found, found.spec, pictures or Path(temporary))
            if html is not None:
                write_page(found, stems, html)
    for path in (html, pictures):
        if path is not None:
            print_note(f"written to {path}")


def _print(found: "Profile") -> None:
    """Tables of what was measured."""
    from xattn.profiling import report

    print_table(("bytes", "foretold", "found", "difference"), report.size_rows(found))
    print_line("\n" + report.tensor_sentence(found))
    print_table(report.TENSOR_HEADER, report.tensor_rows(found))
    print_line("\nmost at the peak:")
    print_table(report.HOLDER_HEADER, report.holder_rows(found))
    print_line("")
    print_table(("phase", "time"), report.phase_rows(found))
    if found.store is not None:
        print_line("\n" + report.store_sentence(found))


def random_ids(count: int) -> list[int]:
    """Ordinary tokens; the same for the same count, and of any vocabulary that is larger."""
    draw = random.Random(count)
    return [draw.randint(3, MOST_RANDOM) for _ in range(count)]


def _source(name: str) -> Any:
    """A table as a table, everything else by its path: a text encoder reads a text file."""
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"`--input` must be a file, but {name!r} is none; `--input-text` takes a text."
        )
    if path.suffix.lower() in TABLES:
        from xattn.inputs.table import read_table

        return read_table(path)
    return path
