"""Grafts at rest: a directory that :func:`xattn.load` reads; its layout is the format's."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from xattn.errors import UsageError, require
from xattn.model import Model
from xattn.models.formats import read_checkpoint
from xattn.models.formats.graft import (
    CONFIG,
    ENCODERS,
    LM,
    VERSION,
    WEIGHTS,
    EncoderConfig,
    GraftConfig,
    Place,
    fingerprint,
    moved_name,
)
from xattn.models.lent import HiddenStates, Lent, Module, OwnedByModel, Several
from xattn.models.pictures import PictureEncoder
from xattn.models.spec_json import as_json
from xattn.tuning.whole import replacing

KEPT = (".json", ".safetensors", ".gguf", ".npz", ".txt", ".model", ".spm", ".jinja")
KEPT_NAMES = ("model.bin",)  # CTranslate2's
"""Files of a checkpoint that are copied, by suffix or name."""


def save(
    model: Model,
    directory: str | os.PathLike[str],
    *,
    copy: bool = True,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a graft into ``directory``, in the place of what was there.

    ``weights`` are the network's by name, where it has not all of them itself.

    With ``copy`` the language model's checkpoint and the encoders' lie in it, and it needs nothing
    else; without, they are named by where they are now, which must be found again to load it.

    Raises :class:`SaveError` where it cannot be written, and then what was there before is as it
    was; :class:`UsageError` for a model that is no graft.
    """
    path = Path(directory).expanduser().absolute()
    lent = _encoders(model)
    require(model.base_path is not None, "model", "a graft on a checkpoint", model)
    assert model.base_path is not None
    with replacing(path) as new:
        lm = _kept(model.base_path, new, LM, copy)
        encoders = tuple(_kept_encoder(one, new, copy) for one in lent)
        decoder = model.spec.decoder
        assert decoder.cross_attention is not None
        config = GraftConfig(
            version=VERSION,
            lm=lm,
            placement=decoder.placement,
            cross_attention=decoder.cross_attention,
            memory_width=decoder.memory_width,
            encoders=encoders,
            projectors=model.spec.projectors,
        )
        (new / CONFIG).write_text(json.dumps(as_json(config), indent=2) + "\n")
        save_file(own_weights(model, weights), new / WEIGHTS)


def own_weights(model: Model, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What a graft has beside the language model's checkpoint: new weights, and changed ones."""
    assert model.base_path is not None
    base, placement = read_checkpoint(model.base_path, model.name), model.spec.decoder.placement
    theirs = {moved_name(name, placement): weight for name, weight in base.weights.items()}
    own: dict[str, Tensor] = {}
    for name, tensor in model.network.named_parameters():
        held = (tensor if weights is None else weights[name]).detach()
        if name not in theirs or not _is_as_it_was(held, theirs[name].load()):
            own[name] = held.cpu().contiguous()
    return own


def _is_as_it_was(held: Tensor, loaded: Tensor) -> bool:
    return torch.equal(held.cpu(), loaded.to(held.dtype))


def _encoders(model: Model) -> list[Lent]:
    if not isinstance(model.sources, Several):
        raise UsageError(f"`model` must be a graft, but is {model!r} instead.")
    return list(model.sources.lent.values())


def _kept_encoder(lent: Lent, new: Path, copy: bool) -> EncoderConfig:
    if isinstance(lent, HiddenStates):
        return EncoderConfig(modality=lent.modality, kind="itself", width=lent.width)
    inside = f"{ENCODERS}/{lent.modality}"
    if isinstance(lent, OwnedByModel):
        require(lent.path is not None, "encoder", "a model that was loaded from files", lent)
        assert lent.path is not None
        place = _kept(lent.path, new, inside, copy)
        return EncoderConfig(modality=lent.modality, kind="model", width=lent.width, place=place)
    assert isinstance(lent, Module)
    (new / inside).mkdir(parents=True)
    lent.made_of.save(new / inside)
    return EncoderConfig(
        modality=lent.modality,
        kind="picture" if isinstance(lent.made_of, PictureEncoder) else "text",
        width=lent.width,
        place=Place(inside=inside),
    )


def _kept(path: Path, new: Path, inside: str, copy: bool) -> Place:
    """A checkpoint, copied into the graft's directory or named."""
    if not copy:
        return Place(name=str(path.absolute()), fingerprint=fingerprint(path))
    target = new / inside
    target.mkdir(parents=True)
    for file in [path] if path.is_file() else path.iterdir():
        if file.is_file() and (file.suffix in KEPT or file.name in KEPT_NAMES):
            shutil.copyfile(file, target / file.name)
    return Place(inside=inside)
