"""Shapes of published models, as their configs say them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One published model."""

    name: str
    hub_id: str
    """Where its config is published."""
    config: Config


def shapes() -> dict[str, Shape]:
    """All that are built in, by name."""
    return {shape.name: shape for shape in _ALL}


_START = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


def _t5(name: str, hub: str, width: int, ffn: int, layers: int, heads: int, head: int = 64, *,
        flan: bool = False) -> Shape:  # fmt: skip
    return Shape(
        name=name,
        hub_id=hub,
        config=_START
        | dict(
            model_type="t5",
            vocab_size=32128,
            d_model=width,
            d_kv=head,
            d_ff=ffn,
            num_layers=layers,
            num_heads=heads,
            feed_forward_proj="gated-gelu" if flan else "relu",
            tie_word_embeddings=not flan,
        ),
    )


def _whisper(size: str, width: int, layers: int, heads: int, *, mels: int = 80,
             decoder_layers: int | None = None, vocab: int = 51865) -> Shape:  # fmt: skip
    return Shape(
        name=f"whisper-{size}",
        hub_id=f"openai/whisper-{size}",
        config=dict(
            model_type="whisper",
            vocab_size=vocab,
            num_mel_bins=mels,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=decoder_layers or layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            decoder_start_token_id=50258,
            eos_token_id=50257,
        ),
    )


def _nllb(name: str, hub: str, width: int, layers: int, *, ffn: int, **more: Any) -> Shape:
    return Shape(
        name=name,
        hub_id=hub,
        config=dict(
            model_type="m2m_100",
            vocab_size=256206,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=16,
            decoder_attention_heads=16,
            encoder_ffn_dim=ffn,
            decoder_ffn_dim=ffn,
            activation_function="relu",
            scale_embedding=True,
            pad_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
        )
        | more,
    )


def _llama(
    name: str,
    hub: str,
    kind: str,
    layers: int,
    width: int,
    ffn: int,
    heads: int,
    kv: int,
    **more: Any,
) -> Shape:
    return Shape(
        name=name,
        hub_id=hub,
        config=dict(
            model_type=kind,
            hidden_size=width,
            intermediate_size=ffn,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            eos_token_id=2,
            max_position_embeddings=8192 if kind == "llama" else 40960,
        )
        | more,
    )


def _mllama(size: str, text: Mapping[str, Any], crosses: range) -> Shape:
    return Shape(
        name=f"llama-3.2-{size}-vision",
        hub_id=f"meta-llama/Llama-3.2-{size.upper()}-Vision-Instruct",
        config=dict(
            model_type="mllama",
            text_config=dict(
                vocab_size=128256,
                num_key_value_heads=8,
                max_position_embeddings=131072,
                tie_word_embeddings=False,
                cross_attention_layers=[*crosses],
                bos_token_id=128000,
                eos_token_id=128001,
                **text,
            ),
            vision_config=dict(
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_global_layers=8,
                attention_heads=16,
                image_size=560,
                patch_size=14,
                max_num_tiles=4,
                vision_output_dim=7680,
            ),
        ),
    )


def _moonshine(size: str, width: int, layers: int) -> Shape:
    return Shape(
        name=f"moonshine-{size}",
        hub_id=f"UsefulSensors/moonshine-{size}",
        config=dict(
            model_type="moonshine",
            vocab_size=32768,
            hidden_size=width,
            intermediate_size=4 * width,
            encoder_num_hidden_layers=layers,
            decoder_num_hidden_layers=layers,
            encoder_num_attention_heads=8,
            decoder_num_attention_heads=8,
            max_position_embeddings=512 if size == "base" else 194,
        ),
    )


def _gemma(
    width: int, ffn: int, layers: int, heads: int, kv: int, vocab: int, *, window: int
) -> dict[str, Any]:
    return dict(
        sliding_window=window,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=256,
        vocab_size=vocab,
    )


def _t5gemma(version: int, sizes: str, encoder: dict[str, Any], decoder: dict[str, Any]) -> Shape:
    kind = "t5gemma" if version == 1 else "t5gemma2"
    hub = f"google/t5gemma-{sizes}-ul2" if version == 1 else f"google/t5gemma-2-{sizes}"
    config: dict[str, Any] = dict(model_type=kind, encoder=encoder, decoder=decoder)
    if version == 2:
        config["encoder"] = dict(
            text_config=encoder,
            vision_config=dict(
                hidden_size=1152,
                intermediate_size=4304,
                num_hidden_layers=27,
                num_attention_heads=16,
                image_size=896,
                patch_size=14,
            ),
            mm_tokens_per_image=256,
        )
    return Shape(name=f"t5gemma{'' if version == 1 else '2'}-{sizes}", hub_id=hub, config=config)


_GEMMA_2B = _gemma(2304, 9216, 26, 8, 4, 256000, window=4096)
_GEMMA_9B = _gemma(3584, 14336, 42, 16, 8, 256000, window=4096)
_GEMMA3_270M = _gemma(640, 2048, 18, 4, 1, 262144, window=512)
_GEMMA3_1B = _gemma(1152, 6912, 26, 4, 1, 262144, window=512)
_GEMMA3_4B = _gemma(2560, 10240, 34, 8, 4, 262144, window=1024)
_SMOL: dict[str, Any] = dict(vocab_size=49152, tie_word_embeddings=True)
_QWEN: dict[str, Any] = dict(vocab_size=151936, head_dim=128, tie_word_embeddings=False)
_TIED: dict[str, Any] = _QWEN | dict(tie_word_embeddings=True)

