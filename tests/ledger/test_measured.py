"""Predicted bytes are those of the tensors that are there, in every family and setting."""

import pytest
import tiny
import torch

from xattn.decoding import Request
from xattn.decoding.search import decode
from xattn.decoding.settings import Settings
from xattn.ledger import plan, workspace
from xattn.models.build import build
from xattn.models.compiled import FEW
from xattn.models.formats import huggingface
from xattn.models.network import STAMP_WHOLE
from xattn.models.state import DecodeState
from xattn.profiling.allocation import Allocations
from xattn.spec import FORMS, is_absorbed

NEW_TOKENS = {5: 2, 17: 36, 40: 2}
"""Positions of a memory, and tokens generated: the cache grows once, or not at all."""
SETTINGS = [
    ("float32", None),
    ("bfloat16", None),
    ("float16", None),
    ("float32", "int8"),
    ("float32", "int4"),
]


def held_by(tensors):
    """Bytes of the distinct places that these tensors lie in."""
    places = {(t.data_ptr(), t.nbytes): t.nbytes for t in tensors}
    return sum(places.values())


def weights_of(network):
    """Parameters, and int8 matrices with what belongs to them; not tables that are computed."""
    computed = {
        id(module.weight)
        for name, module in network.named_modules()
        if name.endswith("positions") and not isinstance(module.weight, torch.nn.Parameter)
    }
    tensors = [*network.parameters(), *network.buffers()]
    return held_by(t for t in tensors if id(t) not in computed)


@pytest.fixture
def states(monkeypatch):
    """The states of all decoding that follows."""
    found, made = [], DecodeState.__init__

    def recorded(self, *args, **kwargs):
        made(self, *args, **kwargs)
        found.append(self)

    monkeypatch.setattr(DecodeState, "__init__", recorded)
    return found


@pytest.fixture(scope="module")
def networks(pairs):
    known = {}

    def get(name, dtype, quantize):
        if (name, dtype, quantize) not in known:
            checkpoint = huggingface.read(pairs(name).directory, name)
            known[name, dtype, quantize] = build(checkpoint, dtype=dtype, quantize=quantize)
        return known[name, dtype, quantize]

    return get


def memories_of(pair, network, length, count):
    values, _ = pair.inputs(count, length)
    if pair.decoder_only:
        return [kv_memory(network, row) for row in values.tolist()]
    found = pair.memories(values)
    dtype = network.dtype
    return [type(m)(**{**vars(m), "states_SD": m.states_SD.to(dtype)}) for m in found]


def kv_memory(network, ids):
    from xattn.memory import KV_PREPROCESSING, Memory, MemoryKey, SpanTable

    key = MemoryKey(
        source=f"{ids}",
        modality="text",
        preprocessing=f"{KV_PREPROCESSING} test",
        encoder="test",
        dtype=str(network.dtype).removeprefix("torch."),
    )
    kv_SF = network.encode_kv(ids)
    return Memory(states_SD=kv_SF, key=key, spans=SpanTable.even(len(ids), 1.0, "tokens"))


@pytest.mark.parametrize(("dtype", "quantize"), SETTINGS)
@pytest.mark.parametrize("name", tiny.TINY)
def test_predicted_is_measured(pairs, networks, states, name, dtype, quantize):
    pair, network = pairs(name), networks(name, dtype, quantize)
    spec, goes_on = network.spec, pairs(name).decoder_only
    kind = "audio" if name == "whisper" else "document"
    obstacle = goes_on or spec.decoder.cross_attention.absorption_obstacle
    for length, new_tokens in NEW_TOKENS.items():
        for batch in (1, 2):
            memories = memories_of(pair, network, length, batch)
            positions = len(memories[0])
            for beams in (1, 4):
                for form in FORMS:
                    if is_absorbed(form) and obstacle:
                        continue
                    ledger = plan(
                        spec,
                        {kind: positions},
                        batch=batch,
                        beams=beams,
                        form=form,
                        dtype=dtype,
                        weights_dtype=quantize or dtype,
                        prompt_tokens=3,
                        new_tokens=new_tokens,
                    )
                    states.clear()
                    requests = [Request((2, 5, 9), (memory,)) for memory in memories]
                    run(network, requests, beams, new_tokens, form)
                    state = max(states, key=lambda one: one.size_bytes)
                    where = (length, batch, beams, form)
                    held = sum(memory.states_SD.nbytes for memory in memories)
                    assert ledger.of("states") == held, where
                    read = ledger.of("keys and values") + ledger.of("int8 states")
                    aliased = form == "absorbed" or (goes_on and form == "materialized")
                    assert state.cross_bytes == (held if aliased else read), where
                    cache = ledger.of("self-attention cache")
                    assert state.size_bytes == pytest.approx(cache, rel=0.02), where
                    found = weights_of(network)
                    assert found == pytest.approx(ledger.of("weights"), rel=0.02), where


def run(network, requests, beams, new_tokens, form):
    settings = Settings(
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, num_beams=beams, eos_token_id=()
    )
    return decode(network, requests, settings, None, form=form)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "length"), [("t5", 700), ("bart", 60), ("llama", 60)])
def test_workspace_bounds_what_is_made_for_a_while(pairs, states, name, length, form, kernels):
    """Encoding, a long prompt, steps and their choices: every tensor that torch makes."""
    pair, beams, prompt = pairs(name), 4, (2, *[5] * 20)
    network, spec = pair.ours, pair.ours.spec
    if is_absorbed(form) and pair.decoder_only:
        pytest.skip("keys and values are not absorbed")
    with Allocations() as seen:
        with seen.tagged("encode"):
            [memory] = memories_of(pair, network, length, 1)
        network.use_kernels = kernels
        try:
            with seen.tagged("decode"):
                run(network, [Request(prompt, (memory,))], beams, 30, form)
        finally:
            network.use_kernels = True
    ledger = plan(
        spec,
        {"document": len(memory)},
        beams=beams,
        form=form,
        prompt_tokens=len(prompt),
        new_tokens=30,
    )
    state = max(states, key=lambda one: one.size_bytes)
    aliased = form == "absorbed" or (pair.decoder_only and form == "materialized")
    held = state.size_bytes + (0 if aliased else state.cross_bytes)
    needed = max(seen.working["encode"], seen.working["decode"] - held)
    assert ledger.of("workspace") / 20 < needed <= ledger.of("workspace")


def test_kernels_take_what_workspace_says_they_do():
    assert workspace.KERNEL_TOKENS == FEW
    assert workspace.LOOKED_AT == STAMP_WHOLE
