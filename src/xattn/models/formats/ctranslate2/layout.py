"""From the variables of a CTranslate2 file to the specs of its encoder and decoder.

Everything is read off the file: widths from shapes, options from its scalars and from which
variables exist. The weights are bound under our names on the way, fused projections split.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from xattn.errors import CorruptCheckpointError, UnsupportedModelError
from xattn.models.formats.ctranslate2.reading import Reading
from xattn.spec import (
    AttentionSpec,
    AudioStemSpec,
    DecoderSpec,
    EncoderSpec,
    FeedForwardSpec,
    Placement,
    PositionSpec,
    RotaryScaling,
)

_ACTIVATIONS = ("relu", "gelu_new", "silu", "gelu", "quick_gelu", "tanh", "sigmoid")
"""By id: the order of ``ctranslate2.specs.common_spec.Activation``."""
_RELU, _GELU = 0, 3
_NO_SCALING, _LINEAR_SCALING, _LLAMA3_SCALING = -1, 0, 2

T = TypeVar("T")


class _Rows(NamedTuple):
    """Output rows of a fused linear layer."""

    linear: str
    start: int = 0
    stop: int | None = None


class _Projections(NamedTuple):
    """Where the four projections of an attention sub-layer lie."""

    q: _Rows
    k: _Rows
    v: _Rows
    o: _Rows
    head_width: int
    kv_heads: int


def read_encoder(reading: Reading, *, zero_row: bool) -> EncoderSpec:
    """The text encoder; ``zero_row`` as for :func:`read_decoder`, where the two share a table."""
    name = "encoder/embeddings_0/weight"
    if not reading.has(name):
        name = "encoder/embeddings/weight"
    rows, width = reading.shape(name, 2)
    reading.bind("encoder.embed.weight", name, tied=True, zero_row=zero_row)
    return EncoderSpec(
        **_read_stack(reading, "encoder", width, _RELU),
        embed_scale=_embed_scale(reading, "encoder", width),
        vocab_size=rows + zero_row,
    )


def read_audio_encoder(reading: Reading) -> EncoderSpec:
    """Whisper's encoder."""
    for conv in ("conv1", "conv2"):
        reading.bind_linear(f"encoder.stem.{conv}", f"encoder/{conv}")
    width, mel_bins, _ = reading.shape("encoder/conv1/weight", 3)
    positions, _ = reading.shape("encoder/position_encodings/encodings", 2)
    return EncoderSpec(
        **_read_stack(reading, "encoder", width, _GELU),
        audio=AudioStemSpec(mel_bins=mel_bins, frames=2 * positions),
    )


def read_decoder(reading: Reading, *, memory_width: int, zero_row: bool) -> DecoderSpec:
    """The decoder; ``memory_width`` is 0 where there is no encoder.

    ``zero_row`` adds a token whose embedding is zero, for models that start from none.
    """
    embeddings, projection = "decoder/embeddings/weight", "decoder/projection/weight"
    rows, width = reading.shape(embeddings, 2)
    reading.bind("decoder.embed.weight", embeddings, tied=True, zero_row=zero_row)
    tied = reading.file.find(projection) is reading.file.find(embeddings)
    if tied:
        reading.asked.add(projection)
    else:
        reading.bind("decoder.head.weight", projection, tied=True, zero_row=zero_row)
    head_bias = reading.has("decoder/projection/bias")
    if head_bias:
        reading.bind("decoder.head.bias", "decoder/projection/bias", zero_row=zero_row)
    placement, cross_attention = _read_cross_attention(reading)
    return DecoderSpec(
        **_read_stack(reading, "decoder", width, _RELU),
        embed_scale=_embed_scale(reading, "decoder", width),
        vocab_size=rows + zero_row,
        placement=placement,
        cross_attention=cross_attention,
        memory_width=memory_width if cross_attention else 0,
        head_tied=tied,
        head_bias=head_bias,
        head_scale=reading.number("decoder/scale_outputs", 1.0),
    )


