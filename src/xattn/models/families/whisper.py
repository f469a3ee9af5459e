"""Whisper (Radford et al. 2022): the BART tree before norms, an audio stem, a tied head."""

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
    heads = {
        stack: int(need(config, f"{stack}_attention_heads")) for stack in ("encoder", "decoder")
    }
    layers = int(need(config, "decoder_layers"))
    mel_bins = int(need(config, "num_mel_bins"))
    alignment = generation.get("alignment_heads") or config.get("alignment_heads") or ()
    return whisper_spec(
        width=int(need(config, "d_model")),
        encoder_layers=int(need(config, "encoder_layers")),
        decoder_layers=layers,
        encoder_heads=heads["encoder"],
        decoder_heads=heads["decoder"],
        encoder_inner=int(need(config, "encoder_ffn_dim")),
        decoder_inner=int(need(config, "decoder_ffn_dim")),
        vocab_size=int(need(config, "vocab_size")),
        mel_bins=mel_bins,
        source_positions=int(config.get("max_source_positions", 1500)),
        target_positions=int(config.get("max_target_positions", 448)),
        activation=config.get("activation_function", "gelu"),
        embed_scale=int(need(config, "d_model")) ** 0.5 if config.get("scale_embedding") else 1.0,
        tokens_config=config,
        generation=generation,
        alignment_heads=tuple((int(layer), int(head)) for layer, head in alignment),
    )


def whisper_spec(
    *,
    width: int,
    encoder_layers: int,
    decoder_layers: int,
    encoder_heads: int,
    decoder_heads: int,
    encoder_inner: int,
    decoder_inner: int,
    vocab_size: int,
    mel_bins: int,
    source_positions: int,
    target_positions: int,
    activation: str,
    embed_scale: float,
    tokens_config: Config,
    generation: Config,
    alignment_heads: tuple[tuple[int, int], ...],
) -> ModelSpec:
    """The spec from Whisper's own dimensions, whichever format they were read from."""

    def attention(heads: int) -> AttentionSpec:
        head_width = width // heads
        return AttentionSpec(
            heads=heads,
            kv_heads=heads,
            head_width=head_width,
            scale=head_width**-0.5,
            q_bias=True,
            v_bias=True,
            o_bias=True,
        )

    norm = NormSpec(kind="layer", eps=1e-5)
    encoder = EncoderSpec(
        width=width,
        layers=encoder_layers,
        self_attention=attention(encoder_heads),
        feed_forward=FeedForwardSpec(width=encoder_inner, activation=activation),
        norm=norm,
        norm_place="before",
        position=PositionSpec(kind="learned", limit=source_positions),
        audio=AudioStemSpec(mel_bins=mel_bins, frames=2 * source_positions),
    )
    decoder = DecoderSpec(
        width=width,
        layers=decoder_layers,
        self_attention=attention(decoder_heads),
        cross_attention=attention(decoder_heads),
        memory_width=width,
        feed_forward=FeedForwardSpec(width=decoder_inner, activation=activation),
        norm=norm,
        norm_place="before",
        position=PositionSpec(kind="learned", limit=target_positions),
        embed_scale=embed_scale,
        vocab_size=vocab_size,
        placement=Placement.every(decoder_layers),
    )
    start = decoder_start(tokens_config, generation)
    return ModelSpec(
        family="whisper",
        encoder=encoder,
        decoder=decoder,
        tokens=token_spec(tokens_config, generation, decoder_start=start),
        alignment_heads=alignment_heads,
        extras={
            "language_ids": {
                token.strip("<|>"): int(number)
                for token, number in (generation.get("lang_to_id") or {}).items()
            },
            "multilingual": bool(generation.get("is_multilingual", vocab_size >= 51865)),
        },
    )
