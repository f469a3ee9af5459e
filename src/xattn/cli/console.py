"""What the command line prints: results on stdout, everything else on stderr."""

import json
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

REPORT_SECONDS = 30.0
"""How often long work reports to a stderr that is not a terminal."""


def print_line(text: str) -> None:
    """One result on stdout, at once: a reader at the other end of a pipe need not wait."""
    text = text.encode("utf-8", "replace").decode()  # names of files may be no text
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def print_piece(text: str) -> None:
    """A part of a result that is still growing."""
    sys.stdout.write(text)
    sys.stdout.flush()


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print_line(json.dumps(document, ensure_ascii=False, indent=2))


def print_error(message: object) -> None:
    """One line on stderr, whatever ``message`` holds."""
    _print_to_stderr(f"xattn: error: {' '.join(str(message).split())}")


def print_note(message: str) -> None:
    """One line on stderr that is not an error."""
    _print_to_stderr(f"xattn: {message}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text, as wide as they need to be: nothing is cut off in a pipe.

    On a terminal lines are folded where they are too long for it, and numbers stand below numbers.
    """
    if sys.stdout.isatty():
        _print_rich_table(header, rows)
        return
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print_line("  ".join(cells).rstrip())


def _print_rich_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for place, name in enumerate(header):
        cells = [row[place] for row in rows]
        table.add_column(name, justify="right" if _are_numbers(cells) else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # a bracket is a bracket, and no markup
    Console().print(table)


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether all that is there begins with a digit or a sign."""
    written = [cell for cell in cells if cell not in ("", "none", "-")]
    return bool(written) and all(cell[0].isdigit() or cell[0] in "+-≈" for cell in written)


class Progress:
    """How far long work is, on stderr: a bar on a terminal, now and then a line elsewhere.

    On a terminal that the results are printed to meanwhile there is no bar: they are the progress.
    """

    _live: ClassVar[Any] = None
    """The bar on the screen; errors are printed above it."""

    def __init__(self, what: str, *, unit: str, results_on_stdout: bool) -> None:
        self._what, self._unit = what, unit
        self._silent = results_on_stdout and sys.stdout.isatty()
        self._reported = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not self._silent:
            from rich.console import Console
            from rich.progress import Progress as Bar

            # Results that go to stdout are not for the bar to redirect.
            self._bar = Bar(
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=None)
            Progress._live = self._bar
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            Progress._live = None

    def update(self, done: float, total: float) -> None:
        """``done`` of ``total`` are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif not self._silent and time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            print_note(f"{self._what}: {done:.0f} of {total:.0f} {self._unit}")


def _print_to_stderr(line: str) -> None:
    if Progress._live is not None:
        Progress._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
