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
- A graft's sources are encoded by the model itself, as it was: one forward pass, frozen, of which
  the states stay and one layer at a time is there.

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
from xattn.readable import readable_bytes
from xattn.spec import (
    AttentionSpec,
    DecoderSpec,
    ModelSpec,
    Placement,
    ProjectorSpec,
    StackSpec,
)

Method = Literal["full", "lora", "graft", "gates"]
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
    dtype: str
    """The number format whose rate was taken."""
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
    a decoder-only model cross-attention in every ``every``-th layer, and trains that alone,
    ``gates`` no more of it than how far each layer is open.
    """
    chosen = next((known for known in METHODS if known == method), None)
    require(chosen is not None, "method", f"one of {', '.join(METHODS)}", method)
    assert chosen is not None
    require(is_whole(rank, 1), "rank", "a whole number, at least 1", rank)
    share = is_number(utilisation) and 0 < utilisation <= 1
    require(share, "utilisation", "above 0 and at most 1", utilisation)
    trained_spec, trained = spec, parameters(spec)
    grafts = method in ("graft", "gates")
    if grafts:
        trained_spec = grafted(spec, every)
        placement = trained_spec.decoder.placement
        trained = parameters(trained_spec) - parameters(spec)
        if method == "gates":
            trained = placement.count * placement.gates
    if method == "lora":
        trained = lora_parameters(spec, rank)
    require_within(spec, data, grafted=grafts)
    held = parameters(trained_spec) + (trained if method == "lora" else 0)
    forward, frozen = forward_flops(trained_spec, data), 0
    if grafts:
        frozen = decoder_flops(spec.decoder, data.source_length, logits=0)
    # A gradient for each activation; and one for each weight that changes.
    share_trained = min(1.0, trained / parameters(trained_spec))
    each = frozen + forward * (2 + share_trained)
    dtype = training_dtype(machine)
    hours = each * data.examples / (machine.rate(dtype) * utilisation) / 3600
    return Training(
        method=chosen,
        trained=trained,
        weights=held * WEIGHT_BYTES,
        gradients=trained * GRADIENT_BYTES,
        optimiser=trained * OPTIMISER_BYTES,
        activations=activation_bytes(trained_spec, data, checkpointing=False),
        checkpointed=activation_bytes(trained_spec, data, checkpointing=True),
        flops=each * data.examples,
        dtype=dtype,
        hours=hours,
        dollars=hours * machine.total_dollars_per_hour,
        checkpointing_hours=hours * (each + forward) / each,
    )


def training_dtype(machine: Machine) -> str:
    """What it trains in: bfloat16, or float16 where it multiplies no bfloat16 (T4)."""
    return "bfloat16" if "bfloat16" in machine.flops_per_second else "float16"


def require_within(spec: ModelSpec, data: Data, *, grafted: bool = False) -> None:
    """Raise :class:`UsageError` for examples longer than the model's tables of positions."""
    for name, length, most in _lengths(spec, data, grafted):
        if most is not None and length > most:
            raise UsageError(
                f"`{name}` must be at most {most} for this model, but is {length} instead."
            )


def _lengths(spec: ModelSpec, data: Data, grafted: bool) -> Iterator[tuple[str, int, int | None]]:
    """What is how long, and may be."""
    S, T, encoder, most = (
        data.source_length,
        data.target_length,
        spec.encoder,
        spec.decoder.position.limit,
    )
    if encoder is None and not grafted:
        yield "source_length + target_length", S + T, most
        return
    if encoder is None:
        yield "source_length", S, most
    else:
        window = encoder.audio
        yield "source_length", S, encoder.position.limit if window is None else window.positions
    yield "target_length", T, most


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
    width = decoder.width
    graft = replace(decoder, placement=placement, cross_attention=cross, memory_width=width)
    between = ProjectorSpec(modality="text", kind="linear", inputs=width, outputs=width)
    return replace(spec, decoder=graft, projectors=(between,))


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
    if decoder.cross_attention is not None and spec.encoder is None:
        # A graft: states of the source, which projections read again, and one layer on its way.
        numbers += S * decoder.memory_width + _layer_numbers(decoder, S)
    if decoder.cross_attention is not None:
        each = _cross_numbers(decoder, decoder.cross_attention, S, T)
        numbers += each if checkpointing else decoder.placement.count * each
    # Logits are float32, with their softmax.
    logits = 2 * 4 * target * decoder.vocab_size
    return data.batch * (WEIGHT_BYTES * numbers + logits)


