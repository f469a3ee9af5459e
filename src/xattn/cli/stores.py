"""The store of a command: opened as its flags say, and who may do without it."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from xattn.cli.console import print_note
from xattn.cli.options import STORE
from xattn.errors import StoreError, UsageError

if TYPE_CHECKING:
    from xattn.model import Model
    from xattn.store import MemoryStore

OPEN_STORES = ExitStack()
"""Those of the command that runs; it ends with them closed."""


def open_store(options: Mapping[str, Any]) -> "MemoryStore":
    """The store that ``options`` describe, those of the table ``STORE``.

    Raises as :class:`xattn.MemoryStore`, with the names of flags.
    """
    from xattn.store import MemoryStore

    if "cold_bytes" in options and "cold" not in options:
        raise UsageError(
            "--cache-shared-capacity is the budget of --cache-shared, which was not given; "
            "give both, or neither."
        )
    root, keywords = options.get("root"), {n: v for n, v in options.items() if n != "root"}
    try:
        return OPEN_STORES.enter_context(MemoryStore(root, **keywords))
    except UsageError as error:
        raise UsageError(_with_flags(str(error))) from error


def use_store(model: "Model", options: Mapping[str, Any]) -> None:
    """Let ``model`` keep its memories there; where that cannot be, say so and go on without."""
    try:
        model.store = open_store(options)
    except StoreError as error:
        print_note(f"memories are not kept: {error}")


def lossy(options: Mapping[str, Any], cache: bool) -> dict[str, Any]:
    """What of the store's options results depend on: a codec that loses something."""
    codec = options.get("codec", "float32")
    return {"codec": codec} if cache and codec != "float32" else {}


def _with_flags(message: str) -> str:
    """The library's keywords in ``message`` as the flags that set them."""
    flags = {option.keyword: f"--{name.replace('_', '-')}" for name, option in STORE.items()}
    return re.sub(r"`(\w+)`", lambda name: f"`{flags.get(name[1], name[1])}`", message)
