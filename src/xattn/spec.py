"""What a model is, as plain numbers: no tensors, no torch.

A family of models is a :class:`ModelSpec` read from a checkpoint's own config plus a weight table;
there is one decoder and one encoder for all of them. The byte counts here are exact, and the
ledger is built on them.

Axes: N memories, W queries that share one, S positions, H heads, K head width, D model width,
L layers, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from xattn.errors import AbsorptionError, require

NormKind = Literal["layer", "rms"]
NormPlace = Literal["before", "after"]
PositionKind = Literal["none", "learned", "sinusoidal", "relative", "rotary"]
Form = Literal["materialized", "absorbed", "materialized-int8", "absorbed-int8"]
"""How cross-attention reads a memory: per-layer K and V or the states themselves, as floats or as
int8 with a scale for each position (of each head)."""
FormChoice = Literal[Form, "auto"]
"""A form by name, or the sooner done of those that lose nothing."""
PlacementKind = Literal["separate", "gated", "merged"]
Modality = Literal["text", "audio", "image", "table"]

FORMS: tuple[Form, ...] = get_args(Form)
FORM_CHOICES: tuple[FormChoice, ...] = ("auto", *FORMS)
STRETCH = 256
"""Positions of a memory that are read at once, at least."""
BLOCK = 64
"""Positions whose scores a thread holds at once."""
THREADS_MEET = 20 * 16
"""Numbers by which threads find each other, of each layer."""
LOGIT_COPIES = 3
"""Logits, what constraints make of them, and what beams begin with."""
SCRATCH_BYTES = 2**16
"""Ids, places, and what is rounded up."""

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


SCALE_BYTES = 4
"""Of what a step of a row of int8 is worth."""


def is_absorbed(form: Form) -> bool:
    """Whether a form keeps the states themselves, which all layers share."""
    return form.startswith("absorbed")


def is_narrow(form: Form) -> bool:
    """Whether a form keeps its numbers as int8."""
    return form.endswith("-int8")


def dtype_bytes(dtype: str) -> int:
    """Bytes of one number of ``dtype``."""
    require(dtype in DTYPE_BYTES, "dtype", f"one of {', '.join(DTYPE_BYTES)}", dtype)
    return DTYPE_BYTES[dtype]


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """Layer normalisation (Ba et al. 2016), or its root-mean-square form without mean and bias."""

    kind: NormKind = "layer"
    eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """Llama-3 style stretching of the rotary wavelengths, or a plain linear one."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True, kw_only=True)
