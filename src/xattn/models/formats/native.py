"""A model as xattn itself writes it: any spec, which the configs of others have no words for.

::

    xattn.json           the spec, and settings of generation
    model.safetensors    the weights, by the names that they have here
    tokenizer.json       and what else the tokenizer is made of
"""

from pathlib import Path
from typing import Any

import torch

from xattn.errors import UnsupportedModelError
from xattn.inputs.json_files import read_json_as
from xattn.inputs.tokenizers import load_tokenizer
from xattn.models.network import Network
from xattn.models.spec_json import from_json
from xattn.models.tensor_files import tensors_of
from xattn.models.weights import Checkpoint
from xattn.spec import ModelSpec

CONFIG, WEIGHTS = "xattn.json", "model.safetensors"
VERSION = 1


def matches(path: Path) -> bool:
    """A directory with an xattn.json."""
    return (path / CONFIG).is_file()


def read(path: Path, origin: str) -> Checkpoint:
    """The checkpoint in directory ``path``; no tensor is read yet.

    Raises :class:`CheckpointError` of a kind that says what is wrong.
    """
    held: dict[str, Any] = read_json_as(dict, path / CONFIG)
    if held.get("version") != VERSION:
        raise UnsupportedModelError(
            f"{path / CONFIG}: its version is {held.get('version')!r}, and {VERSION} is read; a "
            "later xattn wrote it."
        )
    spec = from_json(ModelSpec, held.get("spec"), str(path / CONFIG))
    tensors = tensors_of(path / WEIGHTS)
    with torch.device("meta"):
        expected = [name for name, _ in Network(spec).named_parameters()]
    weights = {name: tensors[name] for name in expected if name in tensors}
    table = weights.get("decoder.embed.weight")
    if spec.encoder is not None and spec.shared_embeddings and table is not None:
        weights.setdefault("encoder.embed.weight", table)
    return Checkpoint(
        spec=spec,
        weights=weights,
        origin=origin,
        directory=path,
        tokenizer=load_tokenizer(path, {}),
        generation=held.get("generation") or {},
        names={name: name for name in expected},
        unused=tuple(name for name in tensors if name not in expected),
    )
