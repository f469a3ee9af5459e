"""Bytes that one step of decoding must read, counted from the shapes."""

from typing import Any

from xattn.bench.tasks import Precision, Task
from xattn.spec import DecoderSpec, dtype_bytes

WEIGHT_BYTES: dict[Precision, int] = {"fp32": 4, "int8": 1}


def weights_read(spec: DecoderSpec) -> int:
    """Numbers of the weight matrices that a step multiplies with; norms and biases are nothing.

    Not the keys' and values' projections of cross-attention, which are applied to a memory once,
    and of the embedding table what the vocabulary head reads: all of it.
    """
    own = spec.self_attention
    inner = own.heads * own.head_width
    per_layer = 2 * spec.width * (inner + own.kv_heads * own.head_width)
    per_layer += (3 if spec.feed_forward.gated else 2) * spec.width * spec.feed_forward.width
    total = spec.layers * per_layer + spec.vocab_size * spec.width
    if spec.cross_attention is not None:
        cross = spec.cross_attention
        total += spec.placement.count * 2 * spec.width * cross.heads * cross.head_width
    return total


def scales_read(spec: DecoderSpec) -> int:
    """Rows of those matrices: int8 weights have one float32 scale for each."""
    own = spec.self_attention
    per_layer = own.heads * own.head_width + 2 * own.kv_heads * own.head_width + spec.width
    per_layer += (2 if spec.feed_forward.gated else 1) * spec.feed_forward.width + spec.width
    total = spec.layers * per_layer + spec.vocab_size
    if spec.cross_attention is not None:
        cross = spec.cross_attention
        total += spec.placement.count * (cross.heads * cross.head_width + spec.width)
    return total


def bytes_per_step(model: Any, positions: int, task: Task, precision: Precision) -> dict[str, int]:
    """Weights, the memory, and the tokens so far (half of all, on average), in bytes."""
    spec: DecoderSpec = model.spec.decoder
    weights = weights_read(spec) * WEIGHT_BYTES[precision]
    if precision == "int8":
        weights += scales_read(spec) * dtype_bytes("float32")
    own = spec.self_cache_bytes(task.new_tokens, rows=task.beams) // 2
    cross = spec.cross_bytes(positions)
    return {"weight_bytes": weights, "cross_bytes": cross, "self_bytes": own}
