"""Records in and out, one JSON object a line, with resume.

Input records carry an ``id`` (the line number where there is none). An output line is the input
record with the result's fields added, and ``run``, which stands for the command, the model and the
options. A field of the input that the result has too is kept as ``input_…``. A run that was stopped
goes on where it stopped: records already in the output are skipped, and a last line that was cut
off while it was written is dropped. A file with another run in it, or another record under the same
id, or anything else, is refused and stays as it is.
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

_BEGINNING = b'{"id": '
"""How every line that is written begins."""


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


def finished_records(output: Path) -> tuple[dict[Any, Record], int]:
    """Records already in ``output``, by id, and the bytes before a last line that was cut off.

    Raises :class:`UsageError` where a line is no record of xattn's.
    """
    if not output.exists():
        return {}, 0
    content = output.read_bytes()
    *lines, last = content.split(b"\n")
    ours = last.startswith(_BEGINNING) or _BEGINNING.startswith(last)
    cut_off = ours and not _is_json(last)
    if last and not cut_off:
        lines.append(last)
    found: dict[Any, Record] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{output} line {number}"
            record = _parse(line.decode("utf-8", errors="replace"), where)
            if not {"id", "run"} <= record.keys():
                raise UsageError(
                    f"{where} has no 'id' and 'run': {str(output)!r} is no output of xattn, and is "
                    "left as it is; give another --output."
                )
            found[record["id"]] = record
    return found, len(content) - len(last) * cut_off


def _mend_end(output: Path, keep_bytes: int) -> None:
    """Drop a last line that was cut off, or give a whole one the newline that it lacks."""
    if not output.exists():
        return
    if keep_bytes < output.stat().st_size:
        print_note(f"the last line of {output} was cut off and is done again")
        os.truncate(output, keep_bytes)
    with output.open("rb+") as file:
        if keep_bytes and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n":
            file.write(b"\n")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def records_left(
    records: Sequence[Record], output: Path, fields: Sequence[str], run: str
) -> list[Record]:
    """The records that ``output`` lacks; says on stderr how many it has.

    Raises :class:`UsageError` where one of its records is of another ``run``, or has the id of
    another input, which ``fields`` are.
    """
    done, keep_bytes = finished_records(output)
    if any(record["run"] != run for record in done.values()):
        raise UsageError(
            f"{output} holds records of another command, model or options; give another --output, "
            "or move that file away."
        )
    for record in records:
        result = done.get(record["id"], record)
        other = next((name for name in fields if record.get(name) != result.get(name)), None)
        if other is not None:
            raise UsageError(
                f"{output} holds another record with the id {record['id']!r}: its {other!r} is "
                f"{result.get(other)!r}, and the input's is {record.get(other)!r}. Give another "
                "--output, or move that file away."
            )
    _mend_end(output, keep_bytes)
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
    run: str,
    batch_size: int = 1,
) -> int:
    """Do ``work`` on each record that ``output`` (``-``: stdout) lacks; returns how many failed.

    A record that fails is named on stderr and left out of the output, so that the next run tries
    it again.
    """
    left = list(records) if output == "-" else records_left(records, Path(output), fields, run)
    failed, finished = 0, len(records) - len(left)
    progress = Progress("done", unit="records", results_on_stdout=output == "-")
    with _opened(output) as file, progress:
        for start in range(0, len(left), batch_size):
            progress.update(finished, len(records))
            batch = left[start : start + batch_size]
            for record, result in zip(batch, _attempt(batch, work), strict=True):
                if isinstance(result, XattnError):
                    failed += 1
                    print_error(f"record {record['id']!r}: {result}")
                else:
                    line = record | _kept(record, result) | result | {"run": run}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    file.flush()
                finished += 1
                progress.update(finished, len(records))
    return failed


def _kept(record: Record, result: Record) -> Record:
    """What the result would replace, under another name: a reference must not be lost."""
    return {f"input_{name}": record[name] for name in record if name in result}


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
