"""Rows that join a running state, and leave it, against each row alone."""

import random
from dataclasses import replace

import pytest
import tiny
import torch
from pairs import memory_of, random_tokens

from xattn.memory import KV_PREPROCESSING

TOLERANCE = dict(atol=1e-4, rtol=0.0)


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def network_of(request, pairs, monkeypatch):
    def make(name):
        monkeypatch.setattr(pairs(name).ours, "use_kernels", request.param)
        return pairs(name).ours

    return make


def memories_of(pair, count):
    if pair.decoder_only:
        return [pair.ours.project(kv_memory(pair, seed)) for seed in range(count)]
    return [pair.ours.project(m) for m in pair.memories(pair.inputs(count, 7)[0])]


def kv_memory(pair, seed):
    ids = random_tokens(1, 4 + seed, seed=40 + seed)[0].tolist()
    plain = memory_of(pair.ours.encode_kv(ids), f"{ids}")
    return replace(plain, key=replace(plain.key, preprocessing=KV_PREPROCESSING))


def alone(network, memories, tokens):
    """Logits after the last of ``tokens``, of a row that was never with another."""
    return network.score(torch.tensor([tokens]), network.start([memories]))[0, -1]


@pytest.mark.parametrize("name", tiny.TINY)
def test_rows_that_join_are_as_they_are_alone(pairs, network_of, name):
    pair, network = pairs(name), network_of(name)
    shared, other = memories_of(pair, 2)
    first, second = random_tokens(2, 8), random_tokens(1, 8, seed=2)[0].tolist()
    state = network.start([[shared], [other]])
    network.step(first[:, :5], state)
    late = network.start([[shared]])
    network.step(torch.tensor([second[:2]]), late)
    state.join(late)
    state.join(network.start([[]]))  # a row that has seen nothing, and reads nothing
    assert state.lengths == [5, 5, 2, 0]
    assert len(state.projections) == 2
    fed = [first[0].tolist()[:6], first[1].tolist()[:6], second[:3], [9]]
    reads = [[shared], [other], [shared], []]
    got = network.step(torch.tensor([row[-1:] for row in fed]), state)
    for row, (tokens, memories) in enumerate(zip(fed, reads, strict=True)):
        torch.testing.assert_close(got[row], alone(network, memories, tokens), **TOLERANCE)
    state.reorder([2, 1])
    got = network.step(torch.tensor([[11], [12]]), state)
    for row, (tokens, memories) in enumerate([([*fed[2], 11], [shared]), ([*fed[1], 12], [other])]):
        torch.testing.assert_close(got[row], alone(network, memories, tokens), **TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["bart", "llama"])
def test_random_families_come_fork_and_go(pairs, network_of, name, seed):
    """Rows that fork as beams do, of any lengths, while others join and leave."""
    pair, network, rng = pairs(name), network_of(name), random.Random(seed)
    memories = [[m] for m in memories_of(pair, 3)]
    state = network.start([])
    rows: list[tuple[int, list[int]]] = []  # which memory, and the tokens seen
    widths: list[int] = []  # rows of each family, which stand together
    most = 0
    for _ in range(25):
        if len(widths) < 4 and rng.random() < 0.5:
            which, prompt = (
                rng.randrange(3),
                [rng.randrange(3, 99) for _ in range(rng.randint(1, 6))],
            )
            joining = network.start([memories[which]])
            if len(prompt) > 1:
                network.step(torch.tensor([prompt[:-1]]), joining)
            joining.reorder([0] * (width := rng.randint(1, 3)))
            state.join(joining)
            rows += [(which, prompt[:-1])] * width
            widths.append(width)
        if not rows:
            continue
        fed = [rng.randrange(3, 99) for _ in rows]
        got = network.step(torch.tensor(fed)[:, None], state)
        rows = [(which, [*seen, token]) for (which, seen), token in zip(rows, fed, strict=True)]
        most = max(most, len(rows))
        for row, (which, seen) in enumerate(rows):
            want = alone(network, memories[which], seen)
            torch.testing.assert_close(got[row], want, **TOLERANCE)
        kept, still, at = [], [], 0
        for width in widths:
            if rng.random() < 0.9:
                kept += [at + rng.randrange(width) for _ in range(width)]
                still.append(width)
            at += width
        state.reorder(kept)
        rows, widths = [rows[row] for row in kept], still
        assert state.cache.physical_rows <= most  # what was left is used again
    state.cache.fit(0)
    assert state.cache.physical_rows == len(rows)
    assert state.cache.capacity == max((len(seen) for _, seen in rows), default=0)


def test_growth_ends_where_it_is_told(pairs, network_of):
    network, memory = network_of("bart"), [memories_of(pairs("bart"), 1)[0]]
    state = network.start([memory])
    state.cache.most = 37
    for length in range(1, 38):
        network.step(torch.tensor([[5]]), state)
        assert state.cache.capacity == (32 if length <= 32 else 37)
    assert state.size_bytes == pairs("bart").ours.spec.decoder.self_cache_bytes(37)
