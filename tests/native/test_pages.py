"""Weights in huge pages are the same weights."""

import copy

import pytest
import torch
from torch import nn

from xattn.native import pages


class Tied(nn.Module):
    """Two names for one table, numbers of several types, and nothing at all."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 64)
        self.head = nn.Linear(64, rows)
        self.head.weight = self.table.weight
        self.register_buffer("steps", torch.arange(rows * 3, dtype=torch.int8))
        self.register_buffer("odd", torch.ones(3, 5, dtype=torch.float64))
        self.register_buffer("none", torch.empty(0))


def test_values_and_ties_are_kept_in_one_storage():
    module = Tied(20_000)
    before = copy.deepcopy(module.state_dict())
    pages.put_together(module)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.data_ptr() % pages.LINE == 0 or not tensor.numel()
    assert module.head.weight is module.table.weight
    assert len({t.untyped_storage().data_ptr() for t in module.state_dict().values()}) == 1
    with torch.no_grad():
        module.table.weight[0] += 1
    assert torch.equal(module.head.weight[0], before["head.weight"][0] + 1)
    copied = copy.deepcopy(module)
    assert torch.equal(copied.table.weight, module.table.weight)


def test_small_modules_and_systems_without_huge_pages_are_left_alone(monkeypatch):
    small = Tied(10)
    places = [t.data_ptr() for t in small.state_dict().values()]
    pages.put_together(small)
    assert places == [t.data_ptr() for t in small.state_dict().values()]
    monkeypatch.setattr(pages, "_advice", lambda: None)
    large = Tied(20_000)
    place = large.table.weight.data_ptr()
    pages.put_together(large)
    assert large.table.weight.data_ptr() == place
    assert pages.spacious(3_000_000, dtype=torch.float32).shape == (3_000_000,)


@pytest.mark.parametrize("shape", [(3, 5), (1100, 1024), (0, 4)])
def test_spacious_tensors_hold_what_is_written(shape):
    tensor = pages.spacious(*shape, dtype=torch.float32)
    assert tensor.shape == shape
    assert tensor.is_contiguous()
    values = torch.randn(shape)
    assert torch.equal(tensor.copy_(values), values)