def _stack_numbers(stack: StackSpec, length: int, checkpointing: bool) -> int:
    layer = _layer_numbers(stack, length)
    if checkpointing:
        return length * stack.width * stack.layers + layer
    return layer * stack.layers


def _layer_numbers(stack: StackSpec, length: int) -> int:
    own, D = stack.self_attention, stack.width
    inner, kv = own.heads * own.head_width, own.kv_heads * own.head_width
    # Inputs of both norms; of q, k and v; these three; what is read; of the feed-forward, and its
    # inner numbers before and after activation.
    wide = stack.feed_forward.width * (4 if stack.feed_forward.gated else 2)
    return length * (2 * D + D + inner + 2 * kv + inner + D + wide)


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
    needed_bytes: int
    """On each machine: to train, checkpointed, or to answer one request."""
    obstacle: str | None
    """Why it cannot be done on this machine; None where it can."""
    dollars_per_million_requests: float
    """Of encoding and decoding each request, with what its prompt brings along."""

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

    Prompting trains nothing, and each request reads its examples anew. The trained models read the
    request alone. Requests cost what they multiply, at the same share of the machine's rate.
    """
    require(is_whole(shots, 0), "shots", "a whole number, at least 0", shots)
    trained = [
        train(spec, method, data, machine, rank=rank, utilisation=utilisation)
        for method in ("lora", "full")
    ]
    per_second = machine.rate(training_dtype(machine)) * utilisation

    def request_dollars(asked: Data) -> float:
        seconds = forward_flops(spec, asked) / per_second
        return 1e6 * seconds / 3600 * machine.total_dollars_per_hour

    example = data.source_length + data.target_length
    prompted = replace(data, source_length=data.source_length + shots * example)
    needed = _request_bytes(spec, prompted)
    yield Choice(
        way=f"prompting, {shots} examples",
        trained=0,
        training_dollars=0.0,
        hours=0.0,
        needed_bytes=needed,
        obstacle=_too_long(spec, prompted) or _too_large(needed, machine),
        dollars_per_million_requests=request_dollars(prompted),
    )
    for one in trained:
        yield Choice(
            way=one.method,
            trained=one.trained,
            training_dollars=one.dollars,
            hours=one.hours,
            needed_bytes=one.checkpointed_bytes,
            obstacle=_too_large(one.checkpointed_bytes, machine),
            dollars_per_million_requests=request_dollars(data),
        )


def _request_bytes(spec: ModelSpec, data: Data) -> int:
    """What answering one request holds: weights, states, keys and values."""
    decoder, S, T = spec.decoder, data.source_length, data.target_length
    held = decoder.memory_bytes(S, dtype="bfloat16") + S * decoder.memory_width * WEIGHT_BYTES
    cache = decoder.self_cache_bytes(T, dtype="bfloat16")
    return parameters(spec) * WEIGHT_BYTES + held + cache


def _too_long(spec: ModelSpec, data: Data) -> str | None:
    for _, length, most in _lengths(spec, data, grafted=False):
        if most is not None and length > most:
            return f"{length:,} positions, of {most:,}"
    return None


def _too_large(needed: int, machine: Machine) -> str | None:
    """Each machine holds all of it."""
    if needed <= machine.memory_bytes:
        return None
    return f"{readable_bytes(needed)}, of {readable_bytes(machine.memory_bytes)}"
