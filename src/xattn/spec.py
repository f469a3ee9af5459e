"""What a model is, as plain numbers: no tensors, no torch.

A family of models is a :class:`ModelSpec` read from a checkpoint's own config plus a weight table;
there is one decoder and one encoder for all of them. A spec can say more than is run: it is also
what bytes and operations are counted from, before there is a model. The byte counts here are exact.

Axes: N memories, W queries that share one, S positions, H heads, K head width, D model width,
L layers, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from xattn.errors import AbsorptionError, require

NormKind = Literal["layer", "rms", "scale"]
"""``scale`` is a layer norm without bias."""
NormPlace = Literal["before", "after", "both"]
PositionKind = Literal["none", "learned", "sinusoidal", "relative", "rotary"]
Form = Literal["materialized", "absorbed", "materialized-int8", "absorbed-int8"]
"""How cross-attention reads a memory: per-layer K and V or the states themselves, as floats or as
int8 with a scale for each position (of each head)."""
FormChoice = Literal[Form, "auto"]
"""A form by name, or the sooner done of those that lose nothing."""
PlacementKind = Literal["separate", "gated", "merged"]
ProjectorKind = Literal["linear", "mlp", "resampler"]
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


FIRST_CAPACITY = 32
"""Tokens that a self-attention cache has room for at first."""


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


def grown_capacity(capacity: int, needed: int, most: int | None = None) -> int:
    """Tokens that a self-attention cache has room for when it must hold ``needed``.

    It doubles, so that growth costs O(1) a token, and rests at ``most`` where that is known.
    """
    if needed <= capacity:
        return capacity
    generous = max(2 * capacity, FIRST_CAPACITY)
    if most is not None and needed <= most:
        generous = min(generous, most)
    return max(needed, generous)


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

    @property
    def has_outliers(self) -> bool:
        """Whether the down projection is given some: T5's is, and a product of two activations
        (Sun et al. 2024, "Massive activations", arXiv 2402.17762)."""
        return self.wide_down or self.gated


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which decoder layers cross-attend, and how."""

    layers: tuple[bool, ...]
    kind: PlacementKind = "separate"
    """``separate``: a sub-layer of its own; ``gated``: that, behind a gate that training opens;
    ``merged``: one softmax over tokens and memory, whose keys self-attention's weights project."""
    instead: bool = False
    """It stands in the place of self-attention, which these layers do without (Mllama)."""
    own_feed_forward: bool = False
    """It comes with a feed-forward of its own, beside the layer's (Flamingo, Idefics)."""
    before: bool = False
    """It comes before self-attention (Flamingo), and not after it."""
    shared: bool = False
    """All layers read the same keys and values, made by one projection."""
    gate: bool = False
    """``merged`` only: a gate between what the tokens alone give (0, where training may begin) and
    the one softmax (1)."""

    def __post_init__(self) -> None:
        merged = self.kind == "merged"
        require(merged or not self.gate, "gate", "left out but for 'merged'", self.gate)
        for name in ("instead", "own_feed_forward", "before", "shared"):
            value = getattr(self, name)
            require(not (merged and value), name, "False where the placement is 'merged'", value)
        alone = not (self.instead and (self.before or self.own_feed_forward))
        require(alone, "instead", "False with `before` or `own_feed_forward`", self.instead)

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

    @property
    def projections(self) -> int:
        """Times that keys and values are made of a memory."""
        return min(self.count, 1) if self.shared else self.count

    @property
    def gates(self) -> int:
        """Numbers of a layer that say how much of what it reads counts."""
        if self.kind == "gated":
            return 2 if self.instead or self.own_feed_forward else 1
        return int(self.gate)


