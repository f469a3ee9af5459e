"""Products of many rows: the same as torch's, whoever computes them, and whatever hangs on them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from xattn.models import products
from xattn.models.products import BLOCK, FEW, in_blocks, linear

ROWS = pytest.mark.parametrize("shape", [(FEW + 1, 24), (3, 40, 24), (2, 0, 24), (1, 24)])


def layer_of(bias=True):
    torch.manual_seed(0)
    return nn.Linear(24, 10, bias=bias).requires_grad_(False)


@ROWS
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_the_layer(shape, bias):
    layer, x = layer_of(bias), torch.randn(shape)
    torch.testing.assert_close(linear(layer, x), layer(x), atol=1e-6, rtol=1e-6)
    every_second = torch.randn(*shape[:-1], 48)[..., ::2]
    torch.testing.assert_close(linear(layer, every_second), layer(every_second))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_number_types_are_left_to_torch(dtype):
    layer, x = layer_of().to(dtype), torch.randn(40, 24, dtype=dtype)
    assert torch.equal(linear(layer, x), layer(x))


def test_what_is_no_number_shows():
    x = torch.randn(40, 24)
    x[7, 3], x[9, 1] = float("nan"), float("inf")
    got = linear(layer_of(), x)
    assert got[7].isnan().all()
    assert not got[9].isfinite().any()
    assert got[[n for n in range(40) if n not in (7, 9)]].isfinite().all()


def test_gradients_flow():
    layer, x = layer_of().requires_grad_(True), torch.randn(40, 24)
    linear(layer, x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(10, 24), atol=1e-5, rtol=1e-5)


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def _hooked(layer):
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    return layer


def _hooked_before(layer):
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    return layer


def _patched(layer):
    forward = layer.forward
    layer.forward = lambda x: forward(x) * 3
    return layer


def _twice(layer):
    twice = Twice(24, 10).requires_grad_(False)
    twice.load_state_dict(layer.state_dict())
    return twice


def _halved(layer):
    parametrize.register_parametrization(layer, "weight", Half())
    return layer


@pytest.mark.parametrize("change", [_hooked, _hooked_before, _patched, _twice, _halved])
def test_what_others_made_of_a_layer_is_kept(change):
    x, plain = torch.randn(40, 24), layer_of()
    layer = change(layer_of())
    assert torch.equal(linear(layer, x), layer(x))
    assert not torch.allclose(linear(layer, x), plain(x), atol=0.1)


@pytest.mark.parametrize("rows", [1, BLOCK, 2 * BLOCK + 3])
def test_blocks_of_rows_are_all_of_them(rows):
    x, seen = torch.randn(rows, 2, 4), []

    def function(block):
        seen.append(block.numel() // 4)
        return block * 3 + 1

    with torch.no_grad():
        assert torch.equal(in_blocks(function, x), x * 3 + 1)
    assert sum(seen) == 2 * rows
    assert max(seen) <= max(BLOCK, 2)


def test_blocks_keep_gradients():
    x = torch.randn(BLOCK + 1, 4, requires_grad=True)
    in_blocks(lambda block: block * 3, x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(x, 3.0))


def test_autocast_is_torchs(monkeypatch):
    layer, x = layer_of(), torch.randn(40, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(layer, x).dtype == torch.bfloat16
    monkeypatch.setattr(products, "_WIDE_VECTORS", False)
    assert torch.equal(linear(layer, x), layer(x))