def _embed_scale(reading: Reading, stack: str, width: int) -> float:
    """A flag (times the root of the width, and so without one), or the factor itself."""
    for name in (f"{stack}/scale_embeddings", f"{stack}/embeddings/multiply_by_sqrt_depth"):
        if reading.has(name):
            value = reading.number(name, 1.0)
            is_flag = reading.file.find(name).dtype == "int8"
            return (width**0.5 if value else 1.0) if is_flag else value
    return float(width**0.5)


def _read_stack(reading: Reading, stack: str, width: int, activation: int) -> dict[str, Any]:
    """The fields of a :class:`~xattn.spec.StackSpec`; ``activation`` where the file gives none."""
    layers = _layers(reading, stack)
    norms = [
        reading.bind_norm(_ours(layer, own), f"{layer}/{theirs}/layer_norm")
        for layer in layers
        for own, theirs in (("self_norm", "self_attention"), ("ffn_norm", "ffn"))
    ]
    final_norm = reading.has(f"{stack}/layer_norm/gamma")
    if final_norm:
        norms.append(reading.bind_norm(f"{stack}.final_norm", f"{stack}/layer_norm"))
    embedding_norm = reading.has(f"{stack}/layernorm_embedding/gamma")
    if embedding_norm:
        norms.append(reading.bind_norm(f"{stack}.embed_norm", f"{stack}/layernorm_embedding"))
    position = _read_position(reading, stack, layers)
    code = int(reading.number((f"{stack}/activation", "activation"), activation))
    feed_forwards = [
        _read_feed_forward(reading, layer, code, wide_down=position.kind == "relative")
        for layer in layers
    ]
    return {
        "width": width,
        "layers": len(layers),
        "self_attention": _read_attention(reading, stack, layers, "self_attention"),
        "feed_forward": _alike(reading, feed_forwards, "feed-forward sub-layers"),
        "norm": _alike(reading, norms, "norms"),
        "norm_place": "before" if reading.number((f"{stack}/pre_norm", "pre_norm"), 1) else "after",
        "position": position,
        "embedding_norm": embedding_norm,
        "final_norm": final_norm,
    }


def _read_cross_attention(reading: Reading) -> tuple[Placement, AttentionSpec | None]:
    layers = _layers(reading, "decoder")
    crossed = [layer for layer in layers if reading.has(f"{layer}/attention/linear_0/weight")]
    for layer in crossed:
        reading.bind_norm(_ours(layer, "cross_norm"), f"{layer}/attention/layer_norm")
    spec = _read_attention(reading, "decoder", crossed, "attention") if crossed else None
    return Placement(layers=tuple(layer in crossed for layer in layers)), spec


def _layers(reading: Reading, stack: str) -> list[str]:
    """Prefixes of the layers of ``stack``."""
    prefix = f"{stack}/layer_"
    keys = {
        name[len(prefix) :].partition("/")[0]
        for name in reading.file.variables
        if name.startswith(prefix)
    }
    numbers = sorted(int(key) for key in keys if key.isdecimal())
    if not numbers or numbers != list(range(len(numbers))):
        raise CorruptCheckpointError(
            f"{reading.path}: the layers of the {stack} must be numbered from 0 without a gap, but "
            f"are numbered {numbers}."
        )
    return [f"{prefix}{number}" for number in numbers]


def _ours(layer: str, name: str) -> str:
    """``decoder/layer_3`` -> ``decoder.layers.3.name``."""
    return f"{layer.replace('/layer_', '.layers.')}.{name}"


def _alike(reading: Reading, specs: Sequence[T], what: str) -> T:
    for spec in specs:
        if spec != specs[0]:
            raise UnsupportedModelError(
                f"{reading.path}: the {what} of a stack must be alike, but one is {spec} where the "
                f"first is {specs[0]}."
            )
    return specs[0]


