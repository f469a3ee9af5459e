"""Hugging Face checkpoint directories: config.json and safetensors, one file or shards."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xattn.errors import CheckpointError, CorruptCheckpointError, UnsupportedModelError
from xattn.inputs.json_files import read_json_as
from xattn.inputs.tokenizers import load_tokenizer
from xattn.models.families import family_of
from xattn.models.network import Network
from xattn.models.tensor_files import tensors_of
from xattn.models.weights import Checkpoint, Weight, WeightTable, refuse_pickles
from xattn.spec import ModelSpec


def matches(path: Path) -> bool:
    """A directory with a config.json that names a model type, or that is no JSON at all."""
    config = path / "config.json"
    return config.is_file() and (
        b'"model_type"' in config.read_bytes() or (path / "model.safetensors").is_file()
    )


def read(path: Path, origin: str) -> Checkpoint:
    """The checkpoint in directory ``path``; no tensor is read yet.

    Raises :class:`CheckpointError` of a kind that says what is wrong.
    """
    config = read_json_as(dict, path / "config.json")
    generation: Mapping[str, Any] = {}
    if (path / "generation_config.json").is_file():
        generation = read_json_as(dict, path / "generation_config.json")
    _refuse_quantised(path, config)
    tensors = read_safetensors(path, config.get("model_type"))
    try:
        family = family_of(config)
        spec = family.spec(config, generation)
    except CheckpointError as error:
        # Families see a config and not where it came from.
        raise type(error)(f"{path}: {error}") from error
    spec = _with_own_head(spec, family.table, tensors)
    with torch.device("meta"):
        expected = [name for name, _ in Network(spec).named_parameters()]
    weights, names, unused = family.table.bind(expected, tensors)
    weights, shared = _with_one_table(weights)
    spec = replace(spec, shared_embeddings=shared)
    if "decoder.head.bias" in weights:
        weights["decoder.head.bias"] = _flattened(weights["decoder.head.bias"])
    return Checkpoint(
        spec=spec,
        weights=weights,
        origin=origin,
        directory=path,
        tokenizer=load_tokenizer(path, config),
        # A checkpoint from before generation configs keeps the same names in its config.
        generation=generation or config,
        names=names,
        unused=unused,
    )


def _refuse_quantised(path: Path, config: Mapping[str, Any]) -> None:
    quantisation = config.get("quantization_config")
    if quantisation is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
        raise UnsupportedModelError(
            f"{path}: its weights are quantised ({method or 'quantization_config'}), which is not "
            "read from safetensors; take the unquantised checkpoint, a GGUF file, or a CTranslate2 "
            "conversion."
        )


def _with_own_head(spec: ModelSpec, table: WeightTable, tensors: Mapping[str, Weight]) -> ModelSpec:
    """Untie the head where the file holds one that differs from the embeddings.

    As in transformers 5: such a file is right and its config, which says they are tied, is not.
    """
    heads = [tensors[n] for n in table.names_of("decoder.head.weight") if n in tensors]
    tables = [tensors[n] for n in table.names_of("decoder.embed.weight") if n in tensors]
    if not spec.decoder.head_tied or not heads or not tables:
        return spec
    if _are_equal(heads[0], tables[0]):
        return spec
    return replace(spec, decoder=replace(spec.decoder, head_tied=False))


def _with_one_table(weights: Mapping[str, Weight]) -> tuple[dict[str, Weight], bool]:
    """Weights in which embeddings that the file holds twice are one, and whether they are.

    Older files repeat the shared table under the names of both stacks; where the stacks do not
    share it, transformers writes the same names with different tables.
    """
    bound = dict(weights)
    encoder, decoder = bound.get("encoder.embed.weight"), bound.get("decoder.embed.weight")
    if encoder is None or decoder is None or not _are_equal(encoder, decoder):
        return bound, False
    bound["encoder.embed.weight"] = decoder
    return bound, True


def _are_equal(a: Weight, b: Weight) -> bool:
    if a.origin == b.origin:
        return True
    return a.shape == b.shape and torch.equal(a.load(), b.load())


def read_safetensors(path: Path, model_type: object = None) -> dict[str, Weight]:
    """All tensors of the directory, by name, not read yet."""
    index = path / "model.safetensors.index.json"
    if index.is_file() and not (path / "model.safetensors").is_file():
        entries = read_json_as(dict, index).get("weight_map")
        if not isinstance(entries, dict):
            raise CorruptCheckpointError(f"{index}: has no 'weight_map'.")
        files = sorted({str(name) for name in entries.values()})
    else:
        files = ["model.safetensors"]
    tensors: dict[str, Weight] = {}
    for name in files:
        file = path / name
        if Path(name).name != name:
            raise CorruptCheckpointError(f"{index}: shard {name!r} is not in the directory itself.")
        if not _is_file(file):
            refuse_pickles(path, model_type)
            raise CorruptCheckpointError(f"{file}: the file is missing from the checkpoint.")
        tensors.update(tensors_of(file))
    return tensors


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _flattened(weight: Weight) -> Weight:
    """``final_logits_bias`` is stored as [1, V]."""
    size = math.prod(weight.shape)

    def flat() -> Tensor:
        return weight.load().reshape(-1)

    return Weight(origin=weight.origin, shape=(size,), load=flat, mapped=weight.mapped)
