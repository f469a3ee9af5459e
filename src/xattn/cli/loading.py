"""Loading the model that a command was asked for."""

import sys
from typing import TYPE_CHECKING

from xattn.errors import UsageError

if TYPE_CHECKING:
    from xattn.model import Model


def load_model(
    name: str, *, device: str, dtype: str, offline: bool, threads: int | None
) -> "Model":
    """Load ``name``, with a sign of life on a terminal. Raises what :func:`xattn.load` raises."""
    if not name:
        raise UsageError("no model was named; give --model (`xattn models` lists some).")
    if not sys.stderr.isatty():
        return _load(name, device=device, dtype=dtype, offline=offline, threads=threads)
    from rich.console import Console

    with Console(stderr=True).status(f"loading {name}"):
        return _load(name, device=device, dtype=dtype, offline=offline, threads=threads)


def _load(name: str, *, device: str, dtype: str, offline: bool, threads: int | None) -> "Model":
    # torch takes seconds to import: here, and not where --help would wait for it.
    import torch

    from xattn.model import load

    _require_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    return load(name, dtype=dtype, device=device, offline=offline)


def _require_device(name: str) -> None:
    """Raise :class:`UsageError` unless torch can put a tensor on the device ``name``."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter: torch built without CUDA
        raise UsageError(
            f"`--device` must be one that `xattn doctor` lists, but is {name!r} instead."
        ) from error
