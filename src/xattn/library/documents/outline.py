"""What readers of formats with headings have in common."""

from collections.abc import Iterator

from xattn.inputs.table import Table
from xattn.library.passage import Section


class Headings:
    """The headings above a place, as they come."""

    def __init__(self) -> None:
        self._open: list[tuple[int, str]] = []

    def add(self, level: int, heading: str) -> None:
        """A heading, which ends those of its ``level`` and below; 1 is the outermost."""
        self.leave(level)
        self._open.append((level, heading))

    def leave(self, level: int) -> None:
        """End the headings of this level and of those below."""
        self._open = [(above, name) for above, name in self._open if above < level]

    @property
    def path(self) -> tuple[str, ...]:
        """The outermost first."""
        return tuple(name for _, name in self._open)


class Outline:
    """Sections of a format whose text is what its reader extracts: headings, paragraphs, tables.

    Paragraphs are kept apart by an empty line. Headings are text as well; those with nothing below
    them stay with what follows, and above a table they are in the path alone. Rows are counted
    through the document.
    """

    def __init__(self) -> None:
        self._headings = Headings()
        self._waiting = ""
        self._start, self._row = 0, 1

    def heading(self, level: int, text: str) -> None:
        """A heading; 1 is the outermost level."""
        if text:
            self._headings.add(level, text)
            self._waiting += f"{text}\n\n"

    def paragraph(self, text: str, *, is_code: bool = False) -> Iterator[Section]:
        """A paragraph, or code, under the headings so far; nothing where it is blank."""
        if text.strip():
            yield from self.rest()
            yield self._section(f"{text}\n\n", is_code)

    def table(self, rows: list[tuple[str, ...]]) -> Iterator[Section]:
        """A table whose first row is its header; without another row, it is a paragraph."""
        if len(rows) < 2 or not rows[0]:
            yield from self.paragraph("\n".join(" | ".join(row) for row in rows))
            return
        table = Table(rows[0], tuple(rows[1:]))
        self._waiting = ""
        yield Section(
            text="",
            start=self._start,
            heading=self._headings.path,
            table=table,
            first_row=self._row,
        )
        self._row += len(table.rows)

    def rest(self) -> Iterator[Section]:
        """Headings below which there was nothing yet."""
        if self._waiting:
            yield self._section(self._waiting, is_code=False)
            self._waiting = ""

    def _section(self, text: str, is_code: bool) -> Section:
        start = self._start
        self._start += len(text)
        return Section(text=text, start=start, heading=self._headings.path, is_code=is_code)
