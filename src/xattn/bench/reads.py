"""Bytes that one step of decoding must read, counted from the shapes."""

from typing import Any

from xattn.bench.tasks import Precision, Task
from xattn.counts import read_bytes
from xattn.spec import DecoderSpec


def bytes_per_step(model: Any, positions: int, task: Task, precision: Precision) -> dict[str, int]:
    """Weights, the memory, and the tokens so far (half of all, on average), in bytes."""
    spec: DecoderSpec = model.spec.decoder
    return {
        "weight_bytes": read_bytes(spec, quantize="int8" if precision == "int8" else None),
        "cross_bytes": spec.cross_bytes(positions),
        "self_bytes": spec.self_cache_bytes(task.new_tokens, rows=task.beams) // 2,
    }
