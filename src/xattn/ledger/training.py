"""What adapting a model costs: memory, operations, hours, dollars; by formulas that are shown.

- Operations are those of the forward pass, counted exactly, and as many again for the gradient of
  every activation and of every trained weight: 6 N D for a model that is trained whole (Kaplan et
  al. 2020, arXiv 2001.08361), 4 N D where its weights are frozen. Checkpointing repeats the forward
  pass (Chen et al. 2016, arXiv 1604.06174).
- Weights, gradients and AdamW's state in mixed precision take 2 + 2 + 12 bytes a trained weight
  (Rajbhandari et al. 2020, arXiv 1910.02054), and 2 a frozen one.
- Activations are what the backward pass reads again, counted sub-layer by sub-layer as in
  Korthikanti et al. 2022 (arXiv 2205.05198), without dropout and with attention that keeps no
  scores (Dao et al. 2022); with checkpointing, each layer's input and one layer whole.

Axes: B examples at a time, S source positions, T target tokens, D model width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from xattn.costs import projection_flops
from xattn.counts import (
    decoder_flops,
    decoder_matrices,
    encoder_flops,
    encoder_matrices,
    parameters,
)
from xattn.errors import UsageError, is_number, is_whole, require
from xattn.ledger.hardware import Machine
from xattn.spec import AttentionSpec, DecoderSpec, ModelSpec, Placement, StackSpec

Method = Literal["full", "lora", "graft"]
METHODS: tuple[Method, ...] = get_args(Method)
UTILISATION = 0.4
"""Share of the data sheet's operations that training reaches; 0.3 to 0.5 are usual."""
RANK = 16
WEIGHT_BYTES, GRADIENT_BYTES, OPTIMISER_BYTES = 2, 2, 12
"""Of bfloat16 weights; of AdamW: a float32 weight and two moments."""
MOST_TOKENS, MOST_LENGTH = 10**15, 10**7


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is trained on."""

    tokens: int
    """Sources and targets, all epochs together."""
    source_length: int = 512
    target_length: int = 128
    batch: int = 8
    """Examples on each machine at a time."""

    def __post_init__(self) -> None:
        lengths = {"source_length": MOST_LENGTH, "target_length": MOST_LENGTH, "batch": MOST_LENGTH}
        for name, most in ({"tokens": MOST_TOKENS} | lengths).items():
            value = getattr(self, name)
            fits = is_whole(value, 1) and value <= most
            require(fits, name, f"a whole number from 1 to {most}", value)

    @property
    def examples(self) -> float:
        """Pairs of a source and a target."""
        return self.tokens / (self.source_length + self.target_length)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one method takes."""

    method: Method
    trained: int
    """Weights that change."""
    weights: int
    gradients: int
    optimiser: int
    """Bytes on each machine, nothing sharded."""
    activations: int
    checkpointed: int
    """Activations with checkpointing."""
    flops: float
    hours: float
    dollars: float
    checkpointing_hours: float
    """With the forward pass repeated."""

    @property
    def total_bytes(self) -> int:
        """On each machine, without checkpointing."""
        return self.weights + self.gradients + self.optimiser + self.activations

    @property
    def checkpointed_bytes(self) -> int:
        """On each machine, with checkpointing."""
        return self.total_bytes - self.activations + self.checkpointed


def train(
    spec: ModelSpec,
    method: str,
    data: Data,
    machine: Machine,
    *,
    rank: int = RANK,
    every: int = 4,
    utilisation: float = UTILISATION,
) -> Training:
    """What training ``spec`` by ``method`` takes on ``machine``.

    ``lora`` trains matrices of ``rank`` beside all of attention's (Hu et al. 2021); ``graft`` gives
    a decoder-only model cross-attention in every ``every``-th layer, and trains that alone.
    """
    chosen = next((known for known in METHODS if known == method), None)
    require(chosen is not None, "method", f"one of {', '.join(METHODS)}", method)
    assert chosen is not None
    require(is_whole(rank, 1), "rank", "a whole number, at least 1", rank)
    share = is_number(utilisation) and 0 < utilisation <= 1
    require(share, "utilisation", "above 0 and at most 1", utilisation)
    trained_spec, trained = spec, parameters(spec)
    if method == "graft":
        trained_spec = grafted(spec, every)
        trained = parameters(trained_spec) - parameters(spec)
    if method == "lora":
        trained = lora_parameters(spec, rank)
    held = parameters(trained_spec) + (trained if method == "lora" else 0)
    forward = forward_flops(trained_spec, data)
    # A gradient for each activation; and one for each weight that changes.
    share_trained = min(1.0, trained / parameters(trained_spec))
    each = forward * (2 + share_trained)
    per_second = machine.rate("bfloat16" if "bfloat16" in machine.flops_per_second else "float16")
    hours = each * data.examples / (per_second * utilisation) / 3600
    activations = activation_bytes(trained_spec, data, checkpointing=False)
    return Training(
        method=chosen,
        trained=trained,
        weights=held * WEIGHT_BYTES,
        gradients=trained * GRADIENT_BYTES,
        optimiser=trained * OPTIMISER_BYTES,
        activations=activations,
        checkpointed=activation_bytes(trained_spec, data, checkpointing=True),
        flops=each * data.examples,
        hours=hours,
        dollars=hours * machine.count * machine.dollars_per_hour,
        checkpointing_hours=hours * (each + forward) / each,
    )


