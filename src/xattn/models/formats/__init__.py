"""Formats of checkpoints. Each has a module with ``matches(path)`` and ``read(path, origin)``."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from xattn.errors import UnsupportedModelError
from xattn.models.weights import Checkpoint, refuse_pickles

FORMATS = {
    "graft": "graft.json of a graft",
    "native": "xattn.json of a model that was trained here",
    "gguf": "a .gguf file, or a directory with one",
    "g2p": "an .npz file of a grapheme-to-phoneme model",
    "ctranslate2": "model.bin of CTranslate2, with a vocabulary",
    "huggingface": "config.json with a model_type, and safetensors",
}
"""Names of the modules, in the order they are tried, and what each looks for."""


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
            return replace(checkpoint, path=path)
    refuse_pickles(path)
    if path.is_file() and (path.parent / "config.json").is_file():
        raise UnsupportedModelError(
            f"{path}: is one file of a checkpoint; give its directory, {path.parent}."
        )
    raise UnsupportedModelError(
        f"{path}: no checkpoint found there; looked for {'; '.join(FORMATS.values())}."
    )