_ALL = (
    _t5("t5-small", "google-t5/t5-small", 512, 2048, 6, 8),
    _t5("t5-base", "google-t5/t5-base", 768, 3072, 12, 12),
    _t5("t5-large", "google-t5/t5-large", 1024, 4096, 24, 16),
    _t5("t5-3b", "google-t5/t5-3b", 1024, 16384, 24, 32, 128),
    _t5("t5-11b", "google-t5/t5-11b", 1024, 65536, 24, 128, 128),
    _t5("flan-t5-small", "google/flan-t5-small", 512, 1024, 8, 6, flan=True),
    _t5("flan-t5-base", "google/flan-t5-base", 768, 2048, 12, 12, flan=True),
    _t5("flan-t5-large", "google/flan-t5-large", 1024, 2816, 24, 16, flan=True),
    _t5("flan-t5-xl", "google/flan-t5-xl", 2048, 5120, 24, 32, flan=True),
    _t5("flan-t5-xxl", "google/flan-t5-xxl", 4096, 10240, 24, 64, flan=True),
    Shape(
        name="bart-large",
        hub_id="facebook/bart-large",
        config=dict(
            model_type="bart",
            vocab_size=50265,
            d_model=1024,
            encoder_layers=12,
            decoder_layers=12,
            encoder_attention_heads=16,
            decoder_attention_heads=16,
            encoder_ffn_dim=4096,
            decoder_ffn_dim=4096,
            max_position_embeddings=1024,
            decoder_start_token_id=2,
            eos_token_id=2,
        ),
    ),
    _nllb("nllb-600m", "facebook/nllb-200-distilled-600M", 1024, 12, ffn=4096),
    _nllb("nllb-1.3b", "facebook/nllb-200-1.3B", 1024, 24, ffn=8192),
    _nllb("nllb-3.3b", "facebook/nllb-200-3.3B", 2048, 24, ffn=8192),
    _nllb(
        "nllb-54b",
        "facebook/nllb-moe-54b",
        2048,
        24,
        ffn=8192,
        model_type="nllb-moe",
        num_experts=128,
        encoder_sparse_step=4,
        decoder_sparse_step=4,
    ),
    _whisper("tiny", 384, 4, 6),
    _whisper("tiny.en", 384, 4, 6, vocab=51864),
    _whisper("base", 512, 6, 8),
    _whisper("small", 768, 12, 12),
    _whisper("medium", 1024, 24, 16),
    _whisper("large-v2", 1280, 32, 20),
    _whisper("large-v3", 1280, 32, 20, mels=128, vocab=51866),
    _whisper("large-v3-turbo", 1280, 32, 20, mels=128, vocab=51866, decoder_layers=4),
    _mllama(
        "11b",
        dict(
            hidden_size=4096, intermediate_size=14336, num_hidden_layers=40, num_attention_heads=32
        ),
        range(3, 40, 5),
    ),
    _mllama(
        "90b",
        dict(
            hidden_size=8192, intermediate_size=28672, num_hidden_layers=100, num_attention_heads=64
        ),
        range(3, 100, 5),
    ),
    _moonshine("tiny", 288, 6),
    _moonshine("base", 416, 8),
    Shape(
        name="idefics-9b",
        hub_id="HuggingFaceM4/idefics-9b",
        config=dict(
            model_type="idefics",
            vocab_size=32000,
            additional_vocab_size=2,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            cross_layer_interval=4,
            qk_layer_norms=True,
            max_position_embeddings=2048,
            use_resampler=True,
            perceiver_config=dict(
                resampler_depth=6,
                resampler_head_dim=96,
                resampler_n_heads=16,
                resampler_n_latents=64,
            ),
            vision_config=dict(
                embed_dim=1280,
                image_size=224,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=16,
                patch_size=14,
            ),
        ),
    ),
    _llama("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", "llama", 30, 576, 1536, 9, 3, **_SMOL),
    _llama("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", "llama", 32, 960, 2560, 15, 5, **_SMOL),
    _llama("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B", "llama", 24, 2048, 8192, 32, 32, **_SMOL),
    _llama("qwen3-0.6b", "Qwen/Qwen3-0.6B", "qwen3", 28, 1024, 3072, 16, 8, **_TIED),
    _llama("qwen3-1.7b", "Qwen/Qwen3-1.7B", "qwen3", 28, 2048, 6144, 16, 8, **_TIED),
    _llama("qwen3-4b", "Qwen/Qwen3-4B", "qwen3", 36, 2560, 9728, 32, 8, **_TIED),
    _llama("qwen3-8b", "Qwen/Qwen3-8B", "qwen3", 36, 4096, 12288, 32, 8, **_QWEN),
    _llama("qwen3-14b", "Qwen/Qwen3-14B", "qwen3", 40, 5120, 17408, 40, 8, **_QWEN),
    _llama("qwen3-32b", "Qwen/Qwen3-32B", "qwen3", 64, 5120, 25600, 64, 8, **_QWEN),
    _t5gemma(1, "2b-2b", _GEMMA_2B, _GEMMA_2B),
    _t5gemma(1, "9b-2b", _GEMMA_9B, _GEMMA_2B),
    _t5gemma(1, "9b-9b", _GEMMA_9B, _GEMMA_9B),
    _t5gemma(2, "270m-270m", _GEMMA3_270M, _GEMMA3_270M),
    _t5gemma(2, "1b-1b", _GEMMA3_1B, _GEMMA3_1B),
    _t5gemma(2, "4b-4b", _GEMMA3_4B, _GEMMA3_4B),
)
