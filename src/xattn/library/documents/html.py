"""HTML: the main text without what surrounds it, its headings and its tables."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from xattn.errors import MissingExtraError
from xattn.library.documents.document import Content
from xattn.library.documents.files import whole_text
from xattn.library.documents.outline import Outline
from xattn.library.passage import Section

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

_DROPPED = (
    "script, style, noscript, template, nav, footer, svg, canvas, iframe, object, button, select, "
    "textarea, [hidden], [aria-hidden=true], a.headerlink"
)
_BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details dialog div dl dt fieldset "
    "figcaption figure form h1 h2 h3 h4 h5 h6 header hr li main ol p pre section summary table "
    "tbody td tfoot th thead tr ul".split()
)
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_CHARSET = re.compile(rb"""<meta[^>]*?charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_UNDERSTOOD = {"iso8859-1": "cp1252", "ascii": "cp1252"}
_CHARSET_BYTES = 1024
"""Of a file's beginning, where the standard wants its encoding to be named."""
_MOST_SPANNED = 100_000
"""Places of a table that cells fill besides their own; a page could ask for any number."""


def read_html(path: Path) -> Content:
    """A page; its title is what it says, or its first heading of level 1.

    It is decoded as it says, too, and otherwise as all texts. Raises :class:`MissingExtraError`,
    and what :func:`whole_text` raises.
    """
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError as error:
        raise MissingExtraError(
            "selectolax", "documents", f"reading {path.name!r} (HTML)"
        ) from error
    tree = LexborHTMLParser(whole_text(path, _declared(path)))
    _drop(tree)
    named = (tree.css_first(tag) for tag in ("title", "h1"))
    titles = (_collapsed(node.text()) for node in named if node is not None)
    title = next(filter(None, titles), path.stem)
    return Content(title, lambda: _sections(tree))


def _declared(path: Path) -> str | None:
    """The encoding that the page names, if Python has it, as browsers understand that."""
    with path.open("rb") as file:
        found = _CHARSET.search(file.read(_CHARSET_BYTES))
    try:
        name = found[1].decode("ascii") if found else "utf-8"
        b"a".decode(name)  # not in two bytes a character, which could not have said so
    except (LookupError, UnicodeDecodeError):
        return None
    return _UNDERSTOOD.get(codecs.lookup(name).name, name)


def _drop(tree: "LexborHTMLParser") -> None:
    """Take out what is no content."""
    found = {node.mem_id: node for node in tree.css(_DROPPED)}

    def is_inside(node: "LexborNode | None") -> bool:
        while node is not None and (node := node.parent) is not None:
            if node.mem_id in found:
                return True
        return False

    # What is inside of one goes with it, and may not be touched any more.
    for node in [node for node in found.values() if not is_inside(node)]:
        node.decompose()


def _sections(tree: "LexborHTMLParser") -> Iterator[Section]:
    root = _main(tree)
    if root is None:
        return
    outline = Outline()
    pieces: list[str] = []

    def paragraph() -> Iterator[Section]:
        lines = map(_collapsed, "".join(pieces).split("\n"))
        pieces.clear()
        yield from outline.paragraph("\n".join(line for line in lines if line))

    for node, opens in _walk(root):
        tag = node.tag or ""
        if tag in ("td", "th") and any(map(str.strip, pieces)):
            pieces.append(" | " if opens else "")
        elif tag in _BLOCKS:
            yield from paragraph()
        if not opens:
            continue
        if node.is_text_node:
            pieces.append(re.sub(r"\s+", " ", node.text(deep=False)))
        elif tag == "br":
            pieces.append("\n")
        elif tag == "li":
            pieces.append("- ")
        elif tag in _HEADINGS:
            outline.heading(int(tag[1]), _collapsed(node.text()))
        elif tag == "pre":
            yield from outline.paragraph(node.text().strip("\n"), is_code=True)
        elif _is_whole(node):
            caption = node.css_first("caption")
            yield from outline.paragraph(_collapsed(caption.text()) if caption is not None else "")
            yield from outline.table(_rows(node))
    yield from paragraph()
    yield from outline.rest()


def _main(tree: "LexborHTMLParser") -> "LexborNode | None":
    """The element that says it is the page's content, or all of the page."""
    main = tree.css_first("main, [role=main]")
    if main is None:
        articles = tree.css("article")
        main = articles[0] if len(articles) == 1 else tree.body
    return main


def _walk(root: "LexborNode") -> Iterator[tuple["LexborNode", bool]]:
    """The nodes of a tree as they open (True) and close; of those taken whole, not what is in them.

    Pages may be nested deeper than functions can be.
    """
    node, opens = root, True
    while True:
        yield node, opens
        child = node.first_child if opens and not _is_whole(node) else None
        if child is not None:
            node = child
            continue
        if opens:
            yield node, False
        if node.mem_id == root.mem_id:
            return
        following, above = node.next, node.parent
        if following is None and above is None:
            return
        node, opens = (following, True) if following is not None else (above or root, False)


def _is_whole(node: "LexborNode") -> bool:
    """Headings, preformatted text, and tables of data: their first row is a header."""
    if node.tag != "table":
        return node.tag == "pre" or node.tag in _HEADINGS
    first = node.css_first("tr")
    inside = node.css("table, h1, h2, h3, h4, h5, h6, pre")  # itself as well
    tags = [cell.tag for cell in first.iter()] if first is not None and len(inside) == 1 else []
    return len(tags) > 1 and set(tags) == {"th"}


def _rows(table: "LexborNode") -> list[tuple[str, ...]]:
    """Cells as a grid: what spans several rows or columns is in each of them."""
    rows = table.css("tr")
    grid: list[dict[int, str]] = [{} for _ in rows]
    room = _MOST_SPANNED
    for y, row in enumerate(rows):
        x = 0
        for cell in row.iter():
            while x in grid[y]:
                x += 1
            wide, tall = _span(cell, "colspan"), min(_span(cell, "rowspan"), len(rows) - y)
            if wide * tall - 1 > room:
                wide, tall = 1, 1
            room -= wide * tall - 1
            text = _collapsed(cell.text(separator=" "))
            for line in grid[y : y + tall]:
                line.update(dict.fromkeys(range(x, x + wide), text))
            x += wide
    width = max(max(row, default=-1) + 1 for row in grid)
    return [tuple(row.get(x, "") for x in range(width)) for row in grid]


def _span(cell: "LexborNode", name: str) -> int:
    number = (cell.attributes.get(name) or "").strip()
    return max(1, int(number)) if number.isdecimal() and len(number) < 9 else 1


def _collapsed(text: str) -> str:
    return " ".join(text.split())
