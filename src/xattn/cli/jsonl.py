"""Records in and out, one JSON object a line, with resume.

Input records carry an ``id`` (the line number where there is none). An output line is the input
record with the result's fields added. A run that was stopped goes on where it stopped: records
already in the output are skipped, and a last line that was cut off while it was written is dropped.
An output that holds another record under the same id belongs to another run, and is refused.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from xattn.cli.console import Progress, print_error, print_note
from xattn.errors import SourceNotFoundError, UnreadableSourceError, UsageError, XattnError

Record = dict[str, Any]


def read_records(source: str, fields: Sequence[str]) -> list[Record]:
    """All records of the file ``source`` (``-``: stdin), checked before any work starts.

    Every record must have one of ``fields``. Raises :class:`UsageError` that names the line.
    """
    records: dict[Any, Record] = {}
    for number, line in enumerate(_lines(source), start=1):
        if not line.strip():
            continue
        where = f"{source} line {number}"
        record = _parse(line, where)
        if not any(field in record for field in fields):
            wanted = " or ".join(repr(field) for field in fields)
            raise UsageError(
                f"{where} needs the field {wanted}; it has {', '.join(record) or 'none'}."
            )
        record = {"id": number} | record
        if not isinstance(record["id"], str | int):
            raise UsageError(
                f"{where}: 'id' must be a string or a number, but is {record['id']!r}."
            )
        if record["id"] in records:
            raise UsageError(f"{where} repeats the id {record['id']!r}; ids must be unique.")
        records[record["id"]] = record
    return list(records.values())


def finished_records(output: Path) -> dict[Any, Record]:
    """Records already in ``output``, by id; drops a last line that was cut off from the file."""
    if not output.exists():
        return {}
    content = output.read_bytes()
    *lines, last = content.split(b"\n")
    if last:
        try:
            json.loads(last)
        except ValueError:
            os.truncate(output, len(content) - len(last))
        else:  # only its newline is missing
            with output.open("ab") as file:
                file.write(b"\n")
            lines.append(last)
    found: dict[Any, Record] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{output} line {number}"
            record = _parse(line.decode("utf-8", errors="replace"), where)
            if "id" not in record:
                raise UsageError(f"{where} has no 'id'; is {str(output)!r} an output of xattn?")
            found[record["id"]] = record
    return found


def records_left(records: Sequence[Record], output: Path, fields: Sequence[str]) -> list[Record]:
    """The records that ``output`` lacks; says on stderr how many it has.

    Raises :class:`UsageError` where one of its records has the id of another input, which
    ``fields`` are.
    """
    done = finished_records(output)
    for record in records:
        result = done.get(record["id"], record)
        other = next((name for name in fields if record.get(name) != result.get(name)), None)
        if other is not None:
            raise UsageError(
                f"{output} holds another record with the id {record['id']!r}: its {other!r} is "
                f"{result.get(other)!r}, and the input's is {record.get(other)!r}. Give another "
                "--output, or move that file away."
            )
    left = [record for record in records if record["id"] not in done]
    if len(left) < len(records):
        print_note(f"{len(records) - len(left)} of {len(records)} records are in {output} already")
    return left


def run_records(
    records: Sequence[Record],
    output: str,
    work: Callable[[Sequence[Record]], Sequence[Record]],
    *,
    fields: Sequence[str],
    batch_size: int = 1,
) -> int:
    """Do ``work`` on each record that ``output`` (``-``: stdout) lacks; returns how many failed.

    A record that fails is named on stderr and left out of the output, so that the next run tries
    it again.
    """
    left = list(records) if output == "-" else records_left(records, Path(output), fields)
    failed, finished = 0, len(records) - len(left)
    progress = Progress("records", results_on_stdout=output == "-")
    with _opened(output) as file, progress:
        for start in range(0, len(left), batch_size):
            progress.update(finished, len(records))
            batch = left[start : start + batch_size]
            for record, result in zip(batch, _attempt(batch, work), strict=True):
                if isinstance(result, XattnError):
                    failed += 1
                    print_error(f"record {record['id']!r}: {result}")
                else:
                    file.write(json.dumps(record | result, ensure_ascii=False) + "\n")
                    file.flush()
                finished += 1
                progress.update(finished, len(records))
    return failed


def _attempt(
    batch: Sequence[Record], work: Callable[[Sequence[Record]], Sequence[Record]]
) -> Sequence[Record | XattnError]:
    """Results of one batch; one bad record does not take its neighbours along."""
    try:
        return work(batch)
    except XattnError as error:
        if len(batch) == 1:
            return [error]
    return [_attempt([record], work)[0] for record in batch]


def _lines(source: str) -> Iterator[str]:
    try:
        if source == "-":
            yield from (line.decode("utf-8") for line in sys.stdin.buffer)
        else:
            with Path(source).open(encoding="utf-8") as file:
                yield from file
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"no such file: {source!r}.") from error
    except IsADirectoryError as error:
        raise UnreadableSourceError(
            f"{source!r} is a directory; a JSONL file is needed."
        ) from error
    except UnicodeDecodeError as error:
        raise UnreadableSourceError(f"{source!r} is not UTF-8 text: {error}.") from error


def _parse(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise UsageError(f"{where} must be a JSON object, but is {record!r} instead.")
    return record


@contextmanager
def _opened(output: str) -> Iterator[TextIO]:
    if output == "-":
        yield sys.stdout
        return
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with Path(output).open("a", encoding="utf-8") as file:
        yield file
