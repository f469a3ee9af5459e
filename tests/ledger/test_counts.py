"""Weights and operations by arithmetic, against transformers and torch's own counter."""

import pytest
import torch
import transformers
from meta import counted, ids, theirs
from torch.utils.flop_counter import FlopCounterMode

from xattn.costs import projection_flops
from xattn.counts import decoder_flops, encoder_flops, head_flops, parameters
from xattn.ledger import plan
from xattn.ledger.shapes import shapes
from xattn.ledger.specs import spec_of

SMALL = [
    *("t5-small", "flan-t5-base", "bart-large", "nllb-600m", "whisper-tiny", "moonshine-tiny"),
    *("smollm2-135m", "qwen3-0.6b", "whisper-large-v3-turbo"),
]


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


@pytest.mark.parametrize("name", ["t5-small", "bart-large", "nllb-600m"])
def test_a_plan_as_a_whole_is_what_torch_counts(name):
    """Encoding, projecting and a prompt; then a step after it."""
    model, spec, S, N = theirs(name), spec_of(name), 200, 13
    encoded, states = counted(lambda: model.get_encoder()(input_ids=ids(1, S)))
    given = {"encoder_outputs": states, "use_cache": True}
    prompted, seen = counted(lambda: model(decoder_input_ids=ids(1, N), **given))
    past = {**given, "past_key_values": seen.past_key_values}
    step, _ = counted(lambda: model(decoder_input_ids=ids(1, 1), **past))
    ledger = plan(spec, {"document": S}, prompt_tokens=N, new_tokens=1)
    others = (N - 1) * head_flops(spec.decoder)  # transformers makes logits of all the prompt
    assert ledger.encode_flops == pytest.approx(encoded + prompted - others, rel=1e-3)
    assert ledger.sum("step_flops") == pytest.approx(step, rel=1e-3)


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen3-0.6b"])
@pytest.mark.parametrize("documents", [1, 3])
def test_prompts_of_decoder_only_models_read_their_documents(name, documents):
    model, spec, S, N = theirs(name), spec_of(name), 2000, 100
    # One after the other: each document is encoded alone, and the prompt reads them all.
    first, one = counted(lambda: model(input_ids=ids(1, S), use_cache=True, logits_to_keep=1))
    cache = one.past_key_values
    for layer in cache.layers:
        layer.keys, layer.values = (
            torch.cat([kv] * documents, dim=2) for kv in (layer.keys, layer.values)
        )
    given = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    prompted, _ = counted(lambda: model(input_ids=ids(1, N), **given))
    step, _ = counted(lambda: model(input_ids=ids(1, 1), **given))
    ledger = plan(spec, {"document": f"{documents}x{S}"}, prompt_tokens=N, new_tokens=1)
    encoded = documents * (first - head_flops(spec.decoder))
    assert ledger.encode_flops == pytest.approx(encoded + prompted, rel=1e-3)
    assert ledger.sum("step_flops") == pytest.approx(step, rel=1e-3)


@pytest.mark.parametrize("form", ["materialized", "absorbed"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_forms_multiply_as_much_as_torch_counts_of_ours(pairs, name, form):
    network, S, N = pairs(name).ours, 50, 4
    [memory] = pairs(name).memories(pairs(name).inputs(1, S)[0])
    network.use_kernels = False
    try:
        encoded, _ = counted(lambda: network.encode_tokens([[5] * S]))
        projected, projection = counted(lambda: network.project(memory, form=form))
        state = network.start([[projection]], form=form)
        prompted, _ = counted(lambda: network.step(torch.zeros(1, N, dtype=torch.long), state))
        step, _ = counted(lambda: network.step(torch.zeros(1, 1, dtype=torch.long), state))
    finally:
        network.use_kernels = True
    ledger = plan(network.spec, {"document": S}, prompt_tokens=N, new_tokens=1, form=form)
    found = encoded + projected + prompted
    assert ledger.encode_flops == pytest.approx(found, rel=0.01)
    assert ledger.sum("step_flops") == pytest.approx(step, rel=0.01)


@pytest.mark.parametrize("tokens", [1, 511, 512, 513, 4095, 4096, 8001])
@pytest.mark.parametrize(
    "name", ["t5gemma-2b-2b", "t5gemma2-270m-270m", "t5gemma2-4b-4b", "smollm2-135m", "t5-small"]
)
def test_windows_bound_the_cache_as_in_transformers(name, tokens):
    spec, config = spec_of(name), theirs(name).config
    decoder = getattr(config, "decoder", config)
    cache, own = transformers.DynamicCache(config=decoder), spec.decoder.self_attention
    for layer in range(spec.decoder.layers):
        for fed in (tokens - 1, 1):
            shape = (1, own.kv_heads, fed, own.head_width)
            kv = torch.zeros(shape, device="meta", dtype=torch.bfloat16)
            cache.update(kv, kv, layer)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert spec.decoder.self_cache_bytes(tokens, dtype="bfloat16") == held


def test_a_step_reads_no_further_than_its_windows():
    """T5Gemma 2 270M: 15 layers of 18 see 512 tokens, the new one among them."""
    decoder = spec_of("t5gemma2-270m-270m").decoder
    near, far = decoder_flops(decoder, 1, seen=511), decoder_flops(decoder, 1, seen=10_000)
    assert far - near == 3 * 4 * 4 * 256 * (10_000 - 511)


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