@dataclass(frozen=True, kw_only=True)
class ExpertsSpec:
    """Feed-forwards of which a router picks a few for each token (Shazeer et al. 2017)."""

    every: int
    """One layer in so many has them instead of a single feed-forward."""
    count: int
    active: int = 2
    """How many a token goes through."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "every", "at least 1", self.every)
        bound = f"at least the {self.active} that a token goes through"
        require(self.count >= self.active >= 1, "count", bound, self.count)


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
    experts: ExpertsSpec | None = None


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

    @property
    def positions(self) -> int:
        """Of one memory."""
        return self.frames // 2


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """One convolution of a :class:`WaveStemSpec`, without padding."""

    outputs: int
    inputs: int
    kernel: int
    stride: int
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class WaveStemSpec:
    """Convolutions over the samples of a recording of any length (Moonshine)."""

    convolutions: tuple[Convolution, ...]
    sample_rate: int = 16000
    group_norm: bool = False
    """One after the first of them."""

    def positions(self, seconds: float) -> int:
        """Of a recording that lasts so long."""
        length = int(seconds * self.sample_rate)
        for one in self.convolutions:
            length = max(0, (length - one.kernel) // one.stride + 1)
        return length


@dataclass(frozen=True, kw_only=True)
class ImageStemSpec:
    """Patches of one or several square tiles of a picture."""

    size: int
    """Pixels of a tile's side."""
    patch: int
    """Pixels of a patch's side."""
    tiles: int = 1
    """Tiles that a picture is cut into, at most."""
    leading: int = 0
    """Positions of each tile before its patches (class, registers)."""
    kept: int | None = None
    """Positions of a tile that a resampler or pooling leaves; None: all."""
    tables: int = 0
    """Numbers in tables of positions and tiles."""

    @property
    def encoded(self) -> int:
        """Positions of a tile, in the encoder."""
        return (self.size // self.patch) ** 2 + self.leading

    @property
    def positions(self) -> int:
        """Positions that a tile has in a memory."""
        return self.encoded if self.kept is None else self.kept


@dataclass(frozen=True, kw_only=True)
class ResamplerSpec:
    """A Perceiver: a fixed number of latents reads all positions (Alayrac et al. 2022)."""

    layers: int
    latents: int
    width: int
    heads: int
    head_width: int
    feed_forward: int


@dataclass(frozen=True, kw_only=True)
class ProjectorSpec:
    """What makes an encoder's states into those that a decoder's cross-attention reads.

    ``linear`` is a norm and a matrix, ``mlp`` a norm and two matrices with a GELU between (LLaVA
    1.5, Liu et al. 2023), ``resampler`` a norm, a matrix and a Perceiver, which leaves a fixed
    number of positions.
    """

    modality: Modality
    kind: ProjectorKind
    inputs: int
    """Width of the encoder's states."""
    outputs: int
    resampler: ResamplerSpec | None = None

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        fits = (self.resampler is not None) == (self.kind == "resampler")
        require(fits, "resampler", "given exactly for a projector that is one", self.resampler)
        if self.resampler is not None:
            width = self.resampler.width
            require(width == self.outputs, "resampler.width", f"{self.outputs}", width)

    def positions(self, encoded: int) -> int:
        """Of so many encoded ones, those that are read."""
        return encoded if self.resampler is None else self.resampler.latents


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(StackSpec):
    """An encoder; of text with a ``vocab_size``, of recordings or pictures with a stem."""

    vocab_size: int | None = None
    audio: AudioStemSpec | None = None
    wave: WaveStemSpec | None = None
    image: ImageStemSpec | None = None
    resampler: ResamplerSpec | None = None
    pictures: "EncoderSpec | None" = None
    """Encoder of pictures whose states go through this one, among its tokens (T5Gemma 2)."""
    output: tuple[int, int] | None = None
    """Inputs and outputs of a last matrix, between the layers and the decoder."""
    output_bias: bool = True

    @property
    def modality(self) -> Modality:
        """What it reads."""
        if self.image is not None:
            return "image"
        return "text" if self.audio is None and self.wave is None else "audio"


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
    extra_rows: int = 0
    """Rows of the embedding table that the head has not."""
    head_scale: float = 1.0
    """Factor on the last hidden state before the head (T5 v1.0: ``D ** -0.5``)."""
    window: int | None = None
    """Tokens that self-attention of :attr:`window_layers` sees, the new one among them."""
    window_layers: int = 0
    """How many layers see no further; the others see all."""

    def __post_init__(self) -> None:
        fits = self.window_layers == 0 if self.window is None else self.window >= 1
        require(fits, "window", "given where layers have one, at least 1", self.window)
        require(
            0 <= self.window_layers <= self.self_layers,
            "window_layers",
            f"0 to {self.self_layers}",
            self.window_layers,
        )
        require(
            len(self.placement.layers) == self.layers,
            "placement.layers",
            f"one entry for each of the {self.layers} layers",
            self.placement.layers,
        )
        require(self.self_layers >= 1, "placement.instead", "left out of one layer or more", True)
        require(
            (self.cross_attention is not None) == (self.placement.count > 0),
            "cross_attention",
            "given exactly when a layer cross-attends",
            self.cross_attention,
        )

    def without_cross(self) -> "DecoderSpec":
        """The same without cross-attention, and without layers that have nothing else."""
        layers = self.self_layers
        return replace(
            self,
            layers=layers,
            placement=Placement.none(layers),
            cross_attention=None,
            memory_width=0,
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
    def self_layers(self) -> int:
        """Layers with self-attention."""
        return self.layers - (self.placement.count if self.placement.instead else 0)

    @property
    def kv_width(self) -> int:
        """Numbers that one position takes in a memory of keys and values: those of all layers."""
        own = self.self_attention
        return 2 * self.self_layers * own.kv_heads * own.head_width

    def kept_tokens(self, tokens: int) -> int:
        """Tokens that all layers together keep of so many: within a window, what the next sees."""
        if self.window is None:
            return self.self_layers * tokens
        far = self.self_layers - self.window_layers
        return far * tokens + self.window_layers * min(tokens, self.window - 1)

    def self_cache_bytes(self, tokens: int, *, rows: int = 1, dtype: str = "float32") -> int:
        """Keys and values of ``tokens`` generated or prompted tokens in ``rows`` rows."""
        own = self.self_attention
        per_token = 2 * own.kv_heads * own.head_width * dtype_bytes(dtype)
        return rows * self.kept_tokens(tokens) * per_token

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
            rows = 2 * self.placement.projections * attention.kv_heads
            width = attention.head_width
        size = dtype_bytes(dtype)
        per_row = width + size if is_narrow(form) else width * size  # int8, and a scale
        return positions * rows * per_row

    def memory_bytes(
        self, positions: int, *, form: Form = "materialized", dtype: str = "float32"
    ) -> int:
        """What decoding reads of one memory: as :meth:`cross_bytes`, or, without cross-attention,
        the keys and values that it goes on from."""
        if self.cross_attention is not None:
            return self.cross_bytes(positions, form=form, dtype=dtype)
        if not is_narrow(form):
            return positions * self.kv_width * dtype_bytes(dtype)
        own = self.self_attention
        return (
            positions * 2 * self.self_layers * own.kv_heads * (own.head_width + dtype_bytes(dtype))
        )

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
class LentSpec:
    """An encoder that a decoder reads and was not made with, as far as it is known."""

    modality: Modality
    width: int
    """Of its states."""
    encoder: EncoderSpec | None = None
    """None for a module that is not xattn's, and where the decoder reads its own states."""
    itself: bool = False
    """They are the decoder's own, without what was added to it."""


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
    projectors: tuple[ProjectorSpec, ...] = ()
    """Between encoders that are models of their own and this decoder, one for each modality."""
    lent: tuple[LentSpec, ...] = ()
    """Those encoders."""

    def __post_init__(self) -> None:
        width, seen = self.decoder.memory_width, [one.modality for one in self.projectors]
        require(len(seen) == len(set(seen)), "projectors", "of different modalities", seen)
        for one in self.projectors:
            require(one.outputs == width, "projectors", f"of {width} outputs", one.outputs)

    def lent_for(self, modality: Modality) -> LentSpec | None:
        """The lent encoder of that modality, if there is one."""
        return next((one for one in self.lent if one.modality == modality), None)

    def projector_for(self, modality: Modality) -> ProjectorSpec | None:
        """What memories of that modality go through first, if anything."""
        return next((one for one in self.projectors if one.modality == modality), None)
