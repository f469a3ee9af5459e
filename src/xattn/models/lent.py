"""Encoders that a decoder reads and was not made with: what a graft has in the place of its own.

A memory is named by the encoder that made it, whoever reads it: one that another model with the
same encoder left in a store is found there.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from xattn.errors import InvalidSourceError, UsageError, require
from xattn.inputs.table import Table
from xattn.inputs.text import Tokenizer, token_ids_of
from xattn.memory import KV_PREPROCESSING, Hash, Memory
from xattn.models.build import build
from xattn.models.encode import Prepared
from xattn.models.formats import read_checkpoint
from xattn.models.network import Network
from xattn.models.pictures import PictureEncoder
from xattn.models.sources import MakesMemories, Sources
from xattn.models.texts import TextEncoder
from xattn.models.weights import Checkpoint, EncoderSource
from xattn.spec import LentSpec, Modality

STATES = "states/1"
"""How memories are prepared that are a decoder-only model's hidden states."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
RECORDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".mp4", ".webm")


class OwnedByModel:
    """The encoder of another model that xattn runs, which was read from ``path``."""

    def __init__(
        self, network: Network, tokenizer: Tokenizer | None, path: Path | None = None
    ) -> None:
        encoder = network.spec.encoder
        if encoder is None:
            raise UsageError(
                "`encoder` must be a model with an encoder, but is decoder-only; a decoder-only "
                "model can read its own states: encoder='itself'."
            )
        self.modality: Modality = encoder.modality
        self.width = encoder.width
        self.made_of, self.path = network, path
        self.makes: MakesMemories = Sources(network, tokenizer)


class _Uncut(ABC):
    """Makes memories itself, of sources that are not cut: what is too long is refused."""

    @property
    def makes(self) -> MakesMemories:
        """Itself."""
        return self

    @property
    @abstractmethod
    def digests(self) -> frozenset[str]: ...

    @property
    @abstractmethod
    def makers(self) -> Sequence[nn.Module]: ...

    @abstractmethod
    def prepare(
        self,
        sources: Sequence[Any],
        *,
        language: str | None,
        sample_rate: int | None,
        behind: Memory | None = None,
    ) -> list[Prepared]: ...

    @abstractmethod
    def encode(self, prepared: Sequence[Prepared]) -> list[Memory]: ...

    def prepare_long(
        self,
        source: Any,
        *,
        max_positions: int | None,
        language: str | None,
        sample_rate: int | None,
    ) -> list[Prepared]:
        """One piece."""
        require(max_positions is None, "max_positions", "left out: it is not cut", max_positions)
        return self.prepare([source], language=language, sample_rate=sample_rate)


class HiddenStates(_Uncut):
    """The states of a decoder-only model after its last layer (XC-Cache, Monteiro et al. 2024).

    ``network`` is the model as it is without cross-attention.
    """

    modality: Modality = "text"

    def __init__(self, network: Network, tokenizer: Tokenizer | None) -> None:
        self.width = network.spec.decoder.width
        self._tokenizer = tokenizer
        self.read(network)

    def read(self, network: Network) -> None:
        """Let the states be those of ``network``."""
        self.made_of = network
        self._sources = Sources(network, self._tokenizer)

    @property
    def makers(self) -> Sequence[nn.Module]:
        """All layers of the model."""
        return self._sources.makers

    @property
    def digests(self) -> frozenset[str]:
        """Of the model."""
        return self._sources.digests

    def prepare(
        self,
        sources: Sequence[Any],
        *,
        language: str | None,
        sample_rate: int | None,
        behind: Memory | None = None,
    ) -> list[Prepared]:
        """Texts, tables or token ids, as the model itself takes them."""
        require(behind is None, "behind", "left out: hidden states are of one source", behind)
        found = self._sources.prepare(sources, language=language, sample_rate=sample_rate)
        return [_as_states(item) for item in found]

    def encode(self, prepared: Sequence[Prepared]) -> list[Memory]:
        """One pass of the decoder for each."""
        made = []
        with torch.autocast(self.made_of.device.type, enabled=False):  # or keys' dtype would lie
            for item in prepared:
                assert isinstance(item.inputs, list)
                made.append(item.memory(self.made_of.encode_hidden(item.inputs)))
        return made


