"""Sections -> passages: as many sentences, lines or rows as fit, under one heading.

Where a passage ends is decided by what is in it (:mod:`xattn.inputs.chunks`), so that an edit
changes the passage it is in and, at most, where its neighbours end. Sections come and passages go,
so that no document need be in memory as a whole; how a reader cuts sections changes nothing.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Generic, TypeVar

from xattn.errors import InvalidSourceError, require, shown
from xattn.inputs.chunks import Rank, chunks, group, parts, rank, sentences
from xattn.inputs.table import Table, cell_text
from xattn.inputs.text import canonical_text
from xattn.library.documents.document import Document
from xattn.library.passage import Metadata, Passage, Section, pieces_of

LONGEST_CHARACTERS = 1 << 16
"""A sentence, or a line, of more than that is cut before it is known where it ends."""
_WORD_END = re.compile(r"\s+")
_LINE_END = re.compile(r"\n(?:[^\S\n]*\n)*")
_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)*")

Count = Callable[[str], int]
"""How much of a passage's room a text takes, such as its tokens."""


Held = TypeVar("Held", str, Table)


@dataclass(frozen=True)
class _Unit(Generic[Held]):
    """A sentence, a line or a row: what passages hold whole."""

    content: Held
    start: int
    """Characters before it, or the number of its row."""
    size: int
    rank: Rank


