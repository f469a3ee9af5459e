"""What reading memories costs a decoder in each form: bytes, products and seconds, by arithmetic.

A materialised memory is projected once, and then read: keys and values of every layer. An absorbed
one is not projected, but every layer reads the states and multiplies ``D / K`` times as much. Which
is sooner done depends on the length, on who shares the memory, on the steps to come, and on the
machine, whose :class:`Rates` are given.

A multiply-add counts as two operations. Axes: S positions, H heads, G key/value heads, K head
width, D width of a memory, L layers that cross-attend.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from xattn.errors import require
from xattn.spec import DecoderSpec, Form, dtype_bytes, is_absorbed

NEAR_BYTES, FAR_BYTES = 8 * 2**20, 128 * 2**20
"""What is read over and over comes from a cache up to the one, and from memory from the other."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast a machine is at what the forms differ in. All are above 0."""

    near_bytes_per_second: float
    """Reading :data:`NEAR_BYTES` of keys and values, again and again."""
    far_bytes_per_second: float
    """Reading :data:`FAR_BYTES` of them."""
    step_flops_per_second: float
    """Products of the few queries of a step with a memory's positions."""
    projection_flops_per_second: float
    """Products of all positions of a memory with a matrix."""

    def bytes_per_second(self, size_bytes: float) -> float:
        """Reading something of this size again and again: between sizes, even on a log scale."""
        at = log(max(size_bytes, 1.0) / NEAR_BYTES) / log(FAR_BYTES / NEAR_BYTES)
        share = min(max(at, 0.0), 1.0)
        return self.near_bytes_per_second ** (1 - share) * self.far_bytes_per_second**share


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One memory, and who reads it."""

    positions: int
    rows: int
    """Tokens that read it in every step: one of each beam and sample of all who share it."""
    prompt_tokens: int = 0
    """Tokens that read it in the first pass: the prompts of those requests."""

    def __post_init__(self) -> None:
        for name, least in (("positions", 1), ("rows", 1), ("prompt_tokens", 0)):
            require(getattr(self, name) >= least, name, f"at least {least}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of cross-attention alone, in one form."""

    form: Form
    held_bytes: int
    """What the decoder holds of the memories; what it holds of absorbed ones it had already."""
    step_bytes: int
    """What a step reads: absorbed states once for each layer, and the weights that absorb them."""
    step_flops: int
    projection_flops: int
    step_seconds: float
    projection_seconds: float
    prompt_seconds: float
    """The first pass, over the prompts."""
    steps: int

    @property
    def seconds(self) -> float:
        """All of it: projecting, the prompts, and a step for each token after the first."""
        return self.projection_seconds + self.prompt_seconds + (self.steps - 1) * self.step_seconds


def cost(
    decoder: DecoderSpec,
    readings: Sequence[Reading],
    form: Form,
    rates: Rates,
    *,
    steps: int,
    dtype: str = "float32",
) -> Cost:
    """What it costs to decode ``steps`` tokens in each row; :class:`UsageError` where illegal."""
    require(steps >= 1, "steps", "at least 1", steps)
    if is_absorbed(form):
        decoder.require_absorbable()
    held = sum(decoder.cross_bytes(r.positions, form=form, dtype=dtype) for r in readings)
    read, speed = held, rates.bytes_per_second(held)
    seconds = held / speed
    if is_absorbed(form):
        layers, weights = decoder.placement.count, absorption_bytes(decoder, dtype=dtype)
        read = layers * held + weights
        seconds = layers * held / speed + weights / rates.bytes_per_second(weights)
    # Few queries wait for what they read, and then multiply: the two add up, nearly.
    step_flops = sum(flops(decoder, r.positions, r.rows, form) for r in readings)
    prompt_flops = sum(flops(decoder, r.positions, r.prompt_tokens, form) for r in readings)
    projection = sum(projection_flops(decoder, r.positions, form) for r in readings)
    return Cost(
        form=form,
        held_bytes=held,
        step_bytes=read,
        step_flops=step_flops,
        projection_flops=projection,
        step_seconds=seconds + step_flops / rates.step_flops_per_second,
        projection_seconds=projection / rates.projection_flops_per_second,
        prompt_seconds=seconds + prompt_flops / rates.step_flops_per_second,
        steps=steps,
    )


def flops(decoder: DecoderSpec, positions: int, queries: int, form: Form) -> int:
    """Operations of a pass in which ``queries`` tokens read a memory, in all layers."""
    attention = decoder.cross_attention
    if attention is None:
        return 0
    per_token, width = 0, attention.head_width
    if is_absorbed(form):
        width = decoder.memory_width
        per_token = 4 * attention.heads * attention.head_width * width  # q Wk, and what is read Wv
    per_token += 4 * attention.heads * width * positions  # scores, and values weighed by them
    return decoder.placement.count * queries * per_token


def projection_flops(decoder: DecoderSpec, positions: int, form: Form) -> int:
    """Operations that make keys and values of a memory; none where it is absorbed."""
    attention = decoder.cross_attention
    if attention is None or is_absorbed(form):
        return 0
    per_position = 4 * decoder.memory_width * attention.kv_heads * attention.head_width
    return decoder.placement.projections * positions * per_position


def absorption_bytes(decoder: DecoderSpec, *, dtype: str = "float32") -> int:
    """The projections of keys and values of all layers, which a step applies to its queries."""
    attention = decoder.cross_attention
    if attention is None:
        return 0
    per_layer = 2 * decoder.memory_width * attention.kv_heads * attention.head_width
    return decoder.placement.projections * per_layer * dtype_bytes(dtype)