def _locate(reading: Reading, scope: str, heads: int) -> _Projections:
    """Self-attention fuses q, k and v; cross-attention k and v. The last layer is the output."""
    own = scope.endswith("self_attention")
    kv_heads = 1 if reading.number(f"{scope}/multi_query", 0) else heads
    kv_heads = reading.count(f"{scope}/num_heads_kv", kv_heads)
    rows, _ = reading.shape(f"{scope}/linear_0/weight", 2)
    shares = heads + 2 * kv_heads if own else heads
    if rows % shares or heads % kv_heads:
        raise CorruptCheckpointError(
            f"{reading.path}: the rows of '{scope}/linear_0/weight' must divide among {heads} "
            f"heads that share {kv_heads} key/value heads, but there are {rows}."
        )
    head_width = rows // shares
    q, kv = heads * head_width, kv_heads * head_width
    fused, start = (f"{scope}/linear_0", q) if own else (f"{scope}/linear_1", 0)
    if reading.shape(f"{fused}/weight", 2)[0] != start + 2 * kv:
        raise CorruptCheckpointError(
            f"{reading.path}: '{fused}/weight' must have {start + 2 * kv} rows, but has "
            f"{reading.shape(f'{fused}/weight', 2)[0]}."
        )
    return _Projections(
        q=_Rows(f"{scope}/linear_0", 0, q),
        k=_Rows(fused, start, start + kv),
        v=_Rows(fused, start + kv, start + 2 * kv),
        o=_Rows(f"{scope}/linear_{1 if own else 2}"),
        head_width=head_width,
        kv_heads=kv_heads,
    )


def _read_attention(
    reading: Reading, stack: str, layers: Sequence[str], kind: str
) -> AttentionSpec:
    """All attention sub-layers of one kind, ``self_attention`` or (to the memory) ``attention``."""
    heads = reading.count((f"{stack}/num_heads", "num_heads"), 8)
    located = {layer: _locate(reading, f"{layer}/{kind}", heads) for layer in layers}
    # A key bias cancels in the softmax, and converters store zeros for models that have none.
    k_bias = any(_has_bias(reading, projections.k) for projections in located.values())
    specs = [
        _bind_attention(reading, layer, kind, heads, projections, k_bias)
        for layer, projections in located.items()
    ]
    return _alike(reading, specs, f"{kind} sub-layers")


def _has_bias(reading: Reading, rows: _Rows) -> bool:
    name = f"{rows.linear}/bias"
    return reading.has(name) and bool(reading.file.tensor(name, rows.start, rows.stop).any())


