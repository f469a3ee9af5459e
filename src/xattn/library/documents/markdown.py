"""Markdown (CommonMark with tables): sections are the file's own characters, markup included."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from xattn.errors import MissingExtraError
from xattn.inputs.table import Table
from xattn.library.documents.document import Content
from xattn.library.documents.files import whole_text
from xattn.library.documents.outline import Headings
from xattn.library.passage import Section

if TYPE_CHECKING:
    from markdown_it.token import Token

_LINE_END = re.compile(r"\r\n?|\n")
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(?:.*?\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_TITLE = re.compile(r"""^title:[ \t]*["']?(.*?)["']?[ \t]*\r?$""", re.MULTILINE)


def read_markdown(path: Path) -> Content:
    """A file of Markdown; its title is that of its front matter, or its first heading of level 1.

    Raises :class:`MissingExtraError`, and what :func:`whole_text` raises.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise MissingExtraError(
            "markdown-it-py", "documents", f"reading {path.name!r} (Markdown)"
        ) from error
    text = whole_text(path)
    found = _FRONT_MATTER.match(text)
    front = found[0] if found else ""
    # Empty lines in its place, so that the parser counts lines as the file does.
    body = "\n" * len(_LINE_END.findall(front)) + text[len(front) :]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    named = _TITLE.search(front)
    title = (named[1] if named else "") or next(_headings(tokens, "h1"), "") or path.stem
    return Content(title, lambda: _sections(text, tokens, bool(front)))


def _headings(tokens: Sequence["Token"], tag: str) -> Iterator[str]:
    for token, inline in pairwise(tokens):
        if token.type == "heading_open" and token.tag == tag:
            yield _plain(inline)


def _plain(inline: "Token") -> str:
    """Text without its markup."""
    breaks = {"softbreak": " ", "hardbreak": " "}
    return "".join(breaks.get(t.type, t.content) for t in inline.children or ()).strip()


def _sections(text: str, tokens: Sequence["Token"], has_body: bool) -> Iterator[Section]:
    """Text up to each heading, table and block of code, and these; ``has_body`` from its start.

    Headings with nothing below them stay with what follows.
    """
    lines = [0, *(end.end() for end in _LINE_END.finditer(text)), len(text)]
    headings, at, row = Headings(), 0, 1

    def section(end: int, *, is_code: bool = False) -> Iterator[Section]:
        if at < end:
            yield Section(text=text[at:end], start=at, heading=headings.path, is_code=is_code)

    for n, token in enumerate(tokens):
        if token.level or token.map is None:
            continue
        start, end = (lines[min(line, len(lines) - 1)] for line in token.map)
        if token.type == "heading_open":
            if has_body:
                yield from section(start)
                at, has_body = start, False
            headings.add(int(token.tag[1:]), _plain(tokens[n + 1]))
            continue
        if token.type == "table_open" and (table := _table(tokens, n)).rows:
            if has_body:
                yield from section(start)
            yield Section(text="", start=start, heading=headings.path, table=table, first_row=row)
            row += len(table.rows)
            at = end
        elif token.type in ("fence", "code_block"):
            yield from section(start)
            at = start
            yield from section(end, is_code=True)
            at = end
        has_body = True
    yield from section(len(text))


def _table(tokens: Sequence["Token"], opened: int) -> Table:
    rows: list[list[str]] = []
    for token in tokens[opened:]:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(_plain(token))
        elif token.type == "table_close":
            break
    return Table(tuple(rows[0]), tuple(map(tuple, rows[1:])))
