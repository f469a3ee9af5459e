"""What a model learns from: sources, and what it is to say of them.

A file has a JSON object in each line::

    {"source": "The tower is 330 m high.", "prompt": "How high is it?", "target": " 330 m."}

``sources`` are several, read together; one of another modality than text is ``{"audio": PATH}`` or
``{"image": PATH}``; ``prompt`` is what comes before the target and is not learnt. Two files of
lines, one for each language, are what translations come as. Files may be gzipped.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xattn.errors import UsageError, shown

FIELDS = ("source", "sources", "prompt", "target")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One thing to learn."""

    sources: tuple[Any, ...]
    target: str
    prompt: str | None = None


def read_examples(
    paths: str | Sequence[str], directory: Path, limit: int | None = None
) -> list[Example]:
    """The examples of one file of objects, or of two files of lines.

    Raises :class:`UsageError` that names the file and line of one that is none.
    """
    names = [paths] if isinstance(paths, str) else list(paths)
    files = [directory / Path(name).expanduser() for name in names]
    found = _pairs(files) if len(files) == 2 else _objects(files)
    examples: list[Example] = []
    for example in found:
        if limit is not None and len(examples) == limit:
            break
        examples.append(example)
    if not examples:
        raise UsageError(f"{', '.join(map(str, files))}: there is no example in it.")
    return examples


def texts_of(examples: Sequence[Example]) -> Iterator[str]:
    """All texts in them."""
    for example in examples:
        yield from (source for source in example.sources if isinstance(source, str))
        yield from (text for text in (example.prompt, example.target) if text is not None)


def _pairs(files: Sequence[Path]) -> Iterator[Example]:
    sources, targets = (list(lines_of(file)) for file in files)
    if len(sources) != len(targets):
        raise UsageError(
            f"{files[0]} and {files[1]} must have as many lines, but have {len(sources)} and "
            f"{len(targets)}."
        )
    for source, target in zip(sources, targets, strict=True):
        if source and target:
            yield Example(sources=(source,), target=target)


def _objects(files: Sequence[Path]) -> Iterator[Example]:
    for file in files:
        for number, line in enumerate(lines_of(file), 1):
            if line:
                yield _example(line, f"{file}, line {number}")


def _example(line: str, where: str) -> Example:
    held = object_of(line, where, FIELDS, texts=("target",))
    return Example(
        sources=sources_of(held, where), target=held["target"], prompt=held.get("prompt")
    )


def object_of(
    line: str, where: str, fields: Sequence[str], *, texts: Sequence[str]
) -> dict[str, Any]:
    """The JSON object of a line, of which ``texts`` must be there; ``where`` is for messages.

    Raises :class:`UsageError` for what is none, or has other ``fields``.
    """
    try:
        held = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: is no JSON: {error}") from error
    if not isinstance(held, dict):
        raise UsageError(f"{where}: must be a JSON object, but is {shown(held, 60)}.")
    strange = next((name for name in held if name not in fields), None)
    if strange is not None:
        raise UsageError(f"{where}: fields are {', '.join(fields)}, but one is {strange!r}.")
    for name in texts:
        if not isinstance(held.get(name), str) or not held[name]:
            value = shown(held.get(name), 60)
            raise UsageError(f"{where}: `{name}` must be a text, but is {value}.")
    prompt = held.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise UsageError(f"{where}: `prompt` must be a text, but is {shown(prompt, 60)}.")
    return held


def sources_of(held: Mapping[str, Any], where: str) -> tuple[Any, ...]:
    """The sources of an object; raises as :func:`read_examples` does."""
    if ("source" in held) == ("sources" in held):
        raise UsageError(f"{where}: must have one of `source` and `sources`.")
    sources = held["sources"] if "sources" in held else [held["source"]]
    if not isinstance(sources, list) or not all(isinstance(one, str | dict) for one in sources):
        raise UsageError(f"{where}: sources are texts or {{modality: path}}: {shown(sources, 60)}.")
    return tuple(sources)


def lines_of(file: Path) -> Iterator[str]:
    """The lines of a file, gzipped or not, without what is around them."""
    opening = gzip.open if file.suffix == ".gz" else open
    try:
        with opening(file, "rt", encoding="utf-8") as opened:
            yield from (line.strip() for line in opened)
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise UsageError(f"{file}: cannot be read as lines of text: {error}") from error