class PositionSpec:
    """How a stack knows where a token stands."""

    kind: PositionKind
    """``relative`` is T5's bucketed bias in self-attention; ``rotary`` turns queries and keys."""
    limit: int | None = None
    """Positions the table holds; None where any length works."""
    offset: int = 0
    """Row of the table that position 0 reads (2 for BART and M2M100)."""
    interleaved: bool = False
    """Sinusoidal tables only: sine and cosine columns alternate, instead of standing in halves."""
    half_minus_one: bool = False
    """Sinusoidal tables only: wavelengths are spaced over D/2 - 1 steps (tensor2tensor, M2M100)."""
    stored: bool = True
    """Learned and sinusoidal tables: the checkpoint holds the table."""
    buckets: int = 32
    max_distance: int = 128
    theta: float = 10000.0
    scaling: RotaryScaling | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """One attention sub-layer. ``heads * head_width`` need not equal the model width."""

    heads: int
    head_width: int
    kv_heads: int
    scale: float
    """Factor on q·k before the softmax: ``head_width ** -0.5``, or 1 for T5."""
    q_bias: bool = False
    k_bias: bool = False
    v_bias: bool = False
    o_bias: bool = False
    qk_norm: NormSpec | None = None
    """Normalisation of each head's query and key (Qwen3)."""
    rotary: bool = False

    def __post_init__(self) -> None:
        for name in ("heads", "head_width", "kv_heads"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(
            self.heads % self.kv_heads == 0,
            "heads",
            f"a multiple of kv_heads ({self.kv_heads})",
            self.heads,
        )

    @property
    def absorption_obstacle(self) -> str | None:
        """Why ``(q Wk) Hᵀ`` would not equal ``q (H Wk)ᵀ`` here, or None where it does."""
        if self.qk_norm is not None:
            return "its keys pass through a norm, which does not commute with the key projection"
        if self.rotary:
            return "its keys are rotated by their position after the key projection"
        return None


@dataclass(frozen=True, kw_only=True)
class FeedForwardSpec:
    """The position-wise sub-layer: ``down(act(up x))``; gated: ``down(act(gate x) * up x)``."""

    width: int
    activation: str
    gated: bool = False
    bias: bool = True
    wide_down: bool = False
    """Keep the down projection in float32 when the model is float16 (T5 overflows there)."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which decoder layers cross-attend, and how."""

    layers: tuple[bool, ...]
    kind: PlacementKind = "separate"

    @classmethod
    def every(cls, layers: int) -> "Placement":
        """Cross-attention in all of ``layers`` layers."""
        return cls(layers=(True,) * layers)

    @classmethod
    def none(cls, layers: int) -> "Placement":
        """A decoder-only model."""
        return cls(layers=(False,) * layers)

    @property
    def count(self) -> int:
        """Layers that cross-attend."""
        return sum(self.layers)


@dataclass(frozen=True, kw_only=True)
class StackSpec:
    """What encoders and decoders have in common."""

    width: int
    layers: int
    self_attention: AttentionSpec
    feed_forward: FeedForwardSpec
    norm: NormSpec
    norm_place: NormPlace
    position: PositionSpec
    embedding_norm: bool = False
    """A norm right after the embeddings (BART, mBART)."""
    final_norm: bool = True
    embed_scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class AudioStemSpec:
    """Whisper's stem: two convolutions of width 3 over log-mel frames, the second with stride 2."""

    mel_bins: int
    frames: int = 3000
    """Log-mel frames that one memory covers; shorter audio is padded with silence."""
    sample_rate: int = 16000
    hop_samples: int = 160

    @property
    def seconds(self) -> float:
        """Audio that one memory covers."""
        return self.frames * self.hop_samples / self.sample_rate


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(StackSpec):
    """An encoder; ``vocab_size`` for text, ``audio`` for recordings."""

    vocab_size: int | None = None
    audio: AudioStemSpec | None = None

    @property
    def modality(self) -> Modality:
        """What it reads."""
        return "audio" if self.audio is not None else "text"


@dataclass(frozen=True, kw_only=True)
class DecoderSpec(StackSpec):
    """A decoder, with or without cross-attention."""

    vocab_size: int
    placement: Placement
    cross_attention: AttentionSpec | None = None
    memory_width: int = 0
    """Width of the states that cross-attention reads; 0 without cross-attention."""
    head_tied: bool = True
    """The vocabulary head is the embedding table."""
    head_bias: bool = False
    head_scale: float = 1.0
    """Factor on the last hidden state before the head (T5 v1.0: ``D ** -0.5``)."""

    def __post_init__(self) -> None:
        require(
            len(self.placement.layers) == self.layers,
            "placement.layers",
            f"one entry for each of the {self.layers} layers",
            self.placement.layers,
        )
        require(
            (self.cross_attention is not None) == (self.placement.count > 0),
            "cross_attention",
            "given exactly when a layer cross-attends",
            self.cross_attention,
        )

    def require_absorbable(self) -> None:
        """Raise :class:`AbsorptionError`, with the reason, where absorption is not exact."""
        if self.cross_attention is None:
            raise AbsorptionError(
                "absorbed attention needs cross-attention; this decoder has none."
            )
        obstacle = self.cross_attention.absorption_obstacle
        if obstacle is not None:
            raise AbsorptionError(
                f"absorbed attention is not exact for this decoder: {obstacle}; "
                "use form='materialized' or 'materialized-int8'."
            )

    @property
    def kv_width(self) -> int:
        """Numbers that one position takes in a memory of keys and values: those of all layers."""
        return 2 * self.layers * self.self_attention.kv_heads * self.self_attention.head_width

    def self_cache_bytes(self, tokens: int, *, rows: int = 1, dtype: str = "float32") -> int:
        """Keys and values of ``tokens`` generated or prompted tokens in ``rows`` rows."""
        return rows * tokens * self.kv_width * dtype_bytes(dtype)

    def cross_bytes(
        self, positions: int, *, form: Form = "materialized", dtype: str = "float32"
    ) -> int:
        """What cross-attention reads for one memory: per-layer K and V, or the states once."""
        if self.cross_attention is None:
            return 0
        if is_absorbed(form):
            rows, width = 1, self.memory_width
        else:
            attention = self.cross_attention
            rows = 2 * self.placement.count * attention.kv_heads
            width = attention.head_width
        per_row = width + SCALE_BYTES if is_narrow(form) else width * dtype_bytes(dtype)
        return positions * rows * per_row

    def memory_bytes(
        self, positions: int, *, form: Form = "materialized", dtype: str = "float32"
    ) -> int:
        """What decoding reads of one memory: as :meth:`cross_bytes`, or, without cross-attention,
        the keys and values that it goes on from."""
        if self.cross_attention is not None:
            return self.cross_bytes(positions, form=form, dtype=dtype)
        if not is_narrow(form):
            return self.self_cache_bytes(positions, dtype=dtype)
        own = self.self_attention
        return positions * 2 * self.layers * own.kv_heads * (own.head_width + SCALE_BYTES)

    def step_bytes(
        self,
        tokens: int,
        logits: int,
        seen: int,
        positions: int,
        *,
        memories: int = 1,
        form: Form = "materialized",
        threads: int = 1,
    ) -> int:
        """Room for one pass over ``tokens``, of which ``logits`` get logits: an upper bound.

        ``seen`` tokens of a row at most came before, and a row reads ``memories`` memories of
        ``positions`` together. Samplers and what torch makes in between are not in it.
        """
        own, cross = self.self_attention, self.cross_attention or self.self_attention
        heads = max(own.heads, cross.heads)
        inner = max(own.heads * own.head_width, cross.heads * cross.head_width)
        hidden = 4 * self.width + 6 * inner + 3 * self.feed_forward.width
        # What a query gives of each stretch of a memory, to be merged.
        read = self.memory_width if is_absorbed(form) else max(own.head_width, cross.head_width)
        parts = 1 + memories + positions // STRETCH
        biases = 2 * (heads if self.position.kind == "relative" else 1) * (seen + tokens)
        numbers = tokens * (hidden + heads * (parts + 1) * (read + 4) + biases)
        # What each thread has of its own: scores of a block, and positions of int8 made wide.
        of_thread = 2 * tokens * heads * (BLOCK + 3) + 2 * BLOCK * (3 + read * is_narrow(form))
        of_layer = THREADS_MEET * (self.layers + 1)
        numbers += threads * of_thread + of_layer + LOGIT_COPIES * logits * self.vocab_size
        return 4 * numbers + SCRATCH_BYTES


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """Special tokens, as the checkpoint's config and generation config give them."""

    eos: tuple[int, ...]
    pad: int | None = None
    bos: int | None = None
    decoder_start: int | None = None
    """First decoder token; None where the prompt starts with the user's own text (decoder-only)."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model: an optional encoder, a decoder, and its special tokens."""

    family: str
    decoder: DecoderSpec
    tokens: TokenSpec
    encoder: EncoderSpec | None = None
    alignment_heads: tuple[tuple[int, int], ...] = ()
    """(layer, head) pairs whose cross-attention follows the audio (Whisper)."""
    shared_embeddings: bool = True
    """Encoder and decoder read one table, where both read tokens (Marian may have two)."""

    @property
    def parameters(self) -> int:
        """Number of weights, counted from the shapes."""
        total = _decoder_parameters(self.decoder)
        if self.encoder is not None:
            total += _encoder_parameters(self.encoder)
            shared = self.encoder.vocab_size == self.decoder.vocab_size
            if shared and self.shared_embeddings:
                total -= self.decoder.vocab_size * self.decoder.width
        return total


def _norm_parameters(norm: NormSpec, width: int) -> int:
    return width * (2 if norm.kind == "layer" else 1)


def _attention_parameters(spec: AttentionSpec, width: int, memory_width: int) -> int:
    q, kv = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
    weights = 2 * width * q + 2 * memory_width * kv
    biases = spec.q_bias * q + (spec.k_bias + spec.v_bias) * kv + spec.o_bias * width
    norms = 0 if spec.qk_norm is None else 2 * _norm_parameters(spec.qk_norm, spec.head_width)
    return weights + biases + norms


def _feed_forward_parameters(spec: FeedForwardSpec, width: int) -> int:
    inward = 2 if spec.gated else 1
    biases = spec.bias * (inward * spec.width + width)
    return (inward + 1) * spec.width * width + biases


def _stack_parameters(spec: StackSpec) -> int:
    norm = _norm_parameters(spec.norm, spec.width)
    layer = _attention_parameters(spec.self_attention, spec.width, spec.width)
    layer += _feed_forward_parameters(spec.feed_forward, spec.width) + 2 * norm
    total = spec.layers * layer + (spec.embedding_norm + spec.final_norm) * norm
    position = spec.position
    if position.kind == "learned" and position.limit is not None:
        total += (position.limit + position.offset) * spec.width
    if position.kind == "relative":
        total += position.buckets * spec.self_attention.heads
    return total


def _encoder_parameters(spec: EncoderSpec) -> int:
    total = _stack_parameters(spec) + (spec.vocab_size or 0) * spec.width
    if spec.audio is not None:
        total += 3 * spec.width * (spec.audio.mel_bins + spec.width) + 2 * spec.width
    return total


def _decoder_parameters(spec: DecoderSpec) -> int:
    total = _stack_parameters(spec) + spec.vocab_size * spec.width
    if spec.cross_attention is not None:
        cross = _attention_parameters(spec.cross_attention, spec.width, spec.memory_width)
        total += spec.placement.count * (cross + _norm_parameters(spec.norm, spec.width))
    if not spec.head_tied:
        total += spec.vocab_size * spec.width
    return total + spec.head_bias * spec.vocab_size
