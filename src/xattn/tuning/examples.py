"""What a model learns from: sources, and what it is to say of them.

A file has a JSON object in each line::

    {"source": "The tower is 330 m high.", "prompt": "How high is it?", "target": " 330 m."}

``sources`` are several, read together; one of another modality than text is ``{"audio": PATH}`` or
``{"image": PATH}``; ``prompt`` is what comes before the target and is not learnt. Two files of
lines, one for each language, are what translations come as. Files may be gzipped.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
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
    sources, targets = (list(_lines(file)) for file in files)
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
        for number, line in enumerate(_lines(file), 1):
            if line:
                yield _example(line, f"{file}, line {number}")


def _example(line: str, where: str) -> Example:
    try:
        held = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: is no JSON: {error}") from error
    if not isinstance(held, dict):
        raise UsageError(f"{where}: must be a JSON object, but is {shown(held, 60)}.")
    strange = next((name for name in held if name not in FIELDS), None)
    if strange is not None:
        raise UsageError(f"{where}: fields are {', '.join(FIELDS)}, but one is {strange!r}.")
    target, prompt = held.get("target"), held.get("prompt")
    if not isinstance(target, str) or not target:
        raise UsageError(f"{where}: `target` must be a text, but is {shown(target, 60)}.")
    if prompt is not None and not isinstance(prompt, str):
        raise UsageError(f"{where}: `prompt` must be a text, but is {shown(prompt, 60)}.")
    if ("source" in held) == ("sources" in held):
        raise UsageError(f"{where}: must have one of `source` and `sources`.")
    sources = held["sources"] if "sources" in held else [held["source"]]
    if not isinstance(sources, list) or not all(isinstance(one, str | dict) for one in sources):
        raise UsageError(f"{where}: sources are texts or {{modality: path}}: {shown(sources, 60)}.")
    return Example(sources=tuple(sources), target=target, prompt=prompt)


def _lines(file: Path) -> Iterator[str]:
    opening = gzip.open if file.suffix == ".gz" else open
    try:
        with opening(file, "rt", encoding="utf-8") as opened:
            yield from (line.strip() for line in opened)
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise UsageError(f"{file}: cannot be read as lines of text: {error}") from error
