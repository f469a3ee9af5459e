"""Loading the model that a command was asked for."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xattn.errors import UsageError

if TYPE_CHECKING:
    from xattn.model import Model


def load_model(
    name: str, *, threads: int | None = None, adapter: Path | None = None, **loading: Any
) -> "Model":
    """Load ``name``, with a sign of life on a terminal. Raises what :func:`xattn.load` raises.

    ``threads`` is how many torch may use, ``adapter`` the directory of one to compute with,
    ``loading`` are keywords of :func:`xattn.load`.
    """
    if not name:
        raise UsageError("no model was named; give --model (`xattn models` lists some).")
    if not sys.stderr.isatty():
        return _load(name, threads, adapter, loading)
    from rich.console import Console

    with Console(stderr=True).status(f"loading {name}"):
        return _load(name, threads, adapter, loading)


def numbers_of(loading: dict[str, Any]) -> dict[str, Any]:
    """What of the loading changes the answers."""
    numbers = {name: loading.get(name) for name in ("dtype", "quantize")}
    adapter = loading.get("adapter")
    return numbers if adapter is None else numbers | {"adapter": str(adapter)}


def _load(name: str, threads: int | None, adapter: Path | None, loading: dict[str, Any]) -> "Model":
    # torch takes seconds to import: here, and not where --help would wait for it.
    import torch

    from xattn.model import load

    if threads is not None:
        torch.set_num_threads(threads)
    model = load(name, **loading)
    if adapter is not None:
        from xattn.tuning.lora import load_adapter

        load_adapter(model, adapter)
    return model
