"""Narrow weights: kernels, torch, and a model of floats that rounds as they do, say the same."""

import pytest
import tiny
import torch
from pairs import memory_of, random_tokens
from torch import nn

from xattn.models import narrow, nibbles
from xattn.models.build import QUANTISED, build
from xattn.models.decoder import Head
from xattn.models.formats import huggingface
from xattn.models.layers import FeedForward
from xattn.models.narrow import NarrowEmbedding, NarrowMatrix

WAYS = ["kernels", "products", "torch"]
"""The whole step by kernels; products by them, and the rest by torch; all by torch."""


def rounded(x, *, careful=False):
    """Each row in steps, 127 for its largest number; careful ones have a 254th of a step too."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127
    near = (x / scale).round()
    rest = ((x / scale - near) * 254).round() / 254 if careful else 0.0
    return (near + rest) * scale


def of_sixteen(weight_OI):
    """Each 32 weights of an output as the nearest of 16 steps, in float16, from their least."""
    found = torch.empty_like(weight_OI)
    for start in range(0, weight_OI.shape[1], 32):
        some = weight_OI[:, start : start + 32]
        least, most = some.amin(dim=1, keepdim=True), some.amax(dim=1, keepdim=True)
        step, least = ((most - least) / 15).half().float(), least.half().float()
        steps = ((some - least) / step.clamp(min=1e-30)).round().clamp(0, 15)
        found[:, start : start + 32] = least + step * steps
    return found


def round_inputs(module, *, careful):
    module.register_forward_pre_hook(
        lambda _, inputs: (rounded(inputs[0], careful=careful), *inputs[1:])
    )


def rounding(directory, quantize, way):
    """A model of floats whose matrices, and whatever is multiplied with them, are rounded.

    Beside int4 weights the kernels round to 15 bits, and torch does not.
    """
    network = build(huggingface.read(directory, "rounding"))
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    careful = {
        module.down
        for module in network.modules()
        if isinstance(module, FeedForward) and (module.spec.wide_down or module.spec.gated)
    }
    matrices = (nn.Linear, nn.Embedding, Head)
    multiplied = [module for module in network.modules() if isinstance(module, matrices)]
    for weight in {m.weight for m in multiplied if m.weight is not None}:
        of_layer = any(module.weight is weight for module in layers)
        coarse = quantize == "int4" and of_layer
        weight.data = of_sixteen(weight.data) if coarse else rounded(weight.data)
    for module in multiplied:
        if isinstance(module, nn.Linear) and quantize == "int4":
            if way != "torch":
                round_inputs(module, careful=True)
        elif not isinstance(module, nn.Embedding):
            round_inputs(module, careful=module in careful)
    return network


def logits(network, way, monkeypatch):
    """After every token of a few steps, whose rows have changed places once: ``[M, V]``."""
    network.use_kernels = way == "kernels"
    decoder, rows = network.spec.decoder, [()] * 3
    if decoder.cross_attention is not None:
        random = torch.Generator().manual_seed(5)
        states = torch.randn(9, decoder.memory_width, generator=random)
        rows = [(memory_of(states, "the one"),)] * 3
    with monkeypatch.context() as patch:
        if way == "torch":
            for module in (narrow, nibbles):
                patch.setattr(module, "library", lambda: None)
        state = network.start(rows)
        found = [network.step_all(random_tokens(3, 4), state)]
        state.reorder([1, 1, 0])
        found += [network.step_all(random_tokens(3, 4, seed=n), state) for n in range(2, 5)]
    return torch.cat(found, dim=1).flatten(0, 1)


def states(pair, network, way, monkeypatch):
    """Of two sources, ``[P, D]``."""
    values, _ = pair.inputs(2, 11)
    with monkeypatch.context() as patch:
        if way == "torch":
            for module in (narrow, nibbles):
                patch.setattr(module, "library", lambda: None)
        if tiny.TINY[pair.name].text_input:
            return torch.cat(network.encode_tokens(values.tolist()))
        return network.encode_mel(values).flatten(0, 1)


def assert_alike(found, want):
    """But for rows that hold a number halfway between two steps, which may go either way."""
    off = ((found - want).abs() / want.std()).amax(dim=-1)
    assert off.median() < 1e-3
    assert off.max() < 0.25


@pytest.mark.parametrize("name", tiny.TINY)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("quantize", QUANTISED)
def test_a_decoder_rounds_as_floats_would(pairs, monkeypatch, name, way, quantize):
    pair = pairs(name, quantize)
    found = logits(pair.ours, way, monkeypatch)
    assert_alike(found, logits(rounding(pair.directory, quantize, way), "torch", monkeypatch))
    wide = logits(pairs(name).ours, "torch", monkeypatch)
    off = (found - wide).abs() / wide.std()
    assert off.median() > 1e-3, "narrow it is"


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("quantize", QUANTISED)
def test_an_encoder_rounds_as_floats_would(pairs, monkeypatch, name, way, quantize):
    pair = pairs(name, quantize)
    found = states(pair, pair.ours, way, monkeypatch)
    assert_alike(found, states(pair, rounding(pair.directory, quantize, way), way, monkeypatch))


@pytest.mark.parametrize("name", tiny.TINY)
@pytest.mark.parametrize("quantize", QUANTISED)
def test_a_tied_head_is_the_embedding(pairs, name, quantize):
    network = pairs(name, quantize).ours
    decoder = network.decoder
    assert isinstance(decoder.embed, NarrowEmbedding)
    held = [m for m in network.modules() if isinstance(m, NarrowMatrix)]
    vocabularies = [m for m in held if m.out_features == tiny.VOCAB]
    tied = network.spec.decoder.head_tied
    assert (decoder.head.matrix is None) == tied
    assert decoder.head.weight is None
    assert len(vocabularies) == (1 if tied else 2)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A T5 of a width that no panel and no group of weights is a multiple of."""
    directory = tmp_path_factory.mktemp("odd")
    tiny.make("t5", directory, d_model=36, d_ff=50, d_kv=7)
    checkpoint = huggingface.read(directory, "odd")
    return {quantize: build(checkpoint, quantize=quantize) for quantize in QUANTISED}


@pytest.mark.parametrize("form", ["absorbed", "absorbed-int8", "materialized"])
@pytest.mark.parametrize("quantize", QUANTISED)
def test_weights_of_any_width_are_read_alike(odd, quantize, form):
    network = odd[quantize]
    memory = memory_of(torch.randn(9, 36, generator=torch.Generator().manual_seed(3)), "it")
    found = []
    for kernels in (True, False):
        network.use_kernels = kernels
        state = network.start([(memory,)] * 2, form=form)
        found.append(network.step_all(random_tokens(2, 5), state).flatten(0, 1))
    assert_alike(*found)


@pytest.mark.parametrize("quantize", QUANTISED)
def test_absorbed_memories_share_the_weights_that_were_made_wide(odd, quantize):
    network = odd[quantize]
    memories = [memory_of(torch.randn(5, 36), name) for name in ("one", "other", "third")]
    held = [network.project(memory, form="absorbed") for memory in memories[:2]]
    [place] = {one.segments[0].k_weight_GKD.data_ptr() for one in held}
    matrix = network.decoder.layers[0].cross_attn.k.matrix
    panels = next(iter(matrix.buffers()))
    panels.bitwise_xor_(1)  # somebody changes the weights while they are held
    changed = network.project(memories[2], form="absorbed").segments[0].k_weight_GKD
    panels.bitwise_xor_(1)
    assert changed.data_ptr() != place
    assert not torch.equal(changed, held[0].segments[0].k_weight_GKD)
