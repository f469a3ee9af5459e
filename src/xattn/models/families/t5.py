"""T5 v1.0, v1.1, Flan and mT5 (Raffel et al. 2020; Shazeer 2020 for the gated form)."""

from functools import partial
from typing import Any

from xattn.models.families import Family
from xattn.models.families.config import (
    MOST_LAYERS,
    Config,
    decoder_start,
    flag,
    number,
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
    NormSpec,
    Placement,
    PositionSpec,
)


def family(name: str, config: Config) -> Family:
    """T5 and mT5."""
    return Family(
        name=name,
        spec=partial(spec_from_config, name),
        table=WeightTable(_pairs(gated=_is_gated(config)), ignored=IGNORED),
    )


IGNORED = (
    r"^shared\.weight$",
    r"^lm_head\.weight$",
    # Some released files keep a relative bias for cross-attention that no forward pass reads.
    r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
)


def _pairs(*, gated: bool) -> list[tuple[str, str | tuple[str, ...]]]:
    pairs: list[tuple[str, str | tuple[str, ...]]] = [
        ("encoder.embed.weight", ("encoder.embed_tokens.weight", "shared.weight")),
        ("decoder.embed.weight", ("decoder.embed_tokens.weight", "shared.weight")),
        ("decoder.head.weight", "lm_head.weight"),
    ]
    for stack in ("encoder", "decoder"):
        ours, theirs = f"{stack}.layers.{{i}}", f"{stack}.block.{{i}}.layer"
        sublayers = [("self_attn", "self_norm", "SelfAttention")]
        if stack == "decoder":
            sublayers.append(("cross_attn", "cross_norm", "EncDecAttention"))
        for place, (attention, norm, name) in enumerate(sublayers):
            pairs.append((f"{ours}.{norm}.weight", f"{theirs}.{place}.layer_norm.weight"))
            pairs += [
                (f"{ours}.{attention}.{p}.weight", f"{theirs}.{place}.{name}.{p}.weight")
                for p in ("q", "k", "v", "o")
            ]
        dense = f"{theirs}.{len(sublayers)}"
        pairs += [
            (f"{ours}.ffn_norm.weight", f"{dense}.layer_norm.weight"),
            (f"{ours}.ffn.gate.weight", f"{dense}.DenseReluDense.wi_0.weight"),
            (f"{ours}.ffn.up.weight", f"{dense}.DenseReluDense.{'wi_1' if gated else 'wi'}.weight"),
            (f"{ours}.ffn.down.weight", f"{dense}.DenseReluDense.wo.weight"),
            (f"{stack}.final_norm.weight", f"{stack}.final_layer_norm.weight"),
            (
                f"{stack}.relative_bias.weight",
                f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            ),
        ]
    return pairs


def _is_gated(config: Config) -> bool:
    return str(config.get("feed_forward_proj", "relu")).startswith("gated-")


def spec_from_config(name: str, config: Config, generation: Config) -> ModelSpec:
    """The spec of a T5: no scaling of q·k, biases nowhere, RMS norm, relative positions."""
    width, head_width = whole(config, "d_model"), whole(config, "d_kv")
    gated = _is_gated(config)
    kind = str(config.get("feed_forward_proj", "relu")).removeprefix("gated-")
    heads = whole(config, "num_heads")
    attention = AttentionSpec(heads=heads, kv_heads=heads, head_width=head_width, scale=1.0)
    shared: dict[str, Any] = dict(
        width=width,
        self_attention=attention,
        feed_forward=FeedForwardSpec(
            width=whole(config, "d_ff"),
            activation="gelu_new" if (gated and kind == "gelu") else kind,
            gated=gated,
            bias=False,
            wide_down=True,
        ),
        norm=NormSpec(kind="rms", eps=number(config, "layer_norm_epsilon", 1e-6)),
        norm_place="before",
        position=PositionSpec(
            kind="relative",
            buckets=whole(config, "relative_attention_num_buckets", 32),
            max_distance=whole(config, "relative_attention_max_distance", 128),
        ),
    )
    vocab_size, layers = whole(config, "vocab_size"), whole(config, "num_layers", most=MOST_LAYERS)
    decoder_layers = whole(config, "num_decoder_layers", layers, most=MOST_LAYERS)
    # transformers 5 writes tie_word_embeddings=true for all and keeps the difference here; whether
    # the head is a matrix of its own is then seen from the file. mT5 never scales.
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    scaled = scaled and name != "mt5"
    return ModelSpec(
        family=name,
        encoder=EncoderSpec(**shared, layers=layers, vocab_size=vocab_size),
        decoder=DecoderSpec(
            **shared,
            layers=decoder_layers,
            cross_attention=attention,
            memory_width=width,
            vocab_size=vocab_size,
            placement=Placement.every(decoder_layers),
            head_tied=flag(config, "tie_word_embeddings", True),
            head_scale=width**-0.5 if scaled else 1.0,
        ),
        tokens=token_spec(config, generation, decoder_start=decoder_start(config, generation)),
    )
