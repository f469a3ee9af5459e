"""What a model is made of, and what running it multiplies: by arithmetic on its spec.

Every weight is a number of some :class:`Matrix`, or one of the few others (norms, biases, tables).
From the matrices follow parameters, bytes in any number format, operations, and what a step reads.

A multiply-add counts as two operations, as in torch's own counter. Axes: T tokens, S positions, H
heads, G key/value heads, K head width, D model width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from xattn.costs import flops
from xattn.errors import require
from xattn.spec import (
    AttentionSpec,
    DecoderSpec,
    EncoderSpec,
    FeedForwardSpec,
    Form,
    ModelSpec,
    NormSpec,
    ProjectorSpec,
    ResamplerSpec,
    StackSpec,
    dtype_bytes,
)

Role = Literal["stem", "self", "cross", "memory", "feed-forward", "down", "table", "head", "output"]
"""``cross`` are queries and outputs of cross-attention, ``memory`` its keys and values; ``down`` is
the last matrix of a feed-forward; ``table`` an embedding, which is looked up; ``head`` the
vocabulary's product; ``output`` whatever comes after an encoder's layers."""

PANEL, QUAD, GROUP = 16, 4, 32
"""Outputs of narrow matrices, inputs of int8 ones, and of int4 ones: multiples of these."""
INT32_BYTES = FLOAT_BYTES = 4
GROUP_BYTES = PANEL * (GROUP // 2 + 2 * 2)
"""Of a panel's group of int4: halves of bytes, and two numbers in float16 for each output."""

CodecName = Literal["float32", "bfloat16", "float16", "int8", "int4"]
CODECS: tuple[CodecName, ...] = ("float32", "bfloat16", "float16", "int8", "int4")
"""How states are written down where they are kept."""
INT4_GROUP = 32
"""Numbers that share a scale and a minimum in int4."""
KV_BLOCK = 64
"""Numbers of a memory of keys and values that share a scale in int8: layers and heads, keys and
values differ far too much in size for one scale per position."""
SPAN_BYTES = 16
"""Where in the source a position comes from: two float64."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Some equal matrices of a stack."""

    role: Role
    outputs: int
    inputs: int
    times: int = 1
    """How many there are."""
    active: float | None = None
    """How many of them each position goes through; None: all."""
    stored: bool = True
    """False where another part of the model has it already."""

    @property
    def numbers(self) -> int:
        """Weights, where they are this one's."""
        return self.times * self.outputs * self.inputs if self.stored else 0

    @property
    def flops(self) -> int:
        """Operations for one position."""
        used = self.times if self.active is None else self.active
        return round(2 * used * self.outputs * self.inputs)


def encoder_matrices(spec: EncoderSpec) -> list[Matrix]:
    """All matrices of an encoder, its stem's convolutions as products for each position."""
    return [*_stem(spec), *_layers(spec, spec.layers), *_after(spec)]


def decoder_matrices(spec: DecoderSpec) -> list[Matrix]:
    """All matrices of a decoder. A head that is the embedding table is not stored again."""
    found = _layers(spec, spec.self_layers)
    cross, times = spec.cross_attention, spec.placement.count
    if cross is not None:
        own = spec.placement.kind != "merged"
        inner, kv_inner = cross.heads * cross.head_width, cross.kv_heads * cross.head_width
        memory = Matrix(
            role="memory",
            outputs=kv_inner,
            inputs=spec.memory_width,
            times=2 * spec.placement.projections,
            stored=own,
        )
        found.append(memory)
        if own:
            found += [
                Matrix(role="cross", outputs=inner, inputs=spec.width, times=times),
                Matrix(role="cross", outputs=spec.width, inputs=inner, times=times),
            ]
        if spec.placement.own_feed_forward:
            found += _feed_forward(spec.feed_forward, spec.width, times)
    shape = {"outputs": spec.vocab_size, "inputs": spec.width}
    return [
        *found,
        Matrix(
            role="table",
            outputs=spec.vocab_size + spec.extra_rows,
            inputs=spec.width,
            active=0,
        ),
        Matrix(role="head", stored=not spec.head_tied, **shape),
    ]


