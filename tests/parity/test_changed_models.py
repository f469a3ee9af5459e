"""What becomes of a model after its first step shows in the next ones, with kernels as without."""

import copy

import pytest
import torch
from pairs import memory_of, random_tokens

from xattn.errors import UsageError
from xattn.models.build import build
from xattn.models.formats import huggingface

WIDTH = 32


@pytest.fixture
def network_of(pairs):
    """A network of its own for a test that changes it."""

    def make(name, **options):
        return build(huggingface.read(pairs(name).directory, name), **options)

    return make


def states_of(positions=9):
    return torch.randn(positions, WIDTH, generator=torch.Generator().manual_seed(5))


def begun(network, states_SD=None, form="materialized", *, kernels=True):
    """Two rows that read one memory."""
    network.use_kernels = kernels
    memory = memory_of(states_of() if states_SD is None else states_SD, "the one")
    return network.start([(memory,)] * 2, form=form)


def logits(network, state=None):
    """After a few steps of two rows."""
    state = begun(network) if state is None else state
    return torch.stack([network.step(random_tokens(2, 4, seed=n), state) for n in range(4)])


def assert_changed(network, before):
    after = logits(network)
    by_torch = logits(network, begun(network, kernels=False))
    torch.testing.assert_close(after, by_torch, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(after, before, atol=1e-2)


@pytest.mark.parametrize(
    "name",
    ["relative_bias", "embed", "layers.0.self_norm", "layers.1.self_attn.q", "layers.0.ffn.up"],
)
def test_weights_that_change_in_place(network_of, name):
    network = network_of("t5")
    before = logits(network)
    weight = network.decoder.get_submodule(name).weight
    weight.data.add_(torch.linspace(0.5, 3.0, weight.numel()).view(weight.shape))
    assert_changed(network, before)


@pytest.mark.parametrize("name", ["layers.0.ffn", "layers.1.self_attn.q", "layers.0.cross_norm"])
def test_a_module_with_another_forward(network_of, name):
    network = network_of("t5")
    before = logits(network)
    module = network.decoder.get_submodule(name)
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)
    assert_changed(network, before)
    del module.forward
    torch.testing.assert_close(logits(network), before)


class Twice(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


def test_a_module_that_another_stands_for(network_of):
    network = network_of("t5")
    before = logits(network)
    layer = network.decoder.layers[0]
    layer.ffn = Twice(layer.ffn)
    assert_changed(network, before)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_a_copy_is_a_model_of_its_own(network_of, quantize):
    network = network_of("t5", quantize=quantize)
    kept = network.project(memory_of(states_of(), "kept"), form="absorbed")
    before = logits(network)
    other = copy.deepcopy(network)
    torch.testing.assert_close(logits(other), before)
    other.decoder.final_norm.weight.data.mul_(2)
    torch.testing.assert_close(logits(other), 2 * before)
    torch.testing.assert_close(logits(network), before)
    assert kept.segments[0].k_weight_GKD.data_ptr() not in {
        s.k_weight_GKD.data_ptr() for s in other.project(kept.memories[0], form="absorbed").segments
    }


@pytest.mark.parametrize("kernels", [True, False])
def test_a_copied_state_goes_on_by_itself(network_of, kernels):
    network = network_of("t5")
    state = begun(network, kernels=kernels)
    logits(network, state)
    other = copy.deepcopy(state)
    torch.testing.assert_close(logits(network, other), logits(network, state))


@pytest.mark.parametrize("form", ["materialized", "absorbed", "absorbed-int8"])
@pytest.mark.parametrize("kernels", [True, False])
def test_states_that_lie_strided(network_of, form, kernels):
    network = network_of("t5")
    strided = states_of().T.contiguous().T
    got, want = (
        logits(network, begun(network, states, form, kernels=kernels))
        for states in (strided, states_of())
    )
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_token_ids_are_looked_at(network_of, kernels, quantize):
    network = network_of("t5", quantize=quantize)
    ids = [[5, 7], [9, 98]]
    want = network.step(torch.tensor(ids), begun(network, kernels=kernels))
    for dtype in (torch.int32, torch.int16, torch.uint8):
        got = network.step(torch.tensor(ids, dtype=dtype), begun(network, kernels=kernels))
        torch.testing.assert_close(got, want)
    state = begun(network, kernels=kernels)
    for token in (-1, 99, 2**40):
        for feed in (network.step, network.step_all):
            with pytest.raises(UsageError, match=f"token ids from 0 to 98, but is {token} instead"):
                feed(torch.tensor([[5, 7], [9, token]]), state)
    with pytest.raises(UsageError, match="whole"):
        network.step(torch.tensor([[5.0], [7.0]]), state)
