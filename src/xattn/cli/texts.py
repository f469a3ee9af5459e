"""Where the texts of ``translate`` and ``generate`` come from, and where their results go."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from xattn.cli.console import print_error, print_json, print_line
from xattn.cli.failures import FAILED, code_of
from xattn.cli.jsonl import Record, read_records, run_records
from xattn.errors import UnreadableSourceError, UsageError, XattnError

if TYPE_CHECKING:
    from xattn.generation import Generation

Work = Callable[[Sequence[Record]], Sequence[Record]]
"""Input records -> the fields that each result adds."""


def run_jsonl(
    jsonl: str,
    output: str,
    work: Work,
    *,
    fields: Sequence[str],
    options: Mapping[str, Any],
    batch_size: int = 1,
) -> None:
    """Work through a file of records; exit code 1 if some failed.

    ``options`` are what results depend on: an output made with others is not added to.
    """
    if "-" not in (jsonl, output) and Path(jsonl).resolve() == Path(output).resolve():
        raise UsageError(f"--output must be another file than --jsonl, but both are {output!r}.")
    records = read_records(jsonl, fields)
    run = hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()[:12]
    failed = run_records(records, output, work, fields=fields, run=run, batch_size=batch_size)
    if failed:
        raise typer.Exit(FAILED)


def run_texts(
    texts: Sequence[str], work: Work, *, field: str, result_field: str, json: bool
) -> None:
    """One result for each text (``-``: each line of stdin), as text or as one JSON document.

    No text at all is one record without any. A text that fails is named, and the others are still
    done; the worst exit code counts.
    """
    results, worst = [], 0
    single = len(texts) <= 1 and "-" not in texts
    for record in records_of(texts, field):
        try:
            [result] = work([record])
        except XattnError as error:
            worst = max(worst, code_of(error))
            print_error(error if single else f"{record[field]!r}: {error}")
            continue
        if json:
            results.append(record | result)
        else:
            print_line(as_text(result, result_field))
    if json and results:
        print_json(results[0] if single else results)
    if worst:
        raise typer.Exit(worst)


def records_of(texts: Sequence[str], field: str) -> Iterator[Record]:
    """A record for each text; one without a text where there are none."""
    if not texts:
        yield {}
    for text in read_texts(texts):
        yield {field: text}


def read_texts(texts: Sequence[str]) -> Iterator[str]:
    """``texts``, with ``-`` replaced by the lines of stdin as they arrive."""
    for text in texts:
        if text != "-":
            yield text
            continue
        for number, line in enumerate(sys.stdin.buffer, start=1):
            try:
                yield line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UnreadableSourceError(
                    f"stdin line {number} is not UTF-8: {error}."
                ) from error


def require_one_input(
    given: Sequence[str] | None, jsonl: str | None, output: str, *, what: str, needed: bool = True
) -> None:
    """Exactly one of arguments and ``--jsonl``, which ``--output`` belongs to.

    Neither is right, too, where none is ``needed``. Raises :class:`UsageError`.
    """
    if jsonl is None and output != "-":
        raise UsageError("--output is where --jsonl writes; without --jsonl, redirect stdout.")
    if given and jsonl is not None:
        raise UsageError(f"give either {what} or --jsonl, not both.")
    if needed and not given and jsonl is None:
        raise UsageError(f"nothing to do: give {what}, or - to read stdin, or --jsonl FILE.")


def as_record(generation: "Generation", *, field: str, logprobs: bool) -> Record:
    """What a generation says, as JSON; its text under the name ``field``."""
    record: Record = {
        field: generation.text,
        "score": generation.score,
        "finish": generation.finish,
        "tokens": list(generation.tokens),
    }
    if logprobs:
        record["logprobs"] = list(generation.logprobs)
    if generation.top_logprobs:
        record["top_logprobs"] = [[list(pair) for pair in step] for step in generation.top_logprobs]
    if generation.alternatives:
        record["alternatives"] = [
            as_record(other, field=field, logprobs=logprobs) for other in generation.alternatives
        ]
    return record


def as_text(record: Record, field: str) -> str:
    """The text of a result, and of its alternatives below it."""
    texts = [record[field], *(other[field] for other in record.get("alternatives", ()))]
    return "\n".join(texts)
