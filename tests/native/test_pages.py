"""Weights in huge pages are the same weights."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
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


def test_a_room_gives_places_side_by_side():
    sizes = [4 * 1_000_000, 3, 2 * 2_500_000]
    room = pages.Room(sizes)
    first = room.take((1000, 1000), torch.float32).fill_(1)
    second = room.take((3,), torch.int8).fill_(2)
    third = room.take((2_500_000,), torch.float16).fill_(3)
    assert (first == 1).all()
    assert (second == 2).all()
    assert (third == 3).all()
    places = {t.untyped_storage().data_ptr() for t in (first, second, third)}
    assert len(places) == (1 if pages._advice() else 3)


def test_what_was_forgotten_of_a_file_is_read_again(tmp_path):
    values = torch.arange(300_000, dtype=torch.float32)
    (tmp_path / "numbers").write_bytes(values.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "numbers"), size=300_000)
    assert torch.equal(mapped, values)
    pages.forget_mapped(mapped)
    assert torch.equal(mapped, values)


LOADING = """
import sys
from pathlib import Path
import xattn
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
from xattn.model import load
import torch, safetensors
torch.randn(512, 512) @ torch.randn(512, 512)
before = peak()
model = load(sys.argv[1], quantize=sys.argv[2] or None)
weights = {*model.network.parameters(), *model.network.buffers()}
print(peak() - before, sum(tensor.nbytes for tensor in weights))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc")
@pytest.mark.parametrize(("quantize", "times"), [("", 1.1), ("int8", 2.2), ("int4", 2.2)])
def test_loading_takes_little_more_than_the_weights(tmp_path, quantize, times):
    """Weights and the largest of the file's; narrow ones twice, while they are put together.

    The file has four bytes a weight: taking it whole on the way to int8 would be five times them.
    """
    config = transformers.T5Config(
        d_model=512,
        d_ff=2048,
        num_layers=6,
        num_heads=8,
        vocab_size=16_000,
        decoder_start_token_id=0,
    )
    largest = 4 * config.vocab_size * config.d_model
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADING, str(tmp_path), quantize],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown, weights = map(int, done.stdout.split())
    assert grown < times * weights + largest + 40e6
