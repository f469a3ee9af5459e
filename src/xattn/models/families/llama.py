"""Llama-style decoder-only language models: Llama, SmolLM2, Qwen2, Qwen3.

Touvron et al. 2023 (Llama), Qwen Team 2024 and 2025. RMS norm, rotary positions, grouped heads,
SwiGLU; Qwen2 has biases on q, k and v, Qwen3 a norm on each head's query and key.
"""

from collections.abc import Mapping
from functools import partial

from xattn.errors import CorruptCheckpointError, UnsupportedModelError
from xattn.models.families import Family
from xattn.models.families.config import (
    MOST_LAYERS,
    Config,
    flag,
    number,
    refuse,
    token_spec,
    whole,
)
from xattn.models.weights import WeightTable
from xattn.spec import (
    AttentionSpec,
    DecoderSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    Placement,
    PositionSpec,
    RotaryScaling,
)


def family(name: str, config: Config) -> Family:
    """Llama (and SmolLM2, which says it is one), Qwen2 or Qwen3."""
    return Family(
        name=name,
        spec=partial(spec_from_config, name),
        table=WeightTable(_pairs(), ignored=(r"rotary_emb\.inv_freq$", r"^lm_head\.weight$")),
    )


def _pairs() -> list[tuple[str, str | tuple[str, ...]]]:
    ours, theirs = "decoder.layers.{i}", "model.layers.{i}"
    pairs: list[tuple[str, str | tuple[str, ...]]] = [
        ("decoder.embed.weight", "model.embed_tokens.weight"),
        ("decoder.final_norm.weight", "model.norm.weight"),
        ("decoder.head.weight", "lm_head.weight"),
        (f"{ours}.self_norm.weight", f"{theirs}.input_layernorm.weight"),
        (f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight"),
        (f"{ours}.self_attn.q_norm.weight", f"{theirs}.self_attn.q_norm.weight"),
        (f"{ours}.self_attn.k_norm.weight", f"{theirs}.self_attn.k_norm.weight"),
    ]
    for kind in ("weight", "bias"):
        pairs += [
            (f"{ours}.self_attn.{p}.{kind}", f"{theirs}.self_attn.{p}_proj.{kind}") for p in "qkvo"
        ]
        pairs += [
            (f"{ours}.ffn.{p}.{kind}", f"{theirs}.mlp.{p}_proj.{kind}")
            for p in ("gate", "up", "down")
        ]
    return pairs


def spec_from_config(name: str, config: Config, generation: Config) -> ModelSpec:
    """The spec of a Llama-style model; refuses sliding windows and unknown rotary scalings."""
    refuse(config, "use_sliding_window", False)
    width, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    head_width = whole(config, "head_dim", 128 if name == "qwen3" else width // heads)
    norm = NormSpec(kind="rms", eps=number(config, "rms_norm_eps", 1e-6))
    bias = flag(config, "attention_bias", False)
    layers = whole(config, "num_hidden_layers", most=MOST_LAYERS)
    attention = AttentionSpec(
        heads=heads,
        kv_heads=whole(config, "num_key_value_heads", heads),
        head_width=head_width,
        scale=head_width**-0.5,
        q_bias=bias or name == "qwen2",
        k_bias=bias or name == "qwen2",
        v_bias=bias or name == "qwen2",
        o_bias=bias,
        qk_norm=norm if name == "qwen3" else None,
        rotary=True,
    )
    theta, scaling = rotary_settings(config)
    decoder = DecoderSpec(
        width=width,
        layers=layers,
        self_attention=attention,
        feed_forward=FeedForwardSpec(
            width=whole(config, "intermediate_size"),
            activation=config.get("hidden_act", "silu"),
            gated=True,
            bias=flag(config, "mlp_bias", False),
        ),
        norm=norm,
        norm_place="before",
        position=PositionSpec(
            kind="rotary",
            limit=whole(config, "max_position_embeddings", 2048),
            theta=theta,
            scaling=scaling,
        ),
        vocab_size=whole(config, "vocab_size"),
        placement=Placement.none(layers),
        head_tied=flag(config, "tie_word_embeddings", False),
    )
    tokens = token_spec(config, generation, decoder_start=None)
    return ModelSpec(family=name, decoder=decoder, tokens=tokens)


def rotary_settings(config: Config) -> tuple[float, RotaryScaling | None]:
    """Base wavelength and scaling, from ``rope_parameters`` (transformers 5) or the older names."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise CorruptCheckpointError(
            f"config.json: the rotary settings must be an object: {given!r}."
        )
    theta = number(given, "rope_theta", number(config, "rope_theta", 10000.0))
    kind = given.get("rope_type") or given.get("type") or "default"
    if number(given, "partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("config.json: a partial_rotary_factor other than 1 is not run.")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RotaryScaling(kind="linear", factor=number(given, "factor"))
    if kind == "llama3":
        return theta, RotaryScaling(
            kind="llama3",
            factor=number(given, "factor"),
            low_frequency_factor=number(given, "low_freq_factor"),
            high_frequency_factor=number(given, "high_freq_factor"),
            original_positions=whole(given, "original_max_position_embeddings"),
        )
    raise UnsupportedModelError(
        "config.json: `rope_type` must be one of default, linear, llama3, "
        f"but is {kind!r} instead; xattn does not run this variant."
    )
