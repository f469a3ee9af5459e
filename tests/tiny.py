"""Small random models of every family, made by transformers and saved as it saves them.

Weights are drawn wide enough that outputs depend on the input and tokens vary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

VOCAB = 99


@dataclass(frozen=True)
class Tiny:
    """How to make one: the names of transformers' config and model class, and their arguments."""

    config: str
    model: str
    arguments: dict[str, Any]
    text_input: bool = True
    decoder_only: bool = False


_SEQ2SEQ = dict(
    vocab_size=VOCAB,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=56,
    max_position_embeddings=64,
    pad_token_id=1,
    bos_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=2,
    forced_eos_token_id=None,
    forced_bos_token_id=None,
)
_T5 = dict(
    vocab_size=VOCAB,
    d_model=32,
    d_kv=8,
    d_ff=48,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=4,
    pad_token_id=0,
    eos_token_id=1,
    decoder_start_token_id=0,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=12,
)
_LLAMA = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)

TINY: dict[str, Tiny] = {
    "t5": Tiny("T5Config", "T5ForConditionalGeneration", {**_T5, "feed_forward_proj": "relu"}),
    "t5-v1.1-untied-wide-heads": Tiny(
        "T5Config",
        "T5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "d_kv": 12, "tie_word_embeddings": False},
    ),
    "mt5": Tiny(
        "MT5Config",
        "MT5ForConditionalGeneration",
        # transformers 5.23 sizes mT5's cache by the encoder's layers.
        {**_T5, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 2},
    ),
    "bart": Tiny("BartConfig", "BartForConditionalGeneration", _SEQ2SEQ),
    "mbart": Tiny(
        "MBartConfig", "MBartForConditionalGeneration", {**_SEQ2SEQ, "scale_embedding": True}
    ),
    "marian": Tiny(
        "MarianConfig",
        "MarianMTModel",
        {**_SEQ2SEQ, "scale_embedding": True, "activation_function": "swish"},
    ),
    "m2m_100": Tiny(
        "M2M100Config",
        "M2M100ForConditionalGeneration",
        {**_SEQ2SEQ, "scale_embedding": True, "activation_function": "relu"},
    ),
    "whisper": Tiny(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            **{k: v for k, v in _SEQ2SEQ.items() if k != "max_position_embeddings"},
            "num_mel_bins": 8,
            "max_source_positions": 30,
            "max_target_positions": 64,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        text_input=False,
    ),
    "llama": Tiny("LlamaConfig", "LlamaForCausalLM", _LLAMA, decoder_only=True),
    "llama3-tied": Tiny(
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            **_LLAMA,
            "tie_word_embeddings": True,
            "head_dim": 12,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
        decoder_only=True,
    ),
    "qwen2": Tiny("Qwen2Config", "Qwen2ForCausalLM", _LLAMA, decoder_only=True),
    "qwen3": Tiny("Qwen3Config", "Qwen3ForCausalLM", {**_LLAMA, "head_dim": 12}, decoder_only=True),
}
SEQ2SEQ = [name for name, tiny in TINY.items() if not tiny.decoder_only]
DECODER_ONLY = [name for name, tiny in TINY.items() if tiny.decoder_only]


def make(name: str, directory: Path, *, seed: int = 0, **changes: Any) -> Any:
    """Save the tiny model ``name`` into ``directory``; returns transformers' own, in eval mode.

    ``changes`` are entries of its config that differ from the usual ones.
    """
    import transformers

    tiny = TINY[name]
    torch.manual_seed(seed)
    config = getattr(transformers, tiny.config)(**{**tiny.arguments, **changes})
    config._attn_implementation = "eager"
    model = getattr(transformers, tiny.model)(config).eval()
    _widen(model)
    model.save_pretrained(directory)
    return model


def _widen(model: torch.nn.Module) -> None:
    """Larger random weights than any initialiser's; biases and norms leave their defaults."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
            elif "embed_positions" not in name:
                spread = 0.5 if "embed" in name or "shared" in name else 0.8
                width = parameter.shape[-1] ** 0.5
                parameter.copy_(
                    spread * torch.randn(parameter.shape, generator=generator) / width * 2
                )
        for name, buffer in model.named_buffers():
            if name.endswith("final_logits_bias"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))


def memory_heavy(directory: Path) -> str:
    """Few layers to encode, many to decode, and a small vocabulary: memories are most of it."""
    import transformers

    config = transformers.T5Config(
        vocab_size=512,
        d_model=256,
        d_kv=64,
        num_heads=8,
        d_ff=512,
        num_layers=1,
        num_decoder_layers=12,
        decoder_start_token_id=0,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(directory)
    return str(directory)


def hf_memory_inputs(
    name: str, sources: int, length: int, *, seed: int = 3
) -> tuple[torch.Tensor, Callable[[torch.Tensor], dict[str, torch.Tensor]]]:
    """Random encoder inputs, and how transformers wants them named."""
    tiny, generator = TINY[name], torch.Generator().manual_seed(seed)
    if tiny.text_input:
        ids = torch.randint(3, VOCAB, (sources, length), generator=generator)
        return ids, lambda x: {"input_ids": x}
    mel = torch.randn(sources, 8, 60, generator=generator)
    return mel, lambda x: {"input_features": x}
