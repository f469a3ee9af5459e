"""What goes wrong, as one line on stderr and an exit code.

0 done, 1 failed, 2 bad usage, 130 interrupted. ``XATTN_DEBUG=1`` shows the traceback instead.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from xattn.cli.console import print_error
from xattn.cli.settings import DEBUG, settings_of
from xattn.errors import UsageError, XattnError

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def exit_code_of(run: Callable[[], Any]) -> int:
    """Run a command; say what went wrong, if anything, and return the exit code."""
    try:
        result = run()
        sys.stdout.flush()
        return result if isinstance(result, int) else DONE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader is gone, which is its right. Without a stdout, Python's own flush at exit
        # does not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # noqa: BLE001  (the outermost frame: nothing may pass unsaid)
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(f"{message_of(error, whole=True)}\n")
        elif os.environ.get(DEBUG):
            traceback.print_exc()
        else:
            print_error(message_of(error))
        return code_of(error)


def code_of(error: Exception) -> int:
    """Exit code of an error."""
    if isinstance(error, UsageError):
        return BAD_USAGE
    # typer's own errors carry the code; 2 for a bad option.
    code = getattr(error, "exit_code", FAILED)
    return code if isinstance(code, int) else FAILED


def message_of(error: Exception, *, whole: bool = False) -> str:
    """What to tell the user about an error; typer's own words where they are ``whole``."""
    if isinstance(error, XattnError):
        return str(error)
    if hasattr(error, "format_message"):
        return str(error.format_message()) if whole else _typer_message(error)
    if isinstance(error, OSError):
        where = f": {error.filename!r}" if error.filename else ""
        return f"{error.strerror or error}{where}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {str(error) or 'the machine has no more'}"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        wanted = re.search(r"allocate (\d+) bytes", str(error))
        return f"out of memory: {wanted[1] + ' more bytes' if wanted else 'more'} were needed"
    return f"{type(error).__name__}: {error} (unexpected; XATTN_DEBUG=1 shows where)"


def _typer_message(error: Any) -> str:
    """A usage error with the place to read on, and the place of a value that is no flag's."""
    message = error.format_message().rstrip().rstrip(".").replace(": Value error, ", ": ")
    message += _value_of(error, message)
    context = getattr(error, "ctx", None)
    if context is None:
        return f"{message}."
    name = getattr(getattr(error, "param", None), "name", None)
    setting = settings_of(context).get(name or "")
    given = getattr(context.get_parameter_source(name) if name else None, "name", "")
    if setting is not None and given == "DEFAULT_MAP":
        message += f" ({setting.source} gives {setting.value!r})"
    return f"{message}; see '{context.command_path} --help'."


def _value_of(error: Any, message: str) -> str:
    """The value that could not be parsed, where ``message`` has the bound alone."""
    errors = getattr(error.__cause__, "errors", None)
    value = repr(errors()[0]["input"]) if errors else ""
    return f", but is {value}" if value and value not in message else ""
