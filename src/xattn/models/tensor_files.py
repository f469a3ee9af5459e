"""Safetensors files as weights that are read when they are needed."""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from xattn.errors import CorruptCheckpointError
from xattn.models.weights import Weight


def tensors_of(file: Path) -> dict[str, Weight]:
    """The tensors of one safetensors file; :class:`CorruptCheckpointError` where it is none."""
    try:
        # Stays open (a memory map) for as long as a weight of it may still be loaded.
        opened = safe_open(file, framework="pt").__enter__()
        names = opened.keys()
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpointError(
            f"{file}: not a complete safetensors file ({error}); download or copy it again."
        ) from error

    def loader(name: str) -> Callable[[], Tensor]:
        return lambda: opened.get_tensor(name)

    return {
        name: Weight(origin=name, shape=shape, load=loader(name), mapped=True)
        for name, shape in shapes.items()
    }