def cut(
    document: Document,
    *,
    count: Count,
    most: int,
    overlap: int = 0,
    metadata: Metadata | None = None,
) -> Iterator[Passage]:
    """The passages of a document in order, each within ``most`` by ``count``, as sections come.

    They end with headings, pages and sentences (in code: lines), and with paragraphs where they
    can; a sentence that is longer alone is cut between words, a word between characters. From the
    passage before it, under the same heading, one repeats whole sentences of up to ``overlap`` by
    ``count`` together. A table's passages are whole rows with the header; of a row that is longer
    alone, each has some of its columns, or a part of its longest cell. ``count`` sees sentences and
    rows alone, and their sum is what must fit.

    Raises :class:`UsageError`, and what ``document.sections`` raises.
    """
    require(most >= 1, "most", "at least 1", most)
    require(0 <= overlap <= most // 2, "overlap", f"between 0 and {most // 2}", overlap)
    for _, run in groupby(_numbered(document.sections()), key=itemgetter(0)):
        first, sections = _peeked(section for _, section in run)
        passage = partial(
            Passage,
            source=document.source,
            title=document.title,
            heading=first.heading,
            page=first.page,
            metadata=metadata or {},
        )
        if first.table is not None:
            yield from _of_rows(passage, sections, count, most)
        else:
            yield from _of_text(passage, sections, count, most, overlap)


def _numbered(sections: Iterable[Section]) -> Iterator[tuple[int, Section]]:
    """Sections with the number of the run that they are in: within one, passages may cross them."""
    number, last = 0, None
    for section in sections:
        if last is not None and not _continues(last, section):
            number += 1
        yield number, section
        last = section


def _continues(last: Section, section: Section) -> bool:
    if (last.heading, last.page) != (section.heading, section.page):
        return False
    if last.table is None or section.table is None:
        return last.table is section.table and last.start + len(last.text) == section.start
    follows = last.first_row + len(last.table.rows) == section.first_row
    return follows and last.table.header == section.table.header


def _peeked(sections: Iterator[Section]) -> tuple[Section, Iterator[Section]]:
    first = next(sections)

    def again() -> Iterator[Section]:
        yield first
        yield from sections

    return first, again()


def _groups(units: Iterable[_Unit[Held]], most: int) -> Iterator[list[_Unit[Held]]]:
    """Units as :func:`~xattn.inputs.chunks.group` groups them, as they come."""
    waiting: list[_Unit[Held]] = []
    total = 0
    for unit in units:
        waiting.append(unit)
        total += unit.size
        while total > most and len(waiting) > 1:
            end = group([u.size for u in waiting], [u.rank for u in waiting], most)[0]
            yield waiting[:end]
            waiting = waiting[end:]
            total = sum(u.size for u in waiting)
    if waiting:
        yield waiting


# Text


def _of_text(
    passage: Callable[..., Passage],
    sections: Iterable[Section],
    count: Count,
    most: int,
    overlap: int,
) -> Iterator[Passage]:
    before: list[_Unit[str]] = []
    for units in _groups(_written(sections, count, most - overlap), most - overlap):
        text = "".join(unit.content for unit in [*before, *units])
        start = (before or units)[0].start
        blank = _BLANK_LINES.match(text)
        skipped = blank.end() if blank else 0
        kept = text[skipped:].rstrip()
        if kept.strip():
            start += skipped
            yield passage(text=canonical_text(kept), start=start, end=start + len(kept))
        before = _last(units, overlap)


def _last(units: list[_Unit[str]], most: int) -> list[_Unit[str]]:
    """The last units, whole, of ``most`` together; never all of them."""
    first, total = len(units), 0
    while first > 1 and total + units[first - 1].size <= most:
        first -= 1
        total += units[first].size
    return units[first:]


def _written(sections: Iterable[Section], count: Count, most: int) -> Iterator[_Unit[str]]:
    """Sentences and lines of sections that follow each other, none larger than ``most``."""

    def size(text: str) -> int:
        return count(canonical_text(text))

    for start, text in _pieces(sections):
        first = 0
        for end, tokens in parts(text, 0, len(text), size, most):
            part = text[first:end]
            yield _Unit(part, start + first, tokens, rank(part))
            first = end


def _pieces(sections: Iterable[Section]) -> Iterator[tuple[int, str]]:
    """Sentences, or lines of code, with their starts; those that are too long in pieces."""
    rest, start, is_code = "", 0, False
    for section in sections:
        if not rest or section.is_code != is_code:
            yield from _shortened(rest, start)
            rest, start, is_code = "", section.start, section.is_code
        rest += section.text
        bounds = list(_lines(rest) if is_code else sentences(rest))
        # What comes next may belong to the last one.
        for first, end in bounds[:-1]:
            yield from _shortened(rest[first:end], start + first)
        done = bounds[-1][0] if bounds else 0
        rest, start = rest[done:], start + done
        while len(rest) > LONGEST_CHARACTERS:
            end = _place(rest)
            yield start, rest[:end]
            rest, start = rest[end:], start + end
    yield from _shortened(rest, start)


def _shortened(text: str, start: int) -> Iterator[tuple[int, str]]:
    while len(text) > LONGEST_CHARACTERS:
        end = _place(text)
        yield start, text[:end]
        text, start = text[end:], start + end
    if text:
        yield start, text


def _place(text: str) -> int:
    """Where the beginning of a sentence that is too long ends: its characters choose."""
    low = LONGEST_CHARACTERS // 2
    places = [found.end() for found in _WORD_END.finditer(text, low, LONGEST_CHARACTERS)]
    return min(places or range(low, LONGEST_CHARACTERS), key=lambda n: text[n : n + 16])


def _lines(text: str) -> Iterator[tuple[int, int]]:
    """``[start, end)`` of each line with the empty ones after it."""
    start = 0
    for found in _LINE_END.finditer(text):
        yield start, found.end()
        start = found.end()
    if start < len(text):
        yield start, len(text)


# Tables


def _of_rows(
    passage: Callable[..., Passage], sections: Iterable[Section], count: Count, most: int
) -> Iterator[Passage]:
    """Rows in the groups of :meth:`~xattn.inputs.table.Table.chunks`, which needs them all."""
    first, sections = _peeked(iter(sections))
    header = first.table.header if first.table is not None else ()

    def size(table: Table) -> int:
        # No row of a passage has a longer number.
        return count(canonical_text("".join(table.pieces(first=most))))

    bare = size(Table(header, ()))
    room = max(0, most - bare)
    for units in _groups(_rows(sections, lambda row: size(row) - bare), room):
        start, end = units[0].start, units[0].start + len(units)
        table = Table(header, tuple(row for unit in units for row in unit.content.rows))
        fitting = [table] if units[0].size <= room else _fitted(table, size, most)
        for part in fitting:
            yield passage(text="".join(pieces_of(part)), start=start, end=end, table=part)


def _rows(sections: Iterable[Section], size: Callable[[Table], int]) -> Iterator[_Unit[Table]]:
    for section in sections:
        assert section.table is not None
        for number, row in enumerate(section.table.rows, start=section.first_row):
            alone = Table(section.table.header, (row,))
            yield _Unit(alone, number, size(alone), (0, alone.digest()))


def _fitted(table: Table, size: Callable[[Table], int], most: int) -> Iterator[Table]:
    """A row that is too long as several that fit: fewer columns in each, or parts of a cell."""
    [row] = table.rows
    widest = max(range(len(row)), key=lambda n: len(cell_text(row[n])))

    def holding(text: str) -> Table:
        return Table(table.header, ((*row[:widest], text, *row[widest + 1 :]),))

    others = size(holding(""))
    if size(table) <= most:
        yield table
    elif 2 * others <= most or (len(row) == 1 and others < most):
        text = cell_text(row[widest])
        for start, end in chunks(text, lambda part: size(holding(part)) - others, most - others):
            yield holding(text[start:end].strip())
    elif len(row) > 1:
        middle = len(row) // 2
        for columns in (slice(None, middle), slice(middle, None)):
            yield from _fitted(Table(table.header[columns], (row[columns],)), size, most)
    else:
        raise InvalidSourceError(
            f"the name of a column takes {others}, but a passage has room for {most}: "
            f"{shown(table.header[0])}; shorten it, or make room for more."
        )