def parameters(spec: ModelSpec) -> int:
    """Number of weights, those that are shared once."""
    return sum(matrix.numbers for matrix in matrices(spec)) + _others(spec)


def weight_bytes(spec: ModelSpec, *, dtype: str = "float32", quantize: str | None = None) -> int:
    """Bytes of all weights as :func:`xattn.load` keeps them, tables of positions not among them.

    In float16, matrices that would overflow there are float32. With ``quantize="int8"`` products of
    layers and vocabulary are int8 with a scale for each output, with ``int4`` those of layers are
    int4 with two numbers for each 32 weights; all else is float32.
    """
    require(quantize in (None, "int8", "int4"), "quantize", "None, 'int8' or 'int4'", quantize)
    if quantize is None:
        size = dtype_bytes(dtype)
        total = parameters(spec) * size
        if dtype == "float16":
            total += _kept_wide(spec) * (FLOAT_BYTES - size)
        return total
    narrow = [matrix for matrix in matrices(spec) if matrix.role not in ("stem", "output")]
    wide = parameters(spec) - sum(matrix.numbers for matrix in narrow)
    held = sum(_narrow_bytes(one, quantize) for one in narrow if one.stored)
    return held + wide * FLOAT_BYTES


def read_bytes(
    spec: DecoderSpec, *, dtype: str = "float32", quantize: str | None = None, rows: int = 1
) -> int:
    """Bytes of weights that one step multiplies with.

    Not those of keys and values of a memory, which are applied once to it, nor of norms and biases,
    which are nothing beside them; of experts as many as ``rows`` tokens choose that are routed at
    random.
    """
    total = 0.0
    for matrix in decoder_matrices(spec):
        if matrix.role in ("memory", "table"):
            continue
        share = 1.0
        if matrix.active is not None and matrix.times:
            share = 1.0 - (1.0 - matrix.active / matrix.times) ** rows
        total += share * _multiplied_bytes(matrix, dtype, quantize)
    return round(total)


def pass_bytes(spec: ModelSpec, *, dtype: str = "float32", quantize: str | None = None) -> int:
    """Bytes of weights that encoding and a first pass multiply with: of all stacks, once.

    That is every matrix but tables that are only looked up; of many tokens together, every expert.
    """
    used = [one for one in matrices(spec) if one.role != "table"]
    return sum(_multiplied_bytes(one, dtype, quantize) for one in used)


