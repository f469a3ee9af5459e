"""Source code: lines, each under the definitions that it is in, as far as a pattern tells."""

import re
from collections.abc import Iterator
from pathlib import Path

from xattn.library.documents.document import Content
from xattn.library.documents.files import BLOCK_CHARACTERS, lines_of
from xattn.library.documents.outline import Headings
from xattn.library.passage import Section

_DEFINITION = re.compile(
    r"\s*(?:(?:export|default|declare|pub(?:\([^)]*\))?|public|private|protected|internal|static|"
    r"abstract|final|sealed|open|data|async|unsafe|inline|const|override|virtual|partial|local)"
    r"\s+)*"
    r"(?:def|class|function|fn|func|fun|struct|enum|interface|trait|impl|mod|module|namespace|"
    r"object|record|protocol|extension)\b\s*\*?\s*(?:\([^)]*\)\s*|<[^>]*>\s*)?"
    r"(?P<name>[A-Za-z_$][\w$.:]*)"
)
_LEADS_IN = re.compile(r"\s*(?:@|#|//|/\*|\*|--|;;)")
"""Comments and decorators, which belong to what comes after them."""
_GOES_ON = re.compile(
    r"\s*(?:[\])}{(]|(?:end|else|elif|elsif|except|rescue|ensure|finally|catch|case|default|where)\b)"
)
"""Lines that end a definition, or are part of it, though they are not indented."""
_TAB = 8


def read_code(path: Path) -> Content:
    """Source code; its title is the file's name."""
    return Content(path.name, lambda: _sections(path))


def _sections(path: Path) -> Iterator[Section]:
    headings = Headings()
    text, leading, start = "", "", 0
    for line in lines_of(path, BLOCK_CHARACTERS):
        if _LEADS_IN.match(line) and len(leading) < BLOCK_CHARACTERS:
            leading += line
            continue
        path_before, opens = headings.path, _place(headings, line)
        if text and (opens or headings.path != path_before or len(text) > BLOCK_CHARACTERS):
            yield Section(text=text, start=start, heading=path_before, is_code=True)
            text, start = "", start + len(text)
        text, leading = text + leading + line, ""
    if text + leading:
        yield Section(text=text + leading, start=start, heading=headings.path, is_code=True)


def _place(headings: Headings, line: str) -> bool:
    """Take in a line; whether it begins a definition."""
    if not line.strip():
        return False
    indented = line.expandtabs(_TAB)
    level = len(indented) - len(indented.lstrip()) + 1
    found = _DEFINITION.match(line)
    if found:
        headings.add(level, found["name"].rstrip(".:"))
    elif not _GOES_ON.match(line):
        headings.leave(level)
    return found is not None
