"""Materialised and absorbed cross-attention choose the same tokens, in every family."""

import pytest
import tiny
import torch
from pairs import memory_of

from xattn.decoding import Request, Settings, decode
from xattn.spec import FORMS

WIDTH = 32


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
@pytest.mark.parametrize("beams", [1, 4])
def test_same_tokens(pairs, name, beams):
    pair = pairs(name)
    memories = pair.memories(pair.inputs(12, 10, seed=11)[0])
    start = pair.ours.spec.tokens.decoder_start
    # The last request attends to three memories at once.
    requests = [Request((start,), (memory,)) for memory in memories]
    requests.append(Request((start,), tuple(memories[:3])))
    settings = Settings(max_new_tokens=16, num_beams=beams, no_repeat_ngram_size=2)
    answers = {}
    for form in ("materialized", "absorbed"):
        found = decode(pair.ours, requests, settings, form=form)
        answers[form] = [hypotheses[0] for hypotheses in found]
    for one, other in zip(answers["materialized"], answers["absorbed"], strict=True):
        assert one.tokens == other.tokens
        assert one.score == pytest.approx(other.score, abs=1e-4)
    assert len({answer.tokens for answer in answers["absorbed"]}) > 1, "sources matter"


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
def test_absorbed_memories_are_read_where_they_lie(pairs, name):
    pair = pairs(name)
    memories = pair.memories(pair.inputs(2, 10)[0])
    state = pair.ours.start([[m] for m in memories] * 3, form="absorbed")
    read = [p.segments[0].states_NSD.data_ptr() for p in state.projections]
    assert read == [memory.states_SD.data_ptr() for memory in memories]
    assert state.cross_bytes == sum(memory.size_bytes for memory in memories)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [[0], [1], [63], [64], [96], [99], list(range(64, 100)), None])
def test_a_memory_that_holds_no_number_shows(pairs, form, bad, kernels):
    """Wherever it is in a block of positions: an answer that looks sound would be worse."""
    network = pairs("t5").ours
    states_SD = torch.randn(100, WIDTH, generator=torch.Generator().manual_seed(5))
    states_SD[slice(None) if bad is None else bad] = float("nan")
    network.use_kernels = kernels
    try:
        state = network.start([(memory_of(states_SD, f"bad {bad}"),)], form=form)
        assert network.step(torch.tensor([[5]]), state).isnan().all()
    finally:
        network.use_kernels = True


@pytest.mark.parametrize("form", FORMS)
def test_nothing_may_be_read(pairs, form):
    """A memory without positions, alone and beside another."""
    network = pairs("t5").ours
    some = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(5))
    memories = memory_of(some[:0], "nothing"), memory_of(some, "something")
    found = {}
    try:
        for kernels in (True, False):
            network.use_kernels = kernels
            for read in (memories[:1], memories, memories[1:]):
                state = network.start([read], form=form)
                found[kernels, len(read), len(read[0])] = network.step(torch.tensor([[5]]), state)
    finally:
        network.use_kernels = True
    for what in [(1, 0), (2, 0), (1, 9)]:
        torch.testing.assert_close(found[True, *what], found[False, *what], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(found[True, 2, 0], found[True, 1, 9])
    assert not torch.allclose(found[True, 1, 0], found[True, 1, 9], atol=1e-3)
