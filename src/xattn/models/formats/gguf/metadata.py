"""From the metadata of a GGUF file to a spec; names of values are those of ``gguf.constants``."""

import math
from collections.abc import Callable
from typing import Any

from xattn.errors import CorruptCheckpointError, UnsupportedModelError
from xattn.models.formats.gguf.dequantise import FORMATS, dequantise
from xattn.models.formats.gguf.header import Header
from xattn.models.formats.gguf.rotary import scaling_from_factors
from xattn.spec import (
    AttentionSpec,
    DecoderSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    Placement,
    PositionSpec,
    RotaryScaling,
    TokenSpec,
)

FREQUENCY_FACTORS = "rope_freqs.weight"


class Metadata:
    """The values of one architecture, checked as they are asked for."""

    def __init__(self, header: Header, architecture: str) -> None:
        self.header, self.architecture = header, architecture

    def spec(self) -> ModelSpec:
        """The model that the metadata and the set of tensors describe."""
        if self.number("split.count", 1, scope="") > 1:
            raise UnsupportedModelError(
                f"{self.header.path}: is one of several files of a split model; join them with "
                "llama-gguf-split --merge."
            )
        if self.number("expert_count", 0):
            raise UnsupportedModelError(f"{self.header.path}: mixtures of experts are not run.")
        layers = self._layers()
        norm = NormSpec(kind="rms", eps=self.positive("attention.layer_norm_rms_epsilon"))
        width = self.whole("embedding_length")
        attention = self._attention(width, norm)
        vocab_size = self.tensor_shape("token_embd.weight")[0]
        decoder = DecoderSpec(
            width=width,
            layers=layers,
            self_attention=attention,
            feed_forward=FeedForwardSpec(
                width=self.whole("feed_forward_length"),
                activation="silu",
                gated=True,
                bias=self.has("blk.0.ffn_up.bias"),
            ),
            norm=norm,
            norm_place="before",
            position=PositionSpec(
                kind="rotary",
                limit=self.whole("context_length"),
                theta=self.positive("rope.freq_base", 10000.0),
                scaling=self._scaling(attention.head_width),
            ),
            vocab_size=vocab_size,
            placement=Placement.none(layers),
            head_tied=not self.has("output.weight"),
            head_bias=self.has("output.bias"),
        )
        return ModelSpec(family=self.architecture, decoder=decoder, tokens=self._tokens(vocab_size))

    def _layers(self) -> int:
        layers = self.whole("block_count")
        blocks = {name.split(".")[1] for name in self.header.tensors if name.startswith("blk.")}
        if len(blocks) != layers or str(layers - 1) not in blocks:
            raise CorruptCheckpointError(
                f"{self.header.path}: 'block_count' is {layers}, but there are tensors of "
                f"{len(blocks)} blocks."
            )
        return layers

    def _attention(self, width: int, norm: NormSpec) -> AttentionSpec:
        heads = self.whole("attention.head_count")
        head_width = self.whole("attention.key_length", max(width // heads, 1))
        for name in ("attention.value_length", "rope.dimension_count"):
            if self.whole(name, head_width) != head_width:
                raise UnsupportedModelError(
                    f"{self.header.path}: {name!r} must be the width of a head ({head_width}), "
                    f"but is {self.whole(name)} instead."
                )
        return AttentionSpec(
            heads=heads,
            kv_heads=self.whole("attention.head_count_kv", heads),
            head_width=head_width,
            scale=self.positive("attention.scale", head_width**-0.5),
            q_bias=self.has("blk.0.attn_q.bias"),
            k_bias=self.has("blk.0.attn_k.bias"),
            v_bias=self.has("blk.0.attn_v.bias"),
            o_bias=self.has("blk.0.attn_output.bias"),
            qk_norm=norm if self.has("blk.0.attn_q_norm.weight") else None,
            rotary=True,
        )

    def _scaling(self, head_width: int) -> RotaryScaling | None:
        if self.has(FREQUENCY_FACTORS):
            entry = self.header.tensors[FREQUENCY_FACTORS]
            if entry.type not in FORMATS or entry.shape != (head_width // 2,):
                raise CorruptCheckpointError(
                    f"{self.header.path}: {FREQUENCY_FACTORS!r} must hold {head_width // 2} "
                    f"numbers, but is {entry.type} of shape {list(entry.shape)}."
                )
            factors = dequantise(self.header.bytes_of(entry), entry.type, entry.shape)
            if not (factors > 0).all():
                raise CorruptCheckpointError(
                    f"{self.header.path}: {FREQUENCY_FACTORS!r} must be above 0 everywhere."
                )
            scaling = scaling_from_factors(factors, theta=self.positive("rope.freq_base", 10000.0))
            if scaling is None:
                raise UnsupportedModelError(
                    f"{self.header.path}: {FREQUENCY_FACTORS!r} stretches the rotary wavelengths "
                    "in another way than Llama 3 does."
                )
            return scaling
        kind = self.header.metadata.get(f"{self.architecture}.rope.scaling.type", "none")
        if kind not in ("none", "linear"):
            raise UnsupportedModelError(
                f"{self.header.path}: rotary scaling must be 'none' or 'linear', but is {kind!r}."
            )
        factor = self.positive("rope.scaling.factor", 1.0)
        return (
            None if kind == "none" or factor == 1.0 else RotaryScaling(kind="linear", factor=factor)
        )

    def _tokens(self, vocab_size: int) -> TokenSpec:
        ids: dict[str, int | None] = {}
        for name in ("bos", "eos", "eot", "padding", "unknown"):
            value = self.header.metadata.get(f"tokenizer.ggml.{name}_token_id")
            if value is not None and not (isinstance(value, int) and 0 <= value < vocab_size):
                raise CorruptCheckpointError(
                    f"{self.header.path}: 'tokenizer.ggml.{name}_token_id' must be below "
                    f"{vocab_size}, but is {value!r}."
                )
            ids[name] = value
        ends = dict.fromkeys(id for id in (ids["eos"], ids["eot"]) if id is not None)
        return TokenSpec(eos=tuple(ends), bos=ids["bos"], pad=ids["padding"])

    def has(self, tensor: str) -> bool:
        """Whether the file has the tensor."""
        return tensor in self.header.tensors

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that every model has."""
        if name not in self.header.tensors:
            raise CorruptCheckpointError(f"{self.header.path}: the tensor {name!r} is missing.")
        return self.header.tensors[name].shape

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1; a list of equal ones (one per layer) counts as one."""
        value = self.number(name, default)
        if value < 1 or value != int(value):
            raise CorruptCheckpointError(
                f"{self.header.path}: '{self.architecture}.{name}' must be a whole number of at "
                f"least 1, but is {value}."
            )
        return int(value)

    def positive(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.number(name, default)
        if value <= 0:
            raise CorruptCheckpointError(
                f"{self.header.path}: '{self.architecture}.{name}' must be above 0, but is {value}."
            )
        return value

    def number(self, name: str, default: float | None = None, *, scope: str | None = None) -> float:
        """A finite number; required where there is no default."""
        key = f"{self.architecture}.{name}" if scope is None else f"{scope}{name}"
        value = self.header.metadata.get(key, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise UnsupportedModelError(
                    f"{self.header.path}: {key!r} differs between layers, which xattn does not run."
                )
            value = value[0]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise CorruptCheckpointError(
                f"{self.header.path}: {key!r} must be a finite number, but is {value!r}."
            )
        return value


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(item) is kind for item in value)


_VOCABULARY_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("ggml.model", "ggml.pre", "chat_template"), ("text", lambda value: isinstance(value, str))
    ),
    **dict.fromkeys(("ggml.tokens", "ggml.merges"), ("a list of texts", _is_list_of(str))),
    "ggml.token_type": ("a list of whole numbers", _is_list_of(int)),
    "ggml.scores": ("a list of numbers", _is_list_of(float)),
    **dict.fromkeys(
        ("ggml.add_bos_token", "ggml.add_eos_token", "ggml.add_space_prefix"),
        ("true or false", lambda value: isinstance(value, bool)),
    ),
}


def check_vocabulary(header: Header, vocab_size: int) -> None:
    """Raise :class:`CorruptCheckpointError` where a part of the tokenizer is of another type."""
    for name, (bound, holds) in _VOCABULARY_TYPES.items():
        value = header.metadata.get(f"tokenizer.{name}")
        if value is not None and not holds(value):
            raise CorruptCheckpointError(
                f"{header.path}: 'tokenizer.{name}' must be {bound}, but is {str(value)[:60]}."
            )
    merges = header.metadata.get("tokenizer.ggml.merges", [])
    apart = next((merge for merge in merges if merge.count(" ") < 1), None)
    if apart is not None:
        raise CorruptCheckpointError(
            f"{header.path}: a merge must be two pieces with a space between, but one is {apart!r}."
        )
    tokens = header.metadata.get("tokenizer.ggml.tokens", [])
    if len(tokens) > vocab_size:
        raise CorruptCheckpointError(
            f"{header.path}: has {len(tokens)} tokens, but embeddings for {vocab_size}."
        )
