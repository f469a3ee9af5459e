"""The command line, ``xattn``. Parsing only: the work is done by the library."""

import io
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from xattn.cli.console import print_note
from xattn.cli.failures import exit_code_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
    warnings.showwarning = _show_warning  # one line, without the place in the code
    logging.getLogger("xattn").handlers = [_Notes()]

    def run() -> Any:
        from xattn.cli.app import build
        from xattn.cli.stores import OPEN_STORES

        given = sys.argv[1:] if arguments is None else list(arguments)
        with OPEN_STORES:
            return build().main(args=given, prog_name="xattn", standalone_mode=False, obj=given)

    return exit_code_of(run)


class _Notes(logging.Handler):
    """What the library logs, as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        print_note(f"warning: {record.getMessage()}")


def _show_warning(message: Warning | str, *args: Any, **more: Any) -> None:
    print_note(f"warning: {' '.join(str(message).split())}")