class Module(_Uncut):
    """A module of transformers."""

    def __init__(self, encoder: PictureEncoder | TextEncoder) -> None:
        self.modality: Modality = "image" if isinstance(encoder, PictureEncoder) else "text"
        self.width = encoder.width
        self.made_of: PictureEncoder | TextEncoder = encoder

    @property
    def makers(self) -> Sequence[nn.Module]:
        """The module."""
        return [self.made_of.module]

    @property
    def digests(self) -> frozenset[str]:
        """Of the module."""
        return frozenset([self.made_of.encoder_digest])

    def prepare(
        self,
        sources: Sequence[Any],
        *,
        language: str | None,
        sample_rate: int | None,
        behind: Memory | None = None,
    ) -> list[Prepared]:
        """Pictures or texts."""
        for name, value in (("language", language), ("sample_rate", sample_rate)):
            require(value is None, name, "left out for this encoder", value)
        require(behind is None, "behind", "left out for encoders", behind)
        return self.made_of.prepare_batch(sources)

    def encode(self, prepared: Sequence[Prepared]) -> list[Memory]:
        """One memory for each."""
        with torch.autocast(self.made_of.device.type, enabled=False):  # or keys' dtype would lie
            return self.made_of.encode_prepared(prepared)


Lent = OwnedByModel | HiddenStates | Module
"""One encoder, of one modality."""


def spec_of(lent: Lent) -> LentSpec:
    """What is known of one."""
    encoder = lent.made_of.spec.encoder if isinstance(lent, OwnedByModel) else None
    return LentSpec(
        modality=lent.modality,
        width=lent.width,
        encoder=encoder,
        itself=isinstance(lent, HiddenStates),
    )


class Several:
    """Encoders by modality. A source that several could take is given as ``{modality: source}``."""

    def __init__(self, lent: Sequence[Lent]) -> None:
        seen = [one.modality for one in lent]
        require(len(lent) > 0, "encoder", "at least one", list(lent))
        require(len(seen) == len(set(seen)), "encoder", "one for each modality", seen)
        self.lent: Mapping[Modality, Lent] = {one.modality: one for one in lent}

    @property
    def encoder_passes(self) -> int:
        """Sources that they encoded, for whomever."""
        return sum(one.made_of.counters.encoder_passes for one in self.lent.values())

    @property
    def makers(self) -> Sequence[nn.Module]:
        """All of them."""
        return [maker for one in self.lent.values() for maker in one.makes.makers]

    @property
    def digests(self) -> frozenset[str]:
        """Of all of them."""
        return frozenset(digest for one in self.lent.values() for digest in one.makes.digests)

    def prepare(
        self,
        sources: Sequence[Any],
        *,
        language: str | None,
        sample_rate: int | None,
        behind: Memory | None = None,
    ) -> list[Prepared]:
        """Each by the encoder of its modality."""
        of_modality: dict[Modality, dict[int, Any]] = {}
        for place, source in enumerate(sources):
            modality, plain = self._told(source)
            of_modality.setdefault(modality, {})[place] = plain
        found: dict[int, Prepared] = {}
        for modality, some in of_modality.items():
            prepared = self.lent[modality].makes.prepare(
                list(some.values()),
                language=language if modality == "text" else None,
                sample_rate=sample_rate if modality == "audio" else None,
                behind=behind,
            )
            found |= zip(some, prepared, strict=True)
        return [found[place] for place in range(len(sources))]

    def prepare_long(
        self,
        source: Any,
        *,
        max_positions: int | None,
        language: str | None,
        sample_rate: int | None,
    ) -> list[Prepared]:
        """In pieces, as the encoder of its modality cuts it."""
        modality, plain = self._told(source)
        return self.lent[modality].makes.prepare_long(
            plain, max_positions=max_positions, language=language, sample_rate=sample_rate
        )

    def encode(self, prepared: Sequence[Prepared]) -> list[Memory]:
        """Each by the encoder of its modality, those of one together."""
        of_modality: dict[Modality, list[int]] = {}
        for place, item in enumerate(prepared):
            of_modality.setdefault(item.key.modality, []).append(place)
        found: dict[int, Memory] = {}
        for modality, places in of_modality.items():
            made = self.lent[modality].makes.encode([prepared[place] for place in places])
            found |= zip(places, made, strict=True)
        return [found[place] for place in range(len(prepared))]

    def _told(self, source: Any) -> tuple[Modality, Any]:
        """Which modality a source is of, and the source."""
        named, plain = None, source
        if isinstance(source, Mapping):
            require(len(source) == 1, "source", "{modality: source} of one entry", source)
            [(named, plain)] = source.items()
        elif len(self.lent) == 1:
            named = next(iter(self.lent))
        else:
            named = modality_of(source)
        if named is None:
            raise UsageError(
                f"a source of type {type(source).__name__} may be of several modalities; say which "
                f"as {{modality: source}}, with one of {', '.join(self.lent)}."
            )
        if named not in self.lent:
            raise InvalidSourceError(
                f"this model reads {' and '.join(self.lent)}, but the source is {named}."
            )
        return named, plain


