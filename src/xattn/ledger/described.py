"""Models that are described and not run: what their configs say, as specs.

What decides bytes and operations is all there; what only decides numbers (rotary settings, soft
caps, scalings) is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from xattn.errors import CorruptCheckpointError, shown
from xattn.models.families.bart import CHOICES, spec_from_config
from xattn.models.families.config import MOST_LAYERS, Config, flag, number, whole
from xattn.spec import (
    AttentionSpec,
    Convolution,
    DecoderSpec,
    EncoderSpec,
    ExpertsSpec,
    FeedForwardSpec,
    ImageStemSpec,
    ModelSpec,
    NormSpec,
    Placement,
    PositionSpec,
    ResamplerSpec,
    TokenSpec,
    WaveStemSpec,
)

LAYER, RMS = NormSpec(kind="layer"), NormSpec(kind="rms")
SCALED = NormSpec(kind="scale")
NO_TOKENS = TokenSpec(eos=())


def mllama(config: Config) -> ModelSpec:
    """Llama-3.2-Vision: gated cross-attention in the place of self-attention, every fifth layer."""
    text, vision = part(config, "text_config"), part(config, "vision_config")
    layers = whole(text, "num_hidden_layers", 40, most=MOST_LAYERS)
    given = text.get("cross_attention_layers")
    crosses = range(3, layers, 5) if given is None else given
    _require_layers(crosses, layers)
    width, vocab = whole(text, "hidden_size", 4096), whole(text, "vocab_size", 128256)
    attention = grouped(text, width, heads=32, kv_heads=8, rotary=True)
    decoder = DecoderSpec(
        **llama_stack(text, width, layers, attention, ffn=14336),
        vocab_size=vocab,
        cross_attention=replace(attention, rotary=False, qk_norm=RMS),
        memory_width=width,
        placement=Placement(
            layers=tuple(n in crosses for n in range(layers)), kind="gated", instead=True
        ),
        head_tied=flag(text, "tie_word_embeddings", False),
        extra_rows=8,
    )
    seen, tiles = whole(vision, "hidden_size", 1280), whole(vision, "max_num_tiles", 4)
    size, patch = whole(vision, "image_size", 560), whole(vision, "patch_size", 14)
    ratios = 1 + sum(tiles // columns for columns in range(1, tiles + 1))
    positions = (size // patch) ** 2 + 1
    local, gated = whole(vision, "num_hidden_layers", 32), whole(vision, "num_global_layers", 8)
    encoder = EncoderSpec(
        **tower(
            vision, seen, local + gated, plain(seen, whole(vision, "attention_heads", 16)), ffn=5120
        ),
        embedding_norm=True,
        image=ImageStemSpec(
            size=size,
            patch=patch,
            tiles=tiles,
            leading=1,
            # One table of positions, one for every grid of tiles, two of tiles alone, three gates,
            # and two gates in each of the last layers.
            tables=positions * seen * (1 + ratios * tiles) + 2 * ratios * tiles * seen + 3
            + 2 * gated,
        ),
        output=(whole(vision, "vision_output_dim", 7680), width),
    )  # fmt: skip
    return ModelSpec(family="mllama", decoder=decoder, encoder=encoder, tokens=NO_TOKENS)


def moonshine(config: Config) -> ModelSpec:
    """Moonshine: convolutions over samples, rotary positions, no bias but in feed-forwards."""
    width, ffn = whole(config, "hidden_size"), whole(config, "intermediate_size")

    def stack(side: str) -> dict[str, Any]:
        heads = whole(config, f"{side}_num_attention_heads")
        kv_heads = whole(config, f"{side}_num_key_value_heads", heads)
        attention = replace(plain(width, heads), kv_heads=kv_heads, rotary=True)
        layers = whole(config, f"{side}_num_hidden_layers", most=MOST_LAYERS)
        return dict(
            width=width, layers=layers, self_attention=attention, norm=SCALED, norm_place="before"
        )

    encoder = EncoderSpec(
        **stack("encoder"),
        feed_forward=FeedForwardSpec(width=ffn, activation="gelu"),
        position=PositionSpec(kind="rotary"),
        wave=WaveStemSpec(
            convolutions=(
                Convolution(outputs=width, inputs=1, kernel=127, stride=64, bias=False),
                Convolution(outputs=2 * width, inputs=width, kernel=7, stride=3),
                Convolution(outputs=width, inputs=2 * width, kernel=3, stride=2),
            ),
            group_norm=True,
        ),
    )
    shared = stack("decoder")
    decoder = DecoderSpec(
        **shared,
        feed_forward=FeedForwardSpec(width=ffn, activation="silu", gated=True),
        position=PositionSpec(kind="rotary", limit=whole(config, "max_position_embeddings", 512)),
        vocab_size=whole(config, "vocab_size"),
        cross_attention=replace(shared["self_attention"], rotary=False),
        memory_width=width,
        placement=Placement.every(shared["layers"]),
        head_tied=flag(config, "tie_word_embeddings", True),
    )
    return ModelSpec(family="moonshine", decoder=decoder, encoder=encoder, tokens=NO_TOKENS)


def idefics(config: Config) -> ModelSpec:
    """Idefics: Flamingo's gated blocks before every fourth layer, over resampled pictures."""
    vision, perceiver = part(config, "vision_config"), part(config, "perceiver_config")
    width = whole(config, "hidden_size", 4096)
    layers = whole(config, "num_hidden_layers", 32, most=MOST_LAYERS)
    interval = whole(config, "cross_layer_interval", 1)
    seen = whole(vision, "embed_dim", 768)
    size, patch = whole(vision, "image_size", 224), whole(vision, "patch_size", 32)
    attention = grouped(config, width, heads=32, kv_heads=None, rotary=True)
    norms = RMS if flag(config, "qk_layer_norms", False) else None
    attention = replace(attention, qk_norm=norms)
    latents = whole(perceiver, "resampler_n_latents", 64)
    resampled = flag(config, "use_resampler", False)
    decoder = DecoderSpec(
        **llama_stack(config, width, layers, attention, ffn=11008),
        vocab_size=whole(config, "vocab_size", 32000)
        + whole(config, "additional_vocab_size", 0, least=0),
        cross_attention=replace(attention, rotary=False),
        memory_width=seen,
        placement=Placement(
            layers=tuple(n % interval == 0 for n in range(layers)),
            kind="gated",
            own_feed_forward=True,
        ),
        head_tied=flag(config, "tie_word_embeddings", False),
    )
    positions = (size // patch) ** 2 + 1
    seeing = plain(seen, whole(vision, "num_attention_heads", 16), bias=True)
    seeing_layers = whole(vision, "num_hidden_layers", 32, most=MOST_LAYERS)
    encoder = EncoderSpec(
        **tower(vision, seen, seeing_layers, seeing, ffn=5120),
        embedding_norm=True,
        image=ImageStemSpec(
            size=size,
            patch=patch,
            leading=1,
            kept=latents if resampled else None,
            tables=positions * seen,
        ),
        resampler=ResamplerSpec(
            layers=whole(perceiver, "resampler_depth", 6),
            latents=latents,
            width=seen,
            heads=whole(perceiver, "resampler_n_heads", 16),
            head_width=whole(perceiver, "resampler_head_dim", 96),
            feed_forward=4 * seen,
        )
        if resampled
        else None,
    )
    return ModelSpec(family="idefics", decoder=decoder, encoder=encoder, tokens=NO_TOKENS)


def t5gemma(config: Config) -> ModelSpec:
    """T5Gemma: two Gemma 2 stacks, and cross-attention of its own in every layer."""
    encoder, decoder = part(config, "encoder"), part(config, "decoder")
    heard = whole(encoder, "hidden_size", 2304)
    stack = _gemma(decoder)
    return ModelSpec(
        family="t5gemma",
        encoder=EncoderSpec(**_gemma(encoder), vocab_size=whole(encoder, "vocab_size", 256000)),
        decoder=DecoderSpec(
            **stack,
            **_windows(decoder, stack["layers"], every=2),
            vocab_size=whole(decoder, "vocab_size", 256000),
            cross_attention=replace(stack["self_attention"], rotary=False),
            memory_width=heard,
            placement=Placement.every(stack["layers"]),
        ),
        tokens=NO_TOKENS,
        shared_embeddings=False,
    )


def t5gemma2(config: Config) -> ModelSpec:
    """T5Gemma 2: one softmax over tokens and memory, which the same weights project.

    A picture is encoded by SigLIP and pooled to as many positions as a short text.
    """
    encoder, decoder = part(config, "encoder"), part(config, "decoder")
    text, vision = part(encoder, "text_config"), part(encoder, "vision_config")
    seen, width = whole(vision, "hidden_size", 1152), whole(text, "hidden_size", 2304)
    size, patch = whole(vision, "image_size", 896), whole(vision, "patch_size", 14)
    seeing = plain(seen, whole(vision, "num_attention_heads", 16), bias=True)
    seeing_layers = whole(vision, "num_hidden_layers", 27, most=MOST_LAYERS)
    siglip = EncoderSpec(
        **tower(vision, seen, seeing_layers, seeing, ffn=4304),
        image=ImageStemSpec(
            size=size,
            patch=patch,
            kept=whole(encoder, "mm_tokens_per_image", 256),
            # Positions, the patches' bias, the norm before the projection, two ends of a picture.
            tables=(size // patch) ** 2 * seen + 2 * seen + 2 * width,
        ),
        output=(seen, width),
        output_bias=False,
    )
    stack = _gemma(decoder, qk_norm=RMS)
    return ModelSpec(
        family="t5gemma2",
        encoder=EncoderSpec(
            **_gemma(text, qk_norm=RMS),
            vocab_size=whole(text, "vocab_size", 262208),
            pictures=siglip,
        ),
        decoder=DecoderSpec(
            **stack,
            **_windows(decoder, stack["layers"], every=6),
            vocab_size=whole(decoder, "vocab_size", 262208),
            cross_attention=replace(stack["self_attention"], rotary=False),
            memory_width=width,
            placement=Placement(layers=(True,) * stack["layers"], kind="merged"),
        ),
        tokens=NO_TOKENS,
    )


def nllb_moe(config: Config) -> ModelSpec:
    """NLLB-MoE: M2M100 whose every fourth feed-forward is one of many."""
    dense = spec_from_config("m2m_100", CHOICES["m2m_100"], config, {})
    assert dense.encoder is not None

    def experts(side: str) -> ExpertsSpec:
        every = whole(config, f"{side}_sparse_step", 4)
        return ExpertsSpec(every=every, count=whole(config, "num_experts", 128, least=2))

    return replace(
        dense,
        family="nllb-moe",
        encoder=replace(dense.encoder, experts=experts("encoder")),
        decoder=replace(dense.decoder, experts=experts("decoder")),
    )


DESCRIBED: dict[str, Callable[[Config], ModelSpec]] = {
    "mllama": mllama,
    "moonshine": moonshine,
    "idefics": idefics,
    "t5gemma": t5gemma,
    "t5gemma2": t5gemma2,
    "nllb-moe": nllb_moe,
}
"""``model_type`` -> what reads its config."""


def part(config: Config, name: str) -> Config:
    """The object ``name`` within a config."""
    found = config.get(name)
    if not isinstance(found, Mapping):
        raise CorruptCheckpointError(f"config.json: {name!r} must be an object, but is {found!r}.")
    return found


def plain(width: int, heads: int, *, bias: bool = False) -> AttentionSpec:
    """Heads that share the width."""
    head = head_of(width, heads)
    return AttentionSpec(
        heads=heads,
        kv_heads=heads,
        head_width=head,
        scale=head**-0.5,
        q_bias=bias,
        k_bias=bias,
        v_bias=bias,
        o_bias=bias,
    )


def head_of(width: int, heads: int) -> int:
    """Width of each of so many heads."""
    if width < heads:
        raise CorruptCheckpointError(
            f"config.json: {heads} heads must share a width of at least {heads}, "
            f"but share {width} instead."
        )
    return width // heads


def grouped(
    config: Config, width: int, *, heads: int, kv_heads: int | None, rotary: bool
) -> AttentionSpec:
    """Query heads that share keys and values in groups."""
    count = whole(config, "num_attention_heads", heads)
    given = config.get("head_dim")
    head = head_of(width, count) if given is None else whole(config, "head_dim")
    return AttentionSpec(
        heads=count,
        kv_heads=whole(config, "num_key_value_heads", kv_heads or count),
        head_width=head,
        scale=head**-0.5,
        rotary=rotary,
    )


def tower(
    vision: Config, width: int, layers: int, attention: AttentionSpec, *, ffn: int
) -> dict[str, Any]:
    """What vision transformers have in common; their tables of positions are the stem's."""
    return dict(
        width=width,
        layers=layers,
        self_attention=attention,
        feed_forward=FeedForwardSpec(
            width=whole(vision, "intermediate_size", ffn), activation="gelu"
        ),
        norm=LAYER,
        norm_place="before",
        position=PositionSpec(kind="none"),
    )


def llama_stack(
    config: Config, width: int, layers: int, attention: AttentionSpec, *, ffn: int
) -> dict[str, Any]:
    """What a stack of Llama's layers is, but for vocabulary and placement."""
    return dict(
        width=width,
        layers=layers,
        self_attention=attention,
        feed_forward=FeedForwardSpec(
            width=whole(config, "intermediate_size", ffn), activation="silu", gated=True, bias=False
        ),
        norm=replace(RMS, eps=number(config, "rms_norm_eps", 1e-5)),
        norm_place="before",
        position=PositionSpec(
            kind="rotary", limit=whole(config, "max_position_embeddings", 131072)
        ),
    )


def _gemma(config: Config, *, qk_norm: NormSpec | None = None) -> dict[str, Any]:
    """Gemma's layers: norms before and after each sub-layer, gated feed-forwards."""
    width = whole(config, "hidden_size", 2304)
    attention = grouped(config, width, heads=8, kv_heads=4, rotary=True)
    stack = llama_stack(
        config,
        width,
        whole(config, "num_hidden_layers", 26, most=MOST_LAYERS),
        replace(attention, qk_norm=qk_norm),
        ffn=9216,
    )
    return stack | {"norm_place": "both"}


def _windows(config: Config, layers: int, *, every: int) -> dict[str, Any]:
    """All layers but one in ``every`` see a window, unless the config names each layer's kind."""
    kinds = config.get("layer_types")
    if kinds is None:
        within = layers - layers // every
    elif isinstance(kinds, list | tuple) and len(kinds) == layers:
        within = sum(kind == "sliding_attention" for kind in kinds)
    else:
        raise CorruptCheckpointError(
            f"config.json: 'layer_types' must be a list of {layers}, "
            f"but is {shown(kinds, 60)} instead."
        )
    return {"window": whole(config, "sliding_window", 4096), "window_layers": within}


def _require_layers(given: Any, layers: int) -> None:
    fits = isinstance(given, list | tuple | range) and len(given) > 0
    if not fits or not all(isinstance(n, int) and 0 <= n < layers for n in given):
        raise CorruptCheckpointError(
            f"config.json: 'cross_attention_layers' must be layers below {layers}, "
            f"but is {given!r} instead."
        )
