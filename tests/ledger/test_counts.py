"""Weights and operations by arithmetic, against transformers and torch's own counter."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from xattn.costs import projection_flops
from xattn.counts import decoder_flops, encoder_flops, parameters
from xattn.ledger.shapes import shapes
from xattn.ledger.specs import spec_of

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
SMALL = [
    *("t5-small", "flan-t5-base", "bart-large", "nllb-600m", "whisper-tiny", "moonshine-tiny"),
    *("smollm2-135m", "qwen3-0.6b", "whisper-large-v3-turbo"),
]


def theirs(name):
    """transformers' model of a shape, without its weights."""
    config = transformers.AutoConfig.for_model(**shapes()[name].config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = getattr(transformers, KINDS[config.model_type])(config).eval()
    model.tie_weights()
    return model


def weights_of(model):
    return sum(one.numel() for one in {id(p): p for p in model.parameters()}.values())


ODD = {
    # transformers ties the head of T5 1.1, whose checkpoints have a matrix of its own.
    **{name: 32128 * width for name, width in (
        ("flan-t5-small", 512), ("flan-t5-base", 768), ("flan-t5-large", 1024),
        ("flan-t5-xl", 2048), ("flan-t5-xxl", 4096))},
    # The bias of BART's head is a buffer there.
    "bart-large": 50265,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(shapes()))
def test_weights_are_as_many_as_transformers_has(name):
    found, expected = parameters(spec_of(name)), weights_of(theirs(name)) + ODD.get(name, 0)
    if name.startswith("t5gemma2"):
        # transformers adds SigLIP's attention pooling, which the checkpoints have not.
        assert 15.1e6 < expected - found < 15.3e6
    elif name == "idefics-9b":  # the resampler's norms
        assert found == pytest.approx(expected, rel=1e-4)
    else:
        assert found == expected


@pytest.mark.parametrize("tokens", [1, 13])
@pytest.mark.parametrize("name", SMALL)
def test_operations_are_those_that_torch_counts(name, tokens):
    model, spec = theirs(name), spec_of(name)
    ids = {"decoder_input_ids": torch.zeros(1, tokens, dtype=torch.long, device="meta")}
    positions = 0
    if spec.encoder is None:
        ids = {"input_ids": ids["decoder_input_ids"]}
    elif spec.encoder.audio is not None:
        positions = spec.encoder.audio.positions
        ids["input_features"] = torch.zeros(1, spec.encoder.audio.mel_bins, 3000, device="meta")
    elif spec.encoder.wave is not None:
        positions = spec.encoder.wave.positions(4.0)
        ids["input_values"] = torch.zeros(1, 64000, device="meta")
    else:
        positions = 200
        ids["input_ids"] = torch.zeros(1, positions, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**ids)
    found = decoder_flops(spec.decoder, tokens, memories=positions)
    if spec.encoder is not None:
        found += encoder_flops(spec.encoder, positions)
        found += projection_flops(spec.decoder, positions, "materialized")
    assert found == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_a_vision_tower_is_counted_too():
    """Mllama's, which fills each tile up to a multiple of eight positions."""
    model, spec = theirs("llama-3.2-11b-vision"), spec_of("llama-3.2-11b-vision")
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        states = model.model.vision_model(
            pixel_values=torch.zeros(1, 1, 4, 3, 560, 560),
            aspect_ratio_ids=torch.ones(1, 1, dtype=torch.long),
            aspect_ratio_mask=torch.ones(1, 1, 4, dtype=torch.long),
        ).last_hidden_state
        model.model.multi_modal_projector(states)
    found = encoder_flops(spec.encoder, 4 * spec.encoder.image.encoded)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.01)
