"""Reading a GGUF file into a checkpoint: Llama, Qwen2 and Qwen3, dequantised to float32.

Names of values and tensors follow ``gguf.constants``.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from xattn.errors import CorruptCheckpointError, UnsupportedModelError, UsageError
from xattn.inputs.tokenizers import tokenizer_from_gguf
from xattn.models.formats.gguf.dequantise import FORMATS, dequantise
from xattn.models.formats.gguf.header import MAGIC, Header, TensorEntry
from xattn.models.formats.gguf.metadata import FREQUENCY_FACTORS, Metadata, check_vocabulary
from xattn.models.formats.gguf.rotary import half_split
from xattn.models.weights import Checkpoint, Weight
from xattn.native.pages import forget_mapped
from xattn.spec import ModelSpec

ARCHITECTURES = ("llama", "qwen2", "qwen3")

_MODEL_NAMES = {
    "decoder.embed": "token_embd",
    "decoder.final_norm": "output_norm",
    "decoder.head": "output",
}
_LAYER_NAMES = {
    "self_norm": "attn_norm",
    "self_attn.q": "attn_q",
    "self_attn.k": "attn_k",
    "self_attn.v": "attn_v",
    "self_attn.o": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "ffn_norm": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}


def matches(path: Path) -> bool:
    """Whether ``path`` is a GGUF file, or a directory with exactly one and no safetensors."""
    file = _file(path)
    if file is None:
        return False
    with file.open("rb") as opened:
        return file.suffix == ".gguf" or opened.read(len(MAGIC)) == MAGIC


def read(path: Path, origin: str) -> Checkpoint:
    """Read a GGUF file. ``origin`` is what the user asked for. No weight is read yet.

    Raises :class:`CorruptCheckpointError` where the file is truncated or malformed, and
    :class:`UnsupportedModelError` for other architectures and number formats.
    """
    file = _file(path)
    assert file is not None
    header = Header(file)
    architecture = header.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{file}: 'general.architecture' must be one of {', '.join(ARCHITECTURES)}, but is "
            f"{architecture!r} instead."
        )
    try:
        spec = Metadata(header, architecture).spec()
    except UsageError as error:
        # A spec that its own checks refuse was read from damaged numbers.
        raise CorruptCheckpointError(f"{file}: {error}") from error
    names = _names(spec.decoder.layers)
    weights = {
        ours: _weight(header, header.tensors[theirs], ours, spec)
        for ours, theirs in names.items()
        if theirs in header.tensors
    }
    _require_all_read(header, names)
    check_vocabulary(header, spec.decoder.vocab_size)
    return Checkpoint(
        spec=spec,
        weights=weights,
        names=names,
        tokenizer=tokenizer_from_gguf(header.metadata),
        origin=origin,
        directory=file.parent,
    )


def _file(path: Path) -> Path | None:
    if path.is_file():
        return path
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    files = list(path.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def _names(layers: int) -> dict[str, str]:
    """Our name -> the file's, for every tensor that one of the architectures may have."""
    blocks = {
        f"decoder.layers.{i}.{ours}": f"blk.{i}.{theirs}"
        for i in range(layers)
        for ours, theirs in _LAYER_NAMES.items()
    }
    return {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in {**_MODEL_NAMES, **blocks}.items()
        for kind in ("weight", "bias")
    }


def _require_all_read(header: Header, names: Mapping[str, str]) -> None:
    unread = sorted(set(header.tensors) - set(names.values()) - {FREQUENCY_FACTORS})
    if unread:
        raise UnsupportedModelError(
            f"{header.path}: the model uses an option that xattn does not run; nothing reads "
            f"{len(unread)} of its tensors: {', '.join(unread[:5])}."
        )


def _weight(header: Header, entry: TensorEntry, ours: str, spec: ModelSpec) -> Weight:
    if entry.type not in FORMATS:
        raise UnsupportedModelError(
            f"{header.path}: {entry.name!r} is {entry.type}; the number formats that are read are "
            f"{', '.join(FORMATS)}."
        )
    return Weight(origin=entry.name, shape=entry.shape, load=_loader(header, entry, ours, spec))


def _loader(header: Header, entry: TensorEntry, ours: str, spec: ModelSpec) -> Callable[[], Tensor]:
    attention = spec.decoder.self_attention
    heads = {"q": attention.heads, "k": attention.kv_heads}.get(ours.split(".")[-2], 0)
    interleaved = spec.family == "llama" and heads > 0

    def load() -> Tensor:
        raw = header.bytes_of(entry)
        tensor = torch.from_numpy(dequantise(raw, entry.type, entry.shape))
        forget_mapped(raw)
        return half_split(tensor, heads) if interleaved else tensor

    return load
