"""What `step` allocates: nothing that grows with beams, and no memory's keys or values again."""

import pytest
import torch
from pairs import Pair
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """Bytes of the largest tensor that an operator made, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {t.data_ptr() for t in args if isinstance(t, torch.Tensor)}
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in given:
                self.largest = max(self.largest, tensor.nbytes)
        return result


def largest_allocation(pair: Pair, rows: int, form: str, length: int) -> int:
    values, _ = pair.inputs(1, length)
    state = pair.ours.start([[m] for m in pair.memories(values)], form=form)
    state.reorder([0] * rows)
    tokens = torch.full((rows, 1), 5)
    for _ in range(2):
        pair.ours.step(tokens, state)
    with Allocations() as seen:
        state.reorder(range(rows)[::-1])
        pair.ours.step(tokens, state)
    return seen.largest


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("form", ["materialized", "absorbed"])
def test_no_beam_copies_a_memory(pairs, form, kernels, monkeypatch):
    pair, rows, length = pairs("t5"), 8, 2000
    monkeypatch.setattr(pair.ours, "use_kernels", kernels)
    one_layer = length * 32 * 4  # keys of one layer, or the states
    # Scores are rows x heads x positions, computed inside the kernel; nothing else is this large.
    assert largest_allocation(pair, rows, form, length) < one_layer
    assert largest_allocation(pair, 1, form, length) < one_layer


def test_the_measure_sees_a_copy(pairs, monkeypatch):
    """A decoder that repeats a memory for each row is caught."""
    from xattn.models import state as module

    plain = module.attend_alone

    def copying(q, segment, **kwargs):
        segment.k_NGSK.repeat_interleave(2, dim=0)
        return plain(q, segment, **kwargs)

    monkeypatch.setattr(module, "attend_alone", copying)
    monkeypatch.setattr(pairs("t5").ours, "use_kernels", False)
    assert largest_allocation(pairs("t5"), 8, "materialized", 2000) >= 2000 * 32 * 4
