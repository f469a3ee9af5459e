"""transformers' models of built-in shapes, without their weights, and what torch counts of them."""

import math

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from xattn.ledger.shapes import shapes

KINDS = {
    "t5": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
    "m2m_100": "M2M100ForConditionalGeneration",
    "nllb-moe": "NllbMoeForConditionalGeneration",
    "whisper": "WhisperForConditionalGeneration",
    "mllama": "MllamaForConditionalGeneration",
    "moonshine": "MoonshineForConditionalGeneration",
    "idefics": "IdeficsForVisionText2Text",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "t5gemma": "T5GemmaForConditionalGeneration",
    "t5gemma2": "T5Gemma2ForConditionalGeneration",
}


def theirs(name):
    """transformers' model of a shape, without its weights."""
    config = transformers.AutoConfig.for_model(**shapes()[name].config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = getattr(transformers, KINDS[config.model_type])(config).eval()
    model.tie_weights()
    return model


OURS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **named: (
        sdpa_flop_count(q, k, v)
    ),
}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    OURS[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *args, **named: (
        2 * math.prod(x) * weight[0]
    )
"""Products on a CPU that the counter does not know, counted as those that it does."""


def counted(run):
    """Operations that torch counts, and what came of it."""
    with FlopCounterMode(display=False, custom_mapping=OURS) as counter, torch.no_grad():
        found = run()
    return counter.get_total_flops(), found


def ids(*shape):
    return torch.zeros(*shape, dtype=torch.long, device="meta")
