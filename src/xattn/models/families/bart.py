"""BART, mBART, Marian and M2M100/NLLB: one tree of tensor names, four sets of choices.

Lewis et al. 2019 (BART), Liu et al. 2020 (mBART), Junczys-Dowmunt et al. 2018 (Marian), Fan et al.
2020 (M2M100), NLLB Team 2022.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from xattn.errors import UnsupportedModelError
from xattn.models.families import Family
from xattn.models.families.bart_names import stack_names
from xattn.models.families.config import (
    MOST_LAYERS,
    Config,
    decoder_start,
    flag,
    refuse,
    token_spec,
    whole,
)
from xattn.models.weights import WeightTable
from xattn.spec import (
    AttentionSpec,
    DecoderSpec,
    EncoderSpec,
    FeedForwardSpec,
    ModelSpec,
    NormPlace,
    NormSpec,
    Placement,
    PositionSpec,
)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Where the four differ and their configs do not say so."""

    norm_place: NormPlace
    embedding_norm: bool
    final_norm: bool
    position: PositionSpec
    """Without the limit, which the config gives."""
    limited: bool = True
    head_bias: bool = True


CHOICES = {
    "bart": Choices(
        norm_place="after",
        embedding_norm=True,
        final_norm=False,
        position=PositionSpec(kind="learned", offset=2),
    ),
    "mbart": Choices(
        norm_place="before",
        embedding_norm=True,
        final_norm=True,
        position=PositionSpec(kind="learned", offset=2),
    ),
    "marian": Choices(
        norm_place="after",
        embedding_norm=False,
        final_norm=False,
        position=PositionSpec(kind="sinusoidal", stored=False),
    ),
    "m2m_100": Choices(
        norm_place="before",
        embedding_norm=False,
        final_norm=True,
        position=PositionSpec(kind="sinusoidal", offset=2, half_minus_one=True, stored=False),
        limited=False,
        head_bias=False,
    ),
}


def family(name: str, config: Config) -> Family:
    """BART, mBART, Marian or M2M100, by ``model_type``; the config does not change the names."""
    return Family(
        name=name,
        spec=partial(spec_from_config, name, CHOICES[name]),
        table=WeightTable(
            [*stack_names("encoder"), *stack_names("decoder"), *VOCABULARY], ignored=IGNORED
        ),
    )


VOCABULARY: list[tuple[str, str | tuple[str, ...]]] = [
    ("encoder.embed.weight", ("model.encoder.embed_tokens.weight", "model.shared.weight")),
    ("decoder.embed.weight", ("model.decoder.embed_tokens.weight", "model.shared.weight")),
    ("decoder.head.weight", "lm_head.weight"),
    ("decoder.head.bias", "final_logits_bias"),
]
IGNORED = (
    r"embed_positions\.(weight|weights)$",
    r"^lm_head\.weight$",
    r"^model\.shared\.weight$",
)


def spec_from_config(name: str, choices: Choices, config: Config, generation: Config) -> ModelSpec:
    """The spec of a BART-like model; refuses variants that no released checkpoint of these uses."""
    if name == "marian":
        refuse(config, "normalize_before", False)
        refuse(config, "normalize_embedding", False)
    width = whole(config, "d_model")
    limit = whole(config, "max_position_embeddings", 1024) if choices.limited else None
    position = replace(choices.position, limit=limit)
    if choices.position.half_minus_one:
        # As in fairseq: the table's rows up to the padding token are no position.
        position = replace(position, offset=whole(config, "pad_token_id", 1, least=0) + 1)
    shared: dict[str, Any] = dict(
        width=width,
        norm=NormSpec(kind="layer", eps=1e-5),
        norm_place=choices.norm_place,
        position=position,
        embedding_norm=choices.embedding_norm,
        final_norm=choices.final_norm,
        embed_scale=math.sqrt(width) if config.get("scale_embedding") else 1.0,
    )

    activation = config.get("activation_function", "gelu")
    vocab_size = whole(config, "vocab_size")
    encoder = EncoderSpec(
        **shared,
        layers=whole(config, "encoder_layers", most=MOST_LAYERS),
        self_attention=_attention(width, whole(config, "encoder_attention_heads")),
        feed_forward=FeedForwardSpec(width=whole(config, "encoder_ffn_dim"), activation=activation),
        vocab_size=vocab_size,
    )
    layers = whole(config, "decoder_layers", most=MOST_LAYERS)
    attention = _attention(width, whole(config, "decoder_attention_heads"))
    decoder = DecoderSpec(
        **shared,
        layers=layers,
        self_attention=attention,
        cross_attention=attention,
        memory_width=width,
        feed_forward=FeedForwardSpec(width=whole(config, "decoder_ffn_dim"), activation=activation),
        vocab_size=whole(config, "decoder_vocab_size", vocab_size),
        placement=Placement.every(layers),
        head_tied=flag(config, "tie_word_embeddings", True),
        head_bias=choices.head_bias,
    )
    start = decoder_start(config, generation)
    tokens = token_spec(config, generation, decoder_start=start)
    return ModelSpec(family=name, encoder=encoder, decoder=decoder, tokens=tokens)


def _attention(width: int, heads: int) -> AttentionSpec:
    """Heads that share the width, with biases everywhere."""
    if width % heads:
        raise UnsupportedModelError(
            f"config.json: d_model must be a multiple of the number of heads ({heads}), "
            f"but is {width} instead."
        )
    return AttentionSpec(
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        scale=(width // heads) ** -0.5,
        q_bias=True,
        k_bias=True,
        v_bias=True,
        o_bias=True,
    )