def kept_bytes(spec: DecoderSpec, positions: int, codec: CodecName) -> int:
    """What a memory takes where it is kept: states, their scales, and spans."""
    require(codec in CODECS, "codec", f"one of {', '.join(CODECS)}", codec)
    goes_on = spec.cross_attention is None
    width = spec.kv_width if goes_on else spec.memory_width
    if codec == "int8":
        block = KV_BLOCK if goes_on else width
        per_position = _whole(width, block) + -(-width // block) * FLOAT_BYTES
    elif codec == "int4":
        groups = -(-width // INT4_GROUP)
        per_position = groups * (INT4_GROUP // 2 + 2 * dtype_bytes("bfloat16"))
    else:
        per_position = width * dtype_bytes(codec)
    return positions * (per_position + SPAN_BYTES)


# Operations


def encoder_flops(spec: EncoderSpec, positions: int) -> int:
    """Operations that encode one source of so many positions of the encoder."""
    S, own = positions, spec.self_attention
    attention = 4 * S * S * own.heads * own.head_width
    total = spec.layers * attention + S * sum(m.flops for m in encoder_matrices(spec))
    if spec.resampler is not None:
        total += _resampler_flops(spec.resampler, spec.width, positions)
    return total


def decoder_flops(
    spec: DecoderSpec,
    tokens: int,
    *,
    seen: int = 0,
    memories: int = 0,
    form: Form = "materialized",
    logits: int | None = None,
) -> int:
    """Operations of one pass over ``tokens`` of one row.

    ``seen`` tokens came before, the row reads ``memories`` positions, and ``logits`` of its tokens
    (None: all) are projected to the vocabulary. Projecting memories is not in it:
    :func:`~xattn.costs.projection_flops`.
    """
    own, read = spec.self_attention, spec.kept_tokens(seen) + spec.self_layers * tokens
    attention = 4 * own.heads * own.head_width * read
    reading = flops(spec, memories, tokens, form) if memories else 0
    wanted = tokens if logits is None else logits
    return tokens * (layer_flops(spec) + attention) + reading + wanted * head_flops(spec)


def layer_flops(spec: DecoderSpec) -> int:
    """Operations of one token with the matrices of all layers."""
    apart = ("memory", "table", "head")
    return sum(matrix.flops for matrix in decoder_matrices(spec) if matrix.role not in apart)


def head_flops(spec: DecoderSpec) -> int:
    """Operations that make the logits of one token."""
    return 2 * spec.vocab_size * spec.width


# What there is


def matrices(spec: ModelSpec) -> Iterator[Matrix]:
    """Of all stacks; tables that encoder and decoder share are the decoder's."""
    yield from decoder_matrices(spec.decoder)
    for encoder in _encoders(spec):
        shared = encoder.vocab_size == spec.decoder.vocab_size and spec.shared_embeddings
        for matrix in encoder_matrices(encoder):
            if matrix.role != "table" or not shared:
                yield matrix
        if encoder.resampler is not None:
            yield from _resampler_matrices(encoder.resampler, encoder.width)
    for projector in spec.projectors:
        yield from _projector_matrices(projector)


def _encoders(spec: ModelSpec) -> Iterator[EncoderSpec]:
    encoder = spec.encoder
    while encoder is not None:
        yield encoder
        encoder = encoder.pictures


def _layers(spec: StackSpec, attending: int) -> list[Matrix]:
    """Self-attention of as many layers as have it, and the feed-forwards of all."""
    own = spec.self_attention
    inner, kv_inner = own.heads * own.head_width, own.kv_heads * own.head_width
    found = [
        Matrix(role="self", outputs=inner, inputs=spec.width, times=attending),
        Matrix(role="self", outputs=kv_inner, inputs=spec.width, times=2 * attending),
        Matrix(role="self", outputs=spec.width, inputs=inner, times=attending),
    ]
    experts = spec.experts
    if experts is None:
        return [*found, *_feed_forward(spec.feed_forward, spec.width, spec.layers)]
    sparse = spec.layers // experts.every
    router = Matrix(role="feed-forward", outputs=experts.count, inputs=spec.width, times=sparse)
    return [
        *found,
        *_feed_forward(spec.feed_forward, spec.width, spec.layers - sparse),
        *_feed_forward(
            spec.feed_forward,
            spec.width,
            sparse * experts.count,
            experts.active / experts.count,
        ),
        router,
    ]


def _feed_forward(
    spec: FeedForwardSpec, width: int, times: int, share: float | None = None
) -> list[Matrix]:
    inward = (2 if spec.gated else 1) * times
    up_active = None if share is None else share * inward
    down_active = None if share is None else share * times
    return [
        Matrix(
            role="feed-forward", outputs=spec.width, inputs=width, times=inward, active=up_active
        ),
        Matrix(role="down", outputs=width, inputs=spec.width, times=times, active=down_active),
    ]


def _stem(spec: EncoderSpec) -> Iterator[Matrix]:
    """What makes the first states, as matrices applied so often for each position."""
    if spec.vocab_size is not None:
        yield Matrix(role="table", outputs=spec.vocab_size, inputs=spec.width, active=0)
    if spec.audio is not None:
        # Three frames at a time; the first at every frame, of which a position has two.
        bins, width = spec.audio.mel_bins, spec.width
        yield Matrix(role="stem", outputs=width, inputs=3 * bins, active=2)
        yield Matrix(role="stem", outputs=width, inputs=3 * width)
    if spec.wave is not None:
        steps = 1
        for one in reversed(spec.wave.convolutions):
            inputs = one.kernel * one.inputs
            yield Matrix(role="stem", outputs=one.outputs, inputs=inputs, active=steps)
            steps *= one.stride
    if spec.image is not None:
        yield Matrix(role="stem", outputs=spec.width, inputs=3 * spec.image.patch**2)


def _after(spec: EncoderSpec) -> Iterator[Matrix]:
    if spec.output is not None:
        inputs, outputs = spec.output
        yield Matrix(role="output", outputs=outputs, inputs=inputs)


def _projector_matrices(spec: ProjectorSpec) -> Iterator[Matrix]:
    yield Matrix(role="output", outputs=spec.outputs, inputs=spec.inputs)
    if spec.kind == "mlp":
        yield Matrix(role="output", outputs=spec.outputs, inputs=spec.outputs)
    if spec.resampler is not None:
        yield from _resampler_matrices(spec.resampler, spec.outputs)


def projector_flops(spec: ProjectorSpec, positions: int) -> int:
    """Operations that make the states of so many positions into what is read."""
    total = 2 * positions * spec.inputs * spec.outputs
    if spec.kind == "mlp":
        total += 2 * positions * spec.outputs**2
    if spec.resampler is not None:
        total += _resampler_flops(spec.resampler, spec.outputs, positions)
    return total


def _projector_others(spec: ProjectorSpec) -> int:
    total = spec.inputs + (2 if spec.kind == "mlp" else 1) * spec.outputs
    if spec.resampler is not None:  # three norms to a layer and one after the last, and the latents
        total += (3 * spec.resampler.layers + 1 + spec.resampler.latents) * spec.outputs
    return total


def _resampler_matrices(spec: ResamplerSpec, width: int) -> Iterator[Matrix]:
    inner, times = spec.heads * spec.head_width, spec.layers
    yield Matrix(role="output", outputs=inner, inputs=spec.width, times=times)
    yield Matrix(role="output", outputs=inner, inputs=width, times=2 * times)
    yield Matrix(role="output", outputs=spec.width, inputs=inner, times=times)
    yield Matrix(role="output", outputs=spec.feed_forward, inputs=spec.width, times=2 * times)


def _resampler_flops(spec: ResamplerSpec, width: int, positions: int) -> int:
    """Latents read the positions and themselves."""
    inner, read = spec.heads * spec.head_width, positions + spec.latents
    per_latent = 2 * (2 * inner + 2 * spec.feed_forward) * spec.width + 4 * inner * read
    return spec.layers * (spec.latents * per_latent + read * 4 * inner * width)


def is_int4(matrix: Matrix, quantize: str | None) -> bool:
    """Whether it has four bits: vocabularies keep eight."""
    return quantize == "int4" and matrix.role not in ("table", "head")


def _narrow_bytes(matrix: Matrix, quantize: str | None) -> int:
    """Filled up to whole panels, int8 with a scale and a sum for each output."""
    outputs = _whole(matrix.outputs, PANEL)
    if is_int4(matrix, quantize):
        groups = outputs // PANEL * (_whole(matrix.inputs, GROUP) // GROUP)
        return matrix.times * groups * GROUP_BYTES
    scales = matrix.outputs * FLOAT_BYTES + outputs * INT32_BYTES
    return matrix.times * (outputs * _whole(matrix.inputs, QUAD) + scales)


def _multiplied_bytes(matrix: Matrix, dtype: str, quantize: str | None) -> int:
    """What a product reads of it."""
    numbers = matrix.times * matrix.outputs * matrix.inputs
    if quantize is None:
        return numbers * dtype_bytes(dtype)
    if matrix.role in ("stem", "output"):
        return numbers * FLOAT_BYTES
    if is_int4(matrix, quantize):
        return numbers * GROUP_BYTES // (PANEL * GROUP)
    return numbers + matrix.times * matrix.outputs * FLOAT_BYTES


def _whole(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _kept_wide(spec: ModelSpec) -> int:
    """Numbers of the matrices that stay float32 in a model that is float16."""
    stacks = [spec.decoder] if spec.encoder is None else [spec.decoder, spec.encoder]
    return sum(
        stack.layers * stack.feed_forward.width * stack.width
        for stack in stacks
        if stack.feed_forward.wide_down
    )


# What is no matrix


def _others(spec: ModelSpec) -> int:
    """Norms, biases, tables of positions."""
    decoder = spec.decoder
    total = _stack_others(decoder, decoder.self_layers) + decoder.head_bias * decoder.vocab_size
    cross, placement = decoder.cross_attention, decoder.placement
    total += placement.count * placement.gates
    if cross is not None and placement.kind != "merged":
        # Layers that cross-attend instead have the norm that they would have for the other.
        made = _projection_others(cross)
        own = _attention_others(cross, decoder.width) - made + _norms(decoder)
        if placement.own_feed_forward:
            own += _feed_forward_biases(decoder.feed_forward, decoder.width) + _norms(decoder)
        total += placement.count * own + placement.projections * made
    total += sum(map(_projector_others, spec.projectors))
    return total + sum(map(_encoder_others, _encoders(spec)))


def _encoder_others(spec: EncoderSpec) -> int:
    total = _stack_others(spec, spec.layers)
    if spec.audio is not None:
        total += 2 * spec.width
    if spec.wave is not None:
        total += sum(one.bias * one.outputs for one in spec.wave.convolutions)
        total += 2 * spec.width * spec.wave.group_norm
    if spec.image is not None:
        total += spec.image.tables + spec.image.leading * spec.width
    if spec.output is not None:
        total += spec.output[1] * spec.output_bias
    return total


def _stack_others(spec: StackSpec, attending: int) -> int:
    norms, position = _norms(spec), spec.position
    total = attending * (_attention_others(spec.self_attention, spec.width) + norms)
    total += spec.layers * (_feed_forward_biases(spec.feed_forward, spec.width) + norms)
    if spec.experts is not None:
        more = spec.layers // spec.experts.every * (spec.experts.count - 1)
        total += more * _feed_forward_biases(spec.feed_forward, spec.width)
    total += (spec.embedding_norm + spec.final_norm) * _norm(spec.norm, spec.width)
    if position.kind == "learned" and position.limit is not None:
        total += (position.limit + position.offset) * spec.width
    if position.kind == "relative":
        total += position.buckets * spec.self_attention.heads
    return total


def _norms(spec: StackSpec) -> int:
    """Numbers in the norms of one sub-layer."""
    return (2 if spec.norm_place == "both" else 1) * _norm(spec.norm, spec.width)


def _norm(norm: NormSpec, width: int) -> int:
    return width * (2 if norm.kind == "layer" else 1)


def _attention_others(spec: AttentionSpec, width: int) -> int:
    biases = spec.q_bias * spec.heads * spec.head_width + spec.o_bias * width
    return biases + _projection_others(spec) + _head_norm(spec)


def _projection_others(spec: AttentionSpec) -> int:
    """Of what makes keys and values."""
    return (spec.k_bias + spec.v_bias) * spec.kv_heads * spec.head_width + _head_norm(spec)


def _head_norm(spec: AttentionSpec) -> int:
    return 0 if spec.qk_norm is None else _norm(spec.qk_norm, spec.head_width)


def _feed_forward_biases(spec: FeedForwardSpec, width: int) -> int:
    return spec.bias * ((2 if spec.gated else 1) * spec.width + width)
