"""Citations beside their files: what stands there, and whether the file is still the same."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from xattn.errors import MissingExtraError, SourceError, SourceNotFoundError, require
from xattn.inputs.table import Table
from xattn.inputs.text import canonical_text
from xattn.library.answer import Citation, Standing
from xattn.library.documents import digest_of_file, read_document
from xattn.library.passage import Section

_RUN = re.compile(r"\s+|\S+")


@dataclass(frozen=True, kw_only=True)
class Quote:
    """What stands at a place of a file; nothing, unless the file is as it was."""

    standing: Standing
    text: str = ""
    table: Table | None = None
    """The rows, where rows were asked for."""
    heading: tuple[str, ...] = ()
    page: int | None = None


def standing_of(path: str, digest: str) -> Standing:
    """How a file is now, beside ``digest``: what :func:`digest_of_file` said of it then."""
    try:
        return "as it was" if digest_of_file(path) == digest else "changed"
    except SourceNotFoundError:
        return "gone"
    except SourceError:
        return "gone" if Path(path).is_dir() else "unknown"


def quote(path: str, start: int, end: int, *, digest: str) -> Quote:
    """Characters ``[start, end)`` of the document in a file, as they stand there.

    Raises what :func:`read_document` raises.
    """
    standing = standing_of(path, digest)
    found = list(_within(path, start, end)) if standing == "as it was" else []
    if not found:
        return Quote(standing=standing)
    text = "".join(s.text[max(0, start - s.start) : end - s.start] for s in found)
    return Quote(standing=standing, text=text, heading=found[0].heading, page=found[0].page)


def quote_rows(path: str, start: int, end: int, *, digest: str) -> Quote:
    """Rows ``[start, end)``, from 1, of the tables in a file, as they stand there.

    Rows of another table than the first one's are left out. Raises as :func:`quote`.
    """
    standing = standing_of(path, digest)
    if standing != "as it was":
        return Quote(standing=standing)
    found: Table | None = None
    heading: tuple[str, ...] = ()
    for section in read_document(path).sections():
        if section.table is None:
            continue
        first = section.first_row
        if first >= end:
            break
        rows = section.table.rows[max(0, start - first) : end - first]
        if rows and found is None:
            found, heading = Table(section.table.header, rows), section.heading
        elif rows and found is not None and found.header == section.table.header:
            found = Table(found.header, found.rows + rows)
    return Quote(standing=standing, table=found, heading=heading)


def _within(path: str, start: int, end: int) -> Iterator[Section]:
    for section in read_document(path).sections():
        if section.start >= end:
            return
        if section.start + len(section.text) > start:
            yield section


def checked(citation: Citation, digest: str) -> Citation:
    """The citation with its standing and, where the file is as it was, the exact place in it.

    A passage is in Unicode normalisation form C and its file may not be: places count the file's
    characters, which then are others than the passage's. Of a file that cannot be read now the
    standing is unknown.
    """
    passage = citation.passage
    same_length = len(passage.text) == passage.end - passage.start
    if passage.table is not None or same_length:
        return replace(citation, standing=standing_of(passage.source, digest))
    try:
        found = quote(passage.source, passage.start, passage.end, digest=digest)
    except (SourceError, MissingExtraError):
        return replace(citation, standing="unknown")
    if found.standing != "as it was":
        return replace(citation, standing=found.standing)
    first, last = citation.start - passage.start, citation.end - passage.start
    start, end = original_span(found.text, first, last)
    return replace(
        citation,
        start=passage.start + start,
        end=passage.start + end,
        standing=found.standing,
    )


def original_span(original: str, start: int, end: int) -> tuple[int, int]:
    """Characters of ``original`` that ``[start, end)`` of its normalisation form C come from.

    Exact, but for words that are not in that form: of such a one, all of it.
    """
    places: list[tuple[int, int]] = []
    for found in _RUN.finditer(original):
        composed = canonical_text(found[0])
        if composed == found[0]:
            places += [(n, n + 1) for n in range(*found.span())]
        else:
            places += [found.span()] * len(composed)
    fits = 0 <= start < end <= len(places)
    require(fits, "start, end", f"a span of 0 to {len(places)}", (start, end))
    return places[start][0], places[end - 1][1]