def _bind_attention(
    reading: Reading, layer: str, kind: str, heads: int, projections: _Projections, k_bias: bool
) -> AttentionSpec:
    scope = f"{layer}/{kind}"
    ours = _ours(layer, "self_attn" if kind == "self_attention" else "cross_attn")
    biases = {
        name: reading.bind_linear(f"{ours}.{name}", *getattr(projections, name)) for name in "qkvo"
    }
    if not k_bias:
        reading.weights.pop(f"{ours}.k.bias", None)
    outputs, _ = reading.shape(f"{projections.o.linear}/weight", 2)
    width = reading.count(f"{scope}/head_dim", max(outputs // heads, 1))
    qk_norm = None
    if reading.has(f"{scope}/q_norm/gamma"):
        norms = [
            reading.bind_norm(f"{ours}.{name}", f"{scope}/{name}") for name in ("q_norm", "k_norm")
        ]
        qk_norm = _alike(reading, norms, "query and key norms")
    return AttentionSpec(
        heads=heads,
        head_width=projections.head_width,
        kv_heads=projections.kv_heads,
        scale=reading.number(f"{scope}/queries_scale", width**-0.5),
        q_bias=biases["q"],
        k_bias=k_bias,
        v_bias=biases["v"],
        o_bias=biases["o"],
        qk_norm=qk_norm,
        rotary=kind == "self_attention" and reading.has(f"{scope}/rotary_dim"),
    )


def _read_feed_forward(
    reading: Reading, layer: str, code: int, *, wide_down: bool
) -> FeedForwardSpec:
    if not 0 <= code < len(_ACTIVATIONS):
        raise CorruptCheckpointError(
            f"{reading.path}: the activation must be 0 to {len(_ACTIVATIONS) - 1}, but is {code}."
        )
    gated = reading.has(f"{layer}/ffn/linear_0_noact/weight")
    parts = {"gate": "linear_0", "up": "linear_0_noact", "down": "linear_1"}
    if not gated:
        parts = {"up": "linear_0", "down": "linear_1"}
    biases = [
        reading.bind_linear(_ours(layer, f"ffn.{ours}"), f"{layer}/ffn/{theirs}")
        for ours, theirs in parts.items()
    ]
    return FeedForwardSpec(
        width=reading.shape(f"{layer}/ffn/linear_0/weight", 2)[0],
        activation=_ACTIVATIONS[code],
        gated=gated,
        bias=_alike(reading, biases, "biases in a feed-forward sub-layer"),
        wide_down=wide_down,
    )


def _read_position(reading: Reading, stack: str, layers: Sequence[str]) -> PositionSpec:
    first = f"{layers[0]}/self_attention"
    if reading.has(f"{first}/relative_attention_bias"):
        return _read_relative(reading, stack, layers)
    if reading.has(f"{first}/rotary_dim"):
        heads = reading.count((f"{stack}/num_heads", "num_heads"), 8)
        rotations = [_read_rotary(reading, f"{layer}/self_attention", heads) for layer in layers]
        return _alike(reading, rotations, "rotations")
    table = f"{stack}/position_encodings/encodings"
    if not reading.has(table):
        # CTranslate2 makes a table whose first row is position 1, with D/2 - 1 steps.
        return PositionSpec(kind="sinusoidal", offset=1, half_minus_one=True, stored=False)
    reading.bind(f"{stack}.positions.weight", table)
    return PositionSpec(kind="learned", limit=reading.shape(table, 2)[0])


def _read_relative(reading: Reading, stack: str, layers: Sequence[str]) -> PositionSpec:
    names = [f"{layer}/self_attention/relative_attention_bias" for layer in layers]
    reading.bind(f"{stack}.relative_bias.weight", names[0])
    first = reading.file.tensor(names[0])
    for name in names[1:]:
        # T5 shares one table; converters repeat it in each layer or leave it out.
        if not reading.has(name):
            continue
        reading.asked.add(name)
        table = reading.file.tensor(name)
        if table.shape != first.shape or (table != first).any():
            raise UnsupportedModelError(
                f"{reading.path}: {name!r} differs from the first layer's; xattn runs one "
                "relative-position table per stack (T5), not one per layer (UMT5)."
            )
    return PositionSpec(
        kind="relative",
        buckets=reading.shape(names[0], 2)[0],
        max_distance=reading.count(
            f"{layers[0]}/self_attention/relative_attention_max_distance", 128
        ),
    )


def _read_rotary(reading: Reading, scope: str, heads: int) -> PositionSpec:
    head_width = _locate(reading, scope, heads).head_width
    rotated = reading.number(f"{scope}/rotary_dim", 0)
    interleaved = reading.number(f"{scope}/rotary_interleave", 1)
    scaling = reading.number(f"{scope}/rotary_scaling_type", _NO_SCALING)
    known = scaling in (_NO_SCALING, _LINEAR_SCALING, _LLAMA3_SCALING)
    if rotated not in (0, head_width) or interleaved or not known:
        raise UnsupportedModelError(
            f"{reading.path}: xattn rotates whole heads in halves, with linear or Llama 3 scaling; "
            f"'{scope}' has rotary_dim {rotated:g}, rotary_interleave {interleaved:g} and "
            f"rotary_scaling_type {scaling:g}."
        )
    return PositionSpec(
        kind="rotary",
        theta=reading.number(f"{scope}/rotary_base", 10000.0),
        scaling=_read_rotary_scaling(reading, scope, scaling),
    )


def _read_rotary_scaling(reading: Reading, scope: str, kind: float) -> RotaryScaling | None:
    # Converters of Llama 3 leave the factor out; CTranslate2 then scales by 1: not at all.
    factor = reading.number(f"{scope}/rotary_scaling_factor", 1.0)
    low = reading.number(f"{scope}/rotary_low_freq_factor", 1.0)
    high = reading.number(f"{scope}/rotary_high_freq_factor", 4.0)
    if factor == 1.0 or kind == _NO_SCALING:
        return None
    if kind == _LINEAR_SCALING:
        return RotaryScaling(kind="linear", factor=factor)
    return RotaryScaling(
        kind="llama3",
        factor=factor,
        low_frequency_factor=low,
        high_frequency_factor=high,
        original_positions=reading.count(f"{scope}/original_max_position_embeddings", 8192),
    )
