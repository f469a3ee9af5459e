"""Weights as int8: kernels, torch, and a model of floats that rounds as they do, say the same."""

import pytest
import tiny
import torch
from pairs import memory_of, random_tokens
from torch import nn

from xattn.models import narrow
from xattn.models.build import build
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


def round_inputs(module, *, careful):
    module.register_forward_pre_hook(
        lambda _, inputs: (rounded(inputs[0], careful=careful), *inputs[1:])
    )


def rounding(directory):
    """A model of floats whose matrices, and whatever is multiplied with them, are rounded."""
    network = build(huggingface.read(directory, "rounding"))
    careful = {
        module.down
        for module in network.modules()
        if isinstance(module, FeedForward) and module.spec.wide_down
    }
    matrices = (nn.Linear, nn.Embedding, Head)
    multiplied = [module for module in network.modules() if isinstance(module, matrices)]
    for weight in {m.weight for m in multiplied if m.weight is not None}:
        weight.data = rounded(weight.data)
    for module in multiplied:
        if not isinstance(module, nn.Embedding):
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
            patch.setattr(narrow, "library", lambda: None)
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
            patch.setattr(narrow, "library", lambda: None)
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
def test_a_decoder_rounds_as_floats_would(pairs, monkeypatch, name, way):
    pair = pairs(name, "int8")
    found = logits(pair.ours, way, monkeypatch)
    assert_alike(found, logits(rounding(pair.directory), "torch", monkeypatch))
    wide = logits(pairs(name).ours, "torch", monkeypatch)
    off = (found - wide).abs() / wide.std()
    assert off.median() > 1e-3, "int8 it is"


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
@pytest.mark.parametrize("way", WAYS[1:])
def test_an_encoder_rounds_as_floats_would(pairs, monkeypatch, name, way):
    pair = pairs(name, "int8")
    found = states(pair, pair.ours, way, monkeypatch)
    assert_alike(found, states(pair, rounding(pair.directory), way, monkeypatch))


@pytest.mark.parametrize("name", tiny.TINY)
def test_a_tied_head_is_the_embedding(pairs, name):
    network = pairs(name, "int8").ours
    decoder = network.decoder
    assert isinstance(decoder.embed, NarrowEmbedding)
    held = [m for m in network.modules() if isinstance(m, NarrowMatrix)]
    vocabularies = [m for m in held if m.out_features == tiny.VOCAB]
    tied = network.spec.decoder.head_tied
    assert (decoder.head.matrix is None) == tied
    assert decoder.head.weight is None
    assert len(vocabularies) == (1 if tied else 2)
