"""A decoder-only model that cross-attention was grafted onto, as ``xattn.graft`` saves it.

::

    graft.json          what was grafted, and where the rest is
    graft.safetensors   what the model itself has not, and its weights that training changed
    lm/                 the model's own checkpoint, unless it is named
    encoders/text/      an encoder, unless it is named, or is the model itself
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from xattn.errors import CorruptCheckpointError, UnsupportedModelError
from xattn.inputs.json_files import read_json_as
from xattn.memory import digest_of
from xattn.models import formats
from xattn.models.network import Network
from xattn.models.resolve import resolve
from xattn.models.spec_json import from_json
from xattn.models.tensor_files import tensors_of
from xattn.models.weights import Checkpoint, EncoderSource, Weight
from xattn.spec import (
    AttentionSpec,
    LentSpec,
    Modality,
    ModelSpec,
    Placement,
    ProjectorSpec,
)

CONFIG, WEIGHTS, LM, ENCODERS = "graft.json", "graft.safetensors", "lm", "encoders"
VERSION = 1
PIECE = 1 << 20
_LAYER = re.compile(r"(decoder\.layers\.)(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a checkpoint is: in the graft's own directory, or under a name that is resolved."""

    inside: str | None = None
    name: str | None = None
    fingerprint: str | None = None
    """Of the weights under that name, which somebody may put others in the place of."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """An encoder of ``graft.json``."""

    modality: Modality
    kind: Literal["model", "itself", "text", "picture"]
    width: int
    """Of its states."""
    place: Place | None = None


@dataclass(frozen=True, kw_only=True)
class GraftConfig:
    """What ``graft.json`` says."""

    version: int
    lm: Place
    placement: Placement
    cross_attention: AttentionSpec
    memory_width: int
    encoders: tuple[EncoderConfig, ...]
    projectors: tuple[ProjectorSpec, ...] = ()


def grafted(
    lm: ModelSpec,
    placement: Placement,
    cross_attention: AttentionSpec,
    memory_width: int,
    projectors: tuple[ProjectorSpec, ...],
    lent: tuple[LentSpec, ...],
) -> ModelSpec:
    """The spec of a decoder-only model with cross-attention."""
    decoder = replace(
        lm.decoder,
        layers=len(placement.layers),
        placement=placement,
        cross_attention=cross_attention,
        memory_width=memory_width,
    )
    return replace(lm, decoder=decoder, projectors=projectors, lent=lent)


def fingerprint(path: Path) -> str:
    """Of a checkpoint's files of weights: their sizes, and a piece of each end."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    parts = []
    for file in files:
        if file.is_file() and (file.suffix in (".safetensors", ".gguf", ".npz", ".bin")):
            size = file.stat().st_size
            with file.open("rb") as opened:
                parts += [str(size).encode(), opened.read(PIECE)]
                opened.seek(max(0, size - PIECE))
                parts.append(opened.read(PIECE))
    return digest_of(*parts)


def matches(path: Path) -> bool:
    """A directory with a graft.json."""
    return (path / CONFIG).is_file()


def read(path: Path, origin: str) -> Checkpoint:
    """The model and what was grafted onto it, as one checkpoint; no tensor is read yet.

    Raises :class:`CheckpointError` of a kind that says what is wrong.
    """
    config = read_config(path)
    lm = formats.read_checkpoint(_located(path, config.lm), origin)
    if lm.spec.decoder.cross_attention is not None:
        raise CorruptCheckpointError(f"{path}: the model in it is not decoder-only.")
    layers, own = lm.spec.decoder.layers, len(places_of_layers(config.placement))
    if own != layers:
        raise CorruptCheckpointError(
            f"{path}: it was grafted onto a model of {own} layers, and the one that it names has "
            f"{layers}; it is the checkpoint of another graft."
        )
    spec = grafted(
        lm.spec,
        config.placement,
        config.cross_attention,
        config.memory_width,
        config.projectors,
        tuple(_lent(path, one) for one in config.encoders),
    )
    tensors = tensors_of(path / WEIGHTS)
    with torch.device("meta"):
        expected = [name for name, _ in Network(spec).named_parameters()]
    moved: dict[str, Weight] = {moved_name(n, config.placement): w for n, w in lm.weights.items()}
    names = {moved_name(n, config.placement): theirs for n, theirs in lm.names.items()}
    return replace(
        lm,
        spec=spec,
        weights=moved | {name: tensors[name] for name in expected if name in tensors},
        directory=path,
        names={name: name for name in expected if name not in moved} | names,
        unused=(*lm.unused, *(name for name in tensors if name not in expected)),
        encoders=tuple(_source(path, one) for one in config.encoders),
        base=lm.path,
    )


def places_of_layers(placement: Placement) -> list[int]:
    """Where each layer of the model itself is: cross-attention may have layers of its own."""
    own = placement.layers if placement.instead else (False,) * len(placement.layers)
    return [place for place, crosses in enumerate(own) if not crosses]


def moved_name(name: str, placement: Placement) -> str:
    """A weight of the model itself, by the name that it has in the graft."""
    found = _LAYER.match(name)
    if found is None or not placement.instead:
        return name
    place = places_of_layers(placement)[int(found[2])]
    return f"{found[1]}{place}{name[found.end(2) :]}"


def read_config(path: Path) -> GraftConfig:
    """What the directory's graft.json says; :class:`CorruptCheckpointError` where it is damaged."""
    held: Mapping[str, object] = read_json_as(dict, path / CONFIG)
    version = held.get("version")
    if version != VERSION:
        raise UnsupportedModelError(
            f"{path / CONFIG}: its version is {version!r}, and {VERSION} is read; a later xattn "
            "wrote it."
        )
    return from_json(GraftConfig, held, str(path / CONFIG))


def _located(path: Path, place: Place) -> Path:
    if place.name is not None:
        found = resolve(place.name, offline=True)
        if place.fingerprint not in (None, fingerprint(found)):
            raise CorruptCheckpointError(
                f"{path}: the weights in {found} are not those that this graft was made with; put "
                "those back, or make the graft again."
            )
        return found
    inside = path / (place.inside or "")
    if place.inside is None or not inside.resolve().is_relative_to(path.resolve()):
        raise CorruptCheckpointError(f"{path / CONFIG}: {place.inside!r} is no place inside it.")
    return inside


def _lent(path: Path, config: EncoderConfig) -> LentSpec:
    """What is known of an encoder without loading it."""
    itself, encoder = config.kind == "itself", None
    if config.kind == "model" and config.place is not None:
        encoder = formats.read_checkpoint(_located(path, config.place), "encoder").spec.encoder
    return LentSpec(modality=config.modality, width=config.width, encoder=encoder, itself=itself)


def _source(path: Path, config: EncoderConfig) -> EncoderSource:
    located = None if config.place is None else _located(path, config.place)
    if located is None and config.kind != "itself":
        raise CorruptCheckpointError(
            f"{path / CONFIG}: its {config.modality} encoder has no place."
        )
    return EncoderSource(modality=config.modality, kind=config.kind, path=located)
