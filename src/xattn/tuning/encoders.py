"""Encoders by name."""

import os
from pathlib import Path

from xattn.errors import UnsupportedModelError
from xattn.model import Model, load
from xattn.models.formats import read_checkpoint
from xattn.models.resolve import resolve
from xattn.models.texts import TextEncoder
from xattn.tuning.graft import ITSELF


def encoder_of(name: str | os.PathLike[str], *, offline: bool = False) -> str | Model | TextEncoder:
    """``"itself"``, a model with an encoder, or else a text model of transformers.

    Raises what loading raises.
    """
    if name == ITSELF:
        return ITSELF
    path = resolve(os.fspath(name), offline=offline)
    if path.is_dir() and not _is_ours(path):
        return TextEncoder.load(path)
    return load(name, offline=offline)


def _is_ours(path: Path) -> bool:
    try:
        read_checkpoint(path, str(path))
    except UnsupportedModelError:
        return not (path / "tokenizer.json").is_file()
    return True
