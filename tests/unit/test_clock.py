"""The parts of a step add up to it, through the kernels and through torch."""

import time

import pytest
import torch
from pairs import random_tokens

from xattn.models.clock import PARTS, Clock


@pytest.mark.parametrize("kernels", [True, False])
def test_parts_add_up_to_the_step(pairs, kernels):
    pair = pairs("bart")
    network = pair.ours
    values, _ = pair.inputs(1, 9)
    network.use_kernels = kernels
    network.decoder.clock = clock = Clock()
    try:
        state = network.start([[memory] for memory in pair.memories(values)])
        network.step(random_tokens(1, 3), state)
        before, begun = sum(clock.seconds.values()), time.perf_counter()
        network.step(random_tokens(1, 1), state)
        took, counted = time.perf_counter() - begun, sum(clock.seconds.values()) - before
    finally:
        network.decoder.clock, network.use_kernels = None, True
    assert set(clock.seconds) == set(PARTS)
    assert all(seconds > 0 for seconds in clock.seconds.values())
    assert 0 < counted <= took


def test_nobody_counts_where_nobody_asks(pairs):
    network = pairs("bart").ours
    assert network.decoder.clock is None
    clock = Clock()
    network.step(torch.tensor([[5]]), network.start([[]]))
    assert sum(clock.seconds.values()) == 0
