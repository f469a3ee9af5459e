"""The store of a command: where it is, and who may do without it."""

import atexit
from pathlib import Path
from typing import TYPE_CHECKING

from xattn.cli.console import print_note

if TYPE_CHECKING:
    from xattn.model import Model
    from xattn.store import MemoryStore


def open_store(directory: Path | None) -> "MemoryStore":
    """The store in ``directory``, or the usual one; raises as :class:`xattn.MemoryStore`."""
    from xattn.store import MemoryStore

    store = MemoryStore(directory)
    atexit.register(store.close)
    return store


def use_store(model: "Model", directory: Path | None) -> None:
    """Let ``model`` keep its memories there; where that cannot be, say so and go on without."""
    from xattn.errors import StoreError

    if model.spec.encoder is None:
        return
    try:
        model.store = open_store(directory)
    except StoreError as error:
        print_note(f"memories are not kept: {error}")