def grafted(spec: ModelSpec, every: int) -> ModelSpec:
    """A decoder-only model with gated cross-attention in every ``every``-th layer, over its own
    width; :class:`UsageError` for a model that has cross-attention."""
    decoder = spec.decoder
    if decoder.cross_attention is not None:
        raise UsageError(
            f"a graft gives cross-attention to a decoder-only model, but {spec.family} has it."
        )
    require(
        is_whole(every, 1) and every <= decoder.layers, "every", f"1 to {decoder.layers}", every
    )
    layers = tuple(n % every == every - 1 for n in range(decoder.layers))
    cross = replace(decoder.self_attention, rotary=False)
    placement = Placement(layers=layers, kind="gated")
    graft = replace(decoder, placement=placement, cross_attention=cross, memory_width=decoder.width)
    return replace(spec, decoder=graft)


def lora_parameters(spec: ModelSpec, rank: int) -> int:
    """Numbers in the two thin matrices beside each of attention's, in both stacks."""
    matrices = [*decoder_matrices(spec.decoder)]
    if spec.encoder is not None:
        matrices += encoder_matrices(spec.encoder)
    return sum(
        matrix.times * rank * (matrix.outputs + matrix.inputs)
        for matrix in matrices
        if matrix.role in ("self", "cross", "memory") and matrix.stored
    )


def forward_flops(spec: ModelSpec, data: Data) -> int:
    """Of one example."""
    decoder, S, T = spec.decoder, data.source_length, data.target_length
    if spec.encoder is None and decoder.cross_attention is None:
        return decoder_flops(decoder, S + T)
    encoding = 0 if spec.encoder is None else encoder_flops(spec.encoder, S)
    projecting = projection_flops(decoder, S, "materialized")
    return encoding + projecting + decoder_flops(decoder, T, memories=S)


def activation_bytes(spec: ModelSpec, data: Data, *, checkpointing: bool) -> int:
    """What a backward pass reads again, of one machine's batch, in 2 bytes a number."""
    decoder, S, T = spec.decoder, data.source_length, data.target_length
    stacks: list[tuple[StackSpec, int]] = []
    if spec.encoder is not None:
        stacks.append((spec.encoder, S))
    alone = spec.encoder is None and decoder.cross_attention is None
    target = S + T if alone else T
    stacks.append((decoder, target))
    numbers = sum(_stack_numbers(stack, length, checkpointing) for stack, length in stacks)
    if decoder.cross_attention is not None:
        each = _cross_numbers(decoder, decoder.cross_attention, S, T)
        numbers += each if checkpointing else decoder.placement.count * each
    # Logits are float32, with their softmax.
    logits = 2 * 4 * target * decoder.vocab_size
    return data.batch * (WEIGHT_BYTES * numbers + logits)


def _stack_numbers(stack: StackSpec, length: int, checkpointing: bool) -> int:
    own, D = stack.self_attention, stack.width
    inner, kv = own.heads * own.head_width, own.kv_heads * own.head_width
    # Inputs of both norms; of q, k and v; these three; what is read; of the feed-forward, and its
    # inner numbers before and after activation.
    wide = stack.feed_forward.width * (4 if stack.feed_forward.gated else 2)
    layer = length * (2 * D + D + inner + 2 * kv + inner + D + wide)
    if checkpointing:
        return length * D * stack.layers + layer
    return layer * stack.layers


def _cross_numbers(decoder: DecoderSpec, cross: AttentionSpec, source: int, target: int) -> int:
    inner, kv = cross.heads * cross.head_width, cross.kv_heads * cross.head_width
    return target * (2 * decoder.width + 2 * inner) + source * 2 * kv


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to a model that does a task, and what it costs to get there and to use it."""

    way: str
    trained: int
    training_dollars: float
    hours: float
    fits: bool
    dollars_per_million_requests: float
    """Of what is decoded beyond the request itself: a prompt's examples."""

    def dollars(self, requests: float) -> float:
        """Training, and so many requests."""
        return self.training_dollars + requests / 1e6 * self.dollars_per_million_requests


def choices(
    spec: ModelSpec,
    data: Data,
    machine: Machine,
    *,
    shots: int = 8,
    rank: int = RANK,
    utilisation: float = UTILISATION,
) -> Iterator[Choice]:
    """Prompting with ``shots`` examples, LoRA, and training whole, side by side.

    Prompting trains nothing, and each request reads its examples anew: what that costs at the
    machine's rates. The trained models read the request alone.
    """
    require(is_whole(shots, 0), "shots", "a whole number, at least 0", shots)
    per_second = machine.rate("bfloat16" if "bfloat16" in machine.flops_per_second else "float16")
    example = data.source_length + data.target_length

    def request_flops(length: int) -> int:
        return forward_flops(spec, replace(data, source_length=length))

    more = request_flops(data.source_length + shots * example) - request_flops(data.source_length)
    seconds = more / (per_second * utilisation) * machine.count
    yield Choice(
        way=f"prompting, {shots} examples",
        trained=0,
        training_dollars=0.0,
        hours=0.0,
        fits=True,
        dollars_per_million_requests=1e6 * seconds / 3600 * machine.dollars_per_hour,
    )
    for method in ("lora", "full"):
        found = train(spec, method, data, machine, rank=rank, utilisation=utilisation)
        yield Choice(
            way=method,
            trained=found.trained,
            training_dollars=found.dollars,
            hours=found.hours,
            fits=found.checkpointed_bytes <= machine.memory_bytes,
            dollars_per_million_requests=0.0,
        )
