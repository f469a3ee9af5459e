"""What training takes, against the formulas that everybody knows and what torch keeps."""

from dataclasses import replace

import pytest
import tiny
import torch
import transformers
from meta import counted, ids, theirs
from torch.autograd.graph import saved_tensors_hooks

import xattn
from xattn.counts import parameters
from xattn.errors import UsageError
from xattn.ledger.hardware import machine_of
from xattn.ledger.shapes import shapes
from xattn.ledger.specs import spec_from_config, spec_of
from xattn.ledger.training import (
    Data,
    activation_bytes,
    choices,
    forward_flops,
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
    assert train(spec_of("t5-small"), "lora", Data(tokens=1), H100).trained == trained


def test_a_graft_encodes_its_sources():
    """By the model itself, frozen, as torch counts it; the states of it stay, and one layer."""
    name, S = "smollm2-135m", 512
    spec, data = spec_of(name), Data(tokens=640, source_length=S, target_length=128, batch=1)
    graft = grafted(spec, 4)
    encoding, _ = counted(lambda: theirs(name).model(input_ids=ids(1, S), use_cache=True))
    found = train(spec, "graft", data, H100)
    forward = forward_flops(graft, data)
    assert found.flops - forward * (2 + found.trained / parameters(graft)) == pytest.approx(
        encoding, rel=1e-3
    )
    again = found.checkpointing_hours / found.hours
    assert again == pytest.approx((found.flops + forward) / found.flops)
    longer = train(spec, "graft", replace(data, source_length=2 * S), H100)
    layers = graft.decoder.placement.count
    of_layer = 2 * 576 + 576 + 2 * 576 + 2 * 192 + 576 + 4 * 1536
    assert longer.activations - found.activations == 2 * S * (576 + of_layer + layers * 2 * 192)


@pytest.mark.parametrize(
    ("name", "method", "lengths", "message"),
    [
        ("bart-large", "full", (100_000, 128), "`source_length` must be at most 1024"),
        ("bart-large", "lora", (512, 2000), "`target_length` must be at most 1024"),
        ("whisper-tiny", "full", (1501, 100), "`source_length` must be at most 1500"),
        ("whisper-tiny", "full", (1500, 449), "`target_length` must be at most 448"),
        ("smollm2-135m", "full", (8000, 200), "`source_length . target_length` .* 8192"),
        ("smollm2-135m", "graft", (9000, 200), "`source_length` must be at most 8192"),
    ],
)
def test_examples_are_no_longer_than_the_model_reads(name, method, lengths, message):
    data = Data(tokens=10**6, source_length=lengths[0], target_length=lengths[1])
    with pytest.raises(UsageError, match=message):
        train(spec_of(name), method, data, H100)


def test_a_graft_reads_beside_its_own_tokens():
    data = Data(tokens=10**6, source_length=8000, target_length=8000)
    assert train(spec_of("smollm2-135m"), "graft", data, H100).flops > 0


def test_the_rate_that_was_taken_is_said():
    data = Data(tokens=10**8)
    for gpu, dtype, rate in (("t4", "float16", 65e12), ("l4", "bfloat16", 121e12)):
        found = train(spec_of("t5-small"), "full", data, machine_of(gpu))
        assert found.dtype == dtype
        assert found.hours == pytest.approx(found.flops / (0.4 * rate) / 3600)


def test_a_graft_adds_cross_attention_to_some_layers():
    spec = grafted(spec_of("smollm2-135m"), 5)
    assert spec.decoder.placement.count == 6
    added = parameters(spec) - parameters(spec_of("smollm2-135m"))
    width, inner, kv = 576, 9 * 64, 3 * 64
    per_layer = 2 * width * inner + 2 * width * kv + width + 1
    assert added == 6 * per_layer + width * width + 2 * width  # and a projector


def test_gates_alone_are_a_number_a_layer():
    spec, data = spec_of("smollm2-135m"), Data(tokens=10**6)
    gates, graft = (train(spec, method, data, H100, every=5) for method in ("gates", "graft"))
    assert gates.trained == 6
    assert gates.optimiser == 6 * 12
    assert gates.weights == graft.weights
    assert gates.flops < graft.flops


def test_a_graft_is_what_graft_makes(tmp_path):
    tiny.make("llama", tmp_path, num_hidden_layers=4, hidden_size=48, head_dim=12)
    lm = xattn.load(tmp_path)
    spec = lm.spec
    model = xattn.graft(lm, encoder="itself", placement="every:2")
    assert parameters(grafted(spec, 2)) == parameters(model.spec)


def test_choices_stand_side_by_side():
    ways = {one.way: one for one in choices(spec_of("flan-t5-xl"), Data(tokens=10**8), H100)}
    prompting = ways["prompting, 8 examples"]
    assert prompting.training_dollars == 0 < prompting.dollars_per_million_requests
    assert ways["lora"].training_dollars < ways["full"].training_dollars
    assert all(one.obstacle is None for one in ways.values())
    more = prompting.dollars_per_million_requests - ways["lora"].dollars_per_million_requests
    even = ways["lora"].training_dollars / more * 1e6
    assert prompting.dollars(even) == pytest.approx(ways["lora"].dollars(even))


def test_prompting_fits_where_its_request_does():
    """T5-11B: 22.6 GB of weights, 8.9 of 5632 positions of 24 layers of 128 heads of 128."""
    small, _, _ = choices(spec_of("t5-11b"), Data(tokens=10**8), machine_of("t4"))
    assert small.obstacle == "29.5 GiB, of 16.0 GiB"
    # FLAN-T5 XL, 8 examples of 640 tokens: weights, 5632 states, 24 layers of keys and values.
    fits, *_ = choices(spec_of("flan-t5-xl"), Data(tokens=10**8), H100)
    weights = 2 * parameters(spec_of("flan-t5-xl"))
    memory = 2 * 5632 * (2048 + 24 * 2 * 2048)
    assert fits.needed_bytes == weights + memory + 2 * 128 * 24 * 2 * 2048
    long, lora, _ = choices(spec_of("bart-large"), Data(tokens=10**8), H100)
    assert long.obstacle == "5,632 positions, of 1,024"
    assert lora.obstacle is None


def test_a_request_costs_what_it_multiplies():
    """T5-small, by hand: 10 tokens in, 1 out, at 0.4 of 989e12 operations for 2.99 dollars."""
    data = Data(tokens=10**6, source_length=10, target_length=1)
    _, lora, _ = choices(spec_of("t5-small"), data, H100, shots=0)
    D, ffn, layers = 512, 2 * 512 * 2048, 6
    encoder = layers * (10 * 2 * (4 * D * D + ffn) + 4 * 100 * D)
    decoder = layers * (10 * 4 * D * D + 2 * (6 * D * D + ffn) + 44 * D) + 2 * D * 32128
    dollars = 1e6 * (encoder + decoder) / (0.4 * 989e12) * 2.99 / 3600
    assert lora.dollars_per_million_requests == pytest.approx(dollars)


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