@dataclass(frozen=True, kw_only=True)
class Like:
    """How a model is loaded."""

    dtype: str = "float32"
    quantize: str | None = None
    device: str = "cpu"
    hash: Hash = "blake3"


def lend(checkpoint: Checkpoint, network: Network, like: Like) -> Several:
    """The encoders that a checkpoint names, of the number type and on the device it is loaded to.

    Raises what loading them raises.
    """
    return Several([_lent(source, checkpoint, network, like) for source in checkpoint.encoders])


def _lent(source: EncoderSource, checkpoint: Checkpoint, network: Network, like: Like) -> Lent:
    if source.kind == "itself":
        return HiddenStates(without_cross(network), checkpoint.tokenizer)
    assert source.path is not None
    if source.kind == "model":
        of_encoder = read_checkpoint(source.path, str(source.path))
        how: dict[str, Any] = {"dtype": like.dtype, "quantize": like.quantize}
        made = build(of_encoder, hash=like.hash, device=like.device, **how)
        return OwnedByModel(made, of_encoder.tokenizer, source.path)
    kind = TextEncoder if source.kind == "text" else PictureEncoder
    return Module(kind.load(source.path, device=like.device, hash=like.hash))


def without_cross(network: Network) -> Network:
    """The model that a graft was made on: its very modules, and nothing of the graft."""
    spec, decoder = network.spec, network.decoder
    plain = replace(spec, decoder=spec.decoder.without_cross(), projectors=(), lent=())
    with torch.device("meta"):
        alone = Network(plain, hash=network.hash)
    for name, _ in alone.decoder.named_children():
        if name != "layers":
            setattr(alone.decoder, name, getattr(decoder, name))
    own = (layer for layer in decoder.stack if layer.attends_self)
    for bare, layer in zip(alone.decoder.stack, own, strict=True):
        for name, _ in bare.named_children():
            setattr(bare, name, getattr(layer, name))
    alone.decoder.rotary = decoder.rotary
    return alone.eval()


def modality_of(source: Any) -> Modality | None:
    """What a source is by its type, or its file's suffix; None where that does not say."""
    if isinstance(source, str | Path):
        suffix = Path(source).suffix.lower() if len(str(source)) < 1000 else ""
        if suffix in PICTURES:
            return "image"
        return "audio" if suffix in RECORDINGS else "text"
    if isinstance(source, Table) or token_ids_of(source) is not None:
        return "text"
    if isinstance(source, np.ndarray | torch.Tensor):
        floats = source.dtype in (torch.float32, torch.float64) or str(source.dtype)[:5] == "float"
        return "audio" if floats else "image"
    return "image" if type(source).__module__.startswith("PIL.") else None


def _as_states(item: Prepared) -> Prepared:
    """Named as hidden states, and not as the keys and values that the model itself would make."""
    how = item.key.preprocessing.removeprefix(KV_PREPROCESSING).strip()
    return replace(item, key=replace(item.key, preprocessing=f"{STATES} {how}"))
