"""Formats of checkpoints. Each has a module with ``matches(path)`` and ``read(path, origin)``."""

from importlib import import_module
from pathlib import Path

from xattn.errors import UnsafeCheckpointError, UnsupportedModelError
from xattn.models.weights import Checkpoint

FORMATS = {
    "gguf": "a .gguf file, or a directory with one",
    "g2p": "an .npz file of a grapheme-to-phoneme model",
    "ctranslate2": "model.bin of CTranslate2, with a vocabulary",
    "huggingface": "config.json with a model_type, and safetensors",
}
"""Names of the modules, in the order they are tried, and what each looks for."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_checkpoint(path: Path, origin: str) -> Checkpoint:
    """Read the checkpoint at ``path``, a file or a directory; no weight is loaded yet.

    ``origin`` is what the user asked for. Raises :class:`UnsafeCheckpointError` where the weights
    are pickles, :class:`UnsupportedModelError` where no format is recognised, and what the format's
    own reader raises.
    """
    for name in FORMATS:
        module = import_module(f"{__name__}.{name}")
        if module.matches(path):
            checkpoint: Checkpoint = module.read(path, origin)
            return checkpoint
    _refuse_pickles(path)
    raise UnsupportedModelError(
        f"{path}: no checkpoint found there; looked for {'; '.join(FORMATS.values())}."
    )


def _refuse_pickles(path: Path) -> None:
    """Raise :class:`UnsafeCheckpointError` if ``path`` is a pickle, or a directory with one."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    pickle = next((file for file in files if file.suffix in _PICKLES), None)
    if pickle is not None:
        raise UnsafeCheckpointError(
            f"{pickle}: is a pickle, which can run any code when it is opened, and so is never "
            "opened here; convert it to safetensors once, where you trust it, with transformers: "
            "AutoModel.from_pretrained(DIRECTORY).save_pretrained(NEW_DIRECTORY)"
        )
