"""Whisper (Radford et al. 2022): the BART tree before norms, an audio stem, a tied head."""

from typing import Any

from xattn.models.families import Family
from xattn.models.families.bart_names import stack_names
from xattn.models.families.config import Config, decoder_start, need, refuse, token_spec
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
    ],
    ignored=(r"^proj_out\.weight$",),
)


def family(name: str, config: Config) -> Family:
    """Whisper, all sizes."""
    return Family(name=name, spec=spec_from_config, table=TABLE)


def spec_from_config(config: Config, generation: Config) -> ModelSpec:
    """The spec of a Whisper model; alignment heads and languages are in its generation config."""
    refuse(config, "tie_word_embeddings", True)
    width, layers = int(need(config, "d_model")), int(need(config, "decoder_layers"))
    activation = config.get("activation_function", "gelu")
    positions = int(config.get("max_source_positions", 1500))
    shared: dict[str, Any] = dict(
        width=width, norm=NormSpec(kind="layer", eps=1e-5), norm_place="before"
    )
    encoder = EncoderSpec(
        **shared,
        layers=int(need(config, "encoder_layers")),
        self_attention=_attention(width, int(need(config, "encoder_attention_heads"))),
        feed_forward=FeedForwardSpec(
            width=int(need(config, "encoder_ffn_dim")), activation=activation
        ),
        position=PositionSpec(kind="learned", limit=positions),
        audio=AudioStemSpec(mel_bins=int(need(config, "num_mel_bins")), frames=2 * positions),
    )
    attention = _attention(width, int(need(config, "decoder_attention_heads")))
    decoder = DecoderSpec(
        **shared,
        layers=layers,
        self_attention=attention,
        cross_attention=attention,
        memory_width=width,
        feed_forward=FeedForwardSpec(
            width=int(need(config, "decoder_ffn_dim")), activation=activation
        ),
        position=PositionSpec(kind="learned", limit=int(config.get("max_target_positions", 448))),
        embed_scale=width**0.5 if config.get("scale_embedding") else 1.0,
        vocab_size=int(need(config, "vocab_size")),
        placement=Placement.every(layers),
    )
    start = decoder_start(config, generation)
    alignment = generation.get("alignment_heads") or config.get("alignment_heads") or ()
    return ModelSpec(
        family="whisper",
        encoder=encoder,
        decoder=decoder,
        tokens=token_spec(config, generation, decoder_start=start),
        alignment_heads=tuple((int(layer), int(head)) for layer, head in alignment),
    )


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
