"""Whisper (Radford et al. 2022): the BART tree before norms, and an audio stem."""

from typing import Any

from xattn.errors import CorruptCheckpointError
from xattn.models.families import Family
from xattn.models.families.bart_names import stack_names
from xattn.models.families.config import (
    MOST_LAYERS,
    Config,
    decoder_start,
    flag,
    token_spec,
    whole,
)
from xattn.models.weights import WeightTable
from xattn.spec import (
    AttentionSpec,
    AudioStemSpec,
    DecoderSpec,
    EncoderSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    Placement,
    PositionSpec,
)

TABLE = WeightTable(
    [
        *stack_names("encoder"),
        *stack_names("decoder"),
        *[
            (f"encoder.stem.conv{n}.{kind}", f"model.encoder.conv{n}.{kind}")
            for n in (1, 2)
            for kind in ("weight", "bias")
        ],
        ("decoder.embed.weight", "model.decoder.embed_tokens.weight"),
        ("decoder.head.weight", "proj_out.weight"),
    ],
    ignored=(r"^proj_out\.weight$",),
)


def family(name: str, config: Config) -> Family:
    """Whisper, all sizes."""
    return Family(name=name, spec=spec_from_config, table=TABLE)


def spec_from_config(config: Config, generation: Config) -> ModelSpec:
    """The spec of a Whisper model; alignment heads and languages are in its generation config."""
    width, layers = whole(config, "d_model"), whole(config, "decoder_layers", most=MOST_LAYERS)
    activation = config.get("activation_function", "gelu")
    positions = whole(config, "max_source_positions", 1500)
    shared: dict[str, Any] = dict(
        width=width, norm=NormSpec(kind="layer", eps=1e-5), norm_place="before"
    )
    encoder = EncoderSpec(
        **shared,
        layers=whole(config, "encoder_layers", most=MOST_LAYERS),
        self_attention=_attention(width, whole(config, "encoder_attention_heads")),
        feed_forward=FeedForwardSpec(width=whole(config, "encoder_ffn_dim"), activation=activation),
        position=PositionSpec(kind="learned", limit=positions),
        audio=AudioStemSpec(mel_bins=whole(config, "num_mel_bins"), frames=2 * positions),
    )
    attention = _attention(width, whole(config, "decoder_attention_heads"))
    decoder = DecoderSpec(
        **shared,
        layers=layers,
        self_attention=attention,
        cross_attention=attention,
        memory_width=width,
        feed_forward=FeedForwardSpec(width=whole(config, "decoder_ffn_dim"), activation=activation),
        position=PositionSpec(kind="learned", limit=whole(config, "max_target_positions", 448)),
        vocab_size=whole(config, "vocab_size"),
        placement=Placement.every(layers),
        head_tied=flag(config, "tie_word_embeddings", True),
    )
    start = decoder_start(config, generation)
    return ModelSpec(
        family="whisper",
        encoder=encoder,
        decoder=decoder,
        tokens=token_spec(config, generation, decoder_start=start),
        alignment_heads=alignment_heads(
            generation.get("alignment_heads") or config.get("alignment_heads") or (), decoder
        ),
    )


def alignment_heads(given: Any, decoder: DecoderSpec) -> tuple[tuple[int, int], ...]:
    """(layer, head) pairs; :class:`CorruptCheckpointError` where the decoder has no such head."""
    heads = decoder.self_attention.heads
    pairs = []
    for pair in given if isinstance(given, list | tuple) else [given]:
        fits = isinstance(pair, list | tuple) and len(pair) == 2
        fits = fits and all(isinstance(n, int) and not isinstance(n, bool) for n in pair)
        if not fits or not (0 <= pair[0] < decoder.layers and 0 <= pair[1] < heads):
            raise CorruptCheckpointError(
                f"generation_config.json: 'alignment_heads' must be [layer, head] pairs below "
                f"[{decoder.layers}, {heads}], but has {pair!r}."
            )
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)


def _attention(width: int, heads: int) -> AttentionSpec:
    """Whisper's keys have no bias."""
    return AttentionSpec(
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        scale=(width // heads) ** -0.5,
        q_bias=True,
        v_bias=True,
        o_bias=True,
    )
