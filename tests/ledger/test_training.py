"""What training takes, against the formulas that everybody knows and what torch keeps."""

import pytest
import torch
import transformers
from torch.autograd.graph import saved_tensors_hooks

from xattn.counts import parameters
from xattn.ledger.hardware import machine_of
from xattn.ledger.shapes import shapes
from xattn.ledger.specs import spec_from_config, spec_of
from xattn.ledger.training import (
    Data,
    activation_bytes,
    choices,
    grafted,
    lora_parameters,
    train,
)

H100 = machine_of("h100")


def test_training_whole_is_six_operations_a_weight_and_token():
    """Kaplan et al. 2020; of a model whose vocabulary is small beside its layers."""
    data = Data(tokens=10**9, source_length=256, target_length=256)
    found = train(spec_of("qwen3-8b"), "full", data, H100)
    assert found.flops == pytest.approx(6 * parameters(spec_of("qwen3-8b")) * 1e9, rel=0.1)
    assert found.weights + found.gradients + found.optimiser == 16 * found.trained
    seconds = found.flops / (989e12 * 0.4)
    assert found.hours == pytest.approx(seconds / 3600)
    assert found.dollars == pytest.approx(found.hours * 2.99)


def test_frozen_weights_need_no_gradient():
    data = Data(tokens=10**8)
    full, lora = (train(spec_of("flan-t5-xl"), m, data, H100) for m in ("full", "lora"))
    assert lora.flops == pytest.approx(2 / 3 * full.flops, rel=0.02)
    assert lora.optimiser == 12 * lora.trained
    assert lora.total_bytes < full.total_bytes
    assert lora.checkpointed_bytes < lora.total_bytes


def test_lora_is_two_thin_matrices_beside_each_of_attentions():
    """Hu et al. 2021, counted on transformers' own modules."""
    config = transformers.AutoConfig.for_model(**shapes()["t5-small"].config)
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(config)
    trained = sum(
        16 * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("q", "k", "v", "o")
    )
    assert lora_parameters(spec_of("t5-small"), 16) == trained


def test_a_graft_adds_cross_attention_to_some_layers():
    spec = grafted(spec_of("smollm2-135m"), 5)
    assert spec.decoder.placement.count == 6
    added = parameters(spec) - parameters(spec_of("smollm2-135m"))
    width, inner, kv = 576, 9 * 64, 3 * 64
    per_layer = 2 * width * inner + 2 * width * kv + width + 2
    assert added == 6 * per_layer


def test_choices_stand_side_by_side():
    ways = {one.way: one for one in choices(spec_of("flan-t5-xl"), Data(tokens=10**8), H100)}
    prompting = ways["prompting, 8 examples"]
    assert prompting.training_dollars == 0 < prompting.dollars_per_million_requests
    assert ways["lora"].training_dollars < ways["full"].training_dollars
    even = ways["lora"].training_dollars / prompting.dollars_per_million_requests * 1e6
    assert prompting.dollars(even) == pytest.approx(ways["lora"].dollars(even))


SMALL = {
    "BartForConditionalGeneration": dict(
        model_type="bart",
        vocab_size=1000,
        d_model=256,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=1024,
        decoder_ffn_dim=1024,
        decoder_start_token_id=2,
    ),
    "LlamaForCausalLM": dict(
        model_type="llama",
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=2,
    ),
}


@pytest.mark.parametrize("kind", SMALL)
def test_activations_are_about_what_torch_keeps(kind):
    """Of transformers' model in training, in float32, without dropout and without scores."""
    none = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    config = transformers.AutoConfig.for_model(**SMALL[kind] | none)
    config._attn_implementation = "sdpa"
    model = getattr(transformers, kind)(config).train()
    B, S, T, kept = 2, 512, 128, {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point():
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    ids = torch.randint(3, 900, (B, S + T))
    given = {"input_ids": ids}
    if kind.startswith("Bart"):
        given = {"input_ids": ids[:, :S], "decoder_input_ids": ids[:, S:]}
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(**given, use_cache=False).logits
        flat = logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(flat, torch.zeros(len(flat), dtype=torch.long))
        assert loss.requires_grad
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = sum(size for place, (_, size) in kept.items() if place not in weights)
    data = Data(tokens=1, source_length=S, target_length=T, batch=B)
    spec = spec_from_config(SMALL[kind])
    logit_bytes = 8 * B * (S + T if spec.encoder is None else T) * 1000
    predicted = 2 * (activation_bytes(spec, data, checkpointing=False) - logit_bytes) + logit_bytes
    assert predicted == pytest.approx(found, rel=0.3)
