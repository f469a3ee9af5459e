"""Memories as int8: the kernels read them as torch does, and both read what they stand for."""

from dataclasses import replace

import pytest
import tiny
import torch
from pairs import memory_of, random_tokens

from xattn.models.state import Projection
from xattn.spec import FORMS, is_absorbed, is_narrow

NARROW = [form for form in FORMS if is_narrow(form)]


def logits(network, rows, form, tokens, *, kernels):
    """After each of a few steps, whose rows have changed places once."""
    network.use_kernels = kernels
    state = network.start(rows, form=form)
    found = [network.step(tokens, state)]
    assert (state.native is not None) == kernels
    state.reorder([1, 0, *range(2, len(rows))])
    found += [network.step(random_tokens(len(rows), 1, seed=n), state) for n in range(3)]
    return torch.stack(found)


def rows_of(pair):
    """Memories of several lengths, longer than a block, masked, shared, and two at once."""
    random = torch.Generator().manual_seed(7)
    width = pair.ours.spec.decoder.memory_width
    lengths = (3, 40, 1100)
    memories = [
        memory_of(torch.randn(length, width, generator=random), f"narrow {length}")
        for length in lengths
    ]
    a, b, c = memories
    return [(a,), (b,), (b,), (a, c), (c,)]


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
@pytest.mark.parametrize("form", NARROW)
def test_kernels_read_what_torch_reads(pairs, monkeypatch, name, form):
    pair = pairs(name)
    monkeypatch.setattr(pair.ours, "use_kernels", True)
    tokens = random_tokens(5, 4)
    by_torch = logits(pair.ours, rows_of(pair), form, tokens, kernels=False)
    by_kernels = logits(pair.ours, rows_of(pair), form, tokens, kernels=True)
    torch.testing.assert_close(by_kernels, by_torch, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("form", NARROW)
def test_masks_hide_positions_of_narrow_memories(pairs, monkeypatch, form):
    pair = pairs("bart")
    monkeypatch.setattr(pair.ours, "use_kernels", True)
    whole, *_ = pair.memories(pair.inputs(1, 12)[0])
    hidden = torch.arange(12) < 5
    first = memory_of(whole.states_SD[:5].clone(), "the part that may be read")
    tokens = random_tokens(2, 3)
    masked = [(replace(whole, mask_S=hidden),), (replace(whole, mask_S=hidden),)]
    for kernels in (True, False):
        torch.testing.assert_close(
            logits(pair.ours, masked, form, tokens, kernels=kernels),
            logits(pair.ours, [(first,), (first,)], form, tokens, kernels=kernels),
            atol=1e-4,
            rtol=1e-4,
        )


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
@pytest.mark.parametrize("form", NARROW)
def test_a_number_is_off_by_half_a_step_at_most(pairs, name, form):
    pair = pairs(name)
    [memory] = pair.memories(pair.inputs(1, 10)[0])
    wide_form = form.removesuffix("-int8")
    narrow, wide = (pair.ours.project(memory, form=one) for one in (form, wide_form))
    for small, large in zip(narrow.segments, wide.segments, strict=True):
        if small is None:
            continue
        [(_, read)] = small.blocks()
        for name_of, scales in scales_of(small).items():
            off = (getattr(read, name_of) - getattr(large, name_of)).abs()
            assert (off <= scales.unsqueeze(-1) * 0.5001 + 1e-7).all()


def scales_of(segment):
    if hasattr(segment, "states_NSD"):
        return {"states_NSD": segment.scales_NS}
    return {"k_NGSK": segment.k_scales_NGS, "v_NGSK": segment.v_scales_NGS}


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("beams", [1, 4])
def test_bytes_are_those_of_the_spec_whatever_the_beams(pairs, name, form, beams):
    pair = pairs(name)
    [memory] = pair.memories(pair.inputs(1, 10)[0])
    state = pair.ours.start([(memory,)] * beams, form=form)
    assert state.cross_bytes == pair.ours.spec.decoder.cross_bytes(len(memory), form=form)


def test_absorbed_states_are_made_narrow_once_for_all_layers(pairs):
    pair = pairs("t5")
    [memory] = pair.memories(pair.inputs(1, 10)[0])
    projection = pair.ours.project(memory, form="absorbed-int8")
    assert isinstance(projection, Projection)
    assert len({s.states_NSD.data_ptr() for s in projection.segments if s is not None}) == 1
    assert is_absorbed(projection.form)


@pytest.mark.parametrize("name", tiny.DECODER_ONLY)
def test_keys_and_values_that_are_gone_on_from_may_be_narrow(pairs, monkeypatch, name):
    pair = pairs(name)
    monkeypatch.setattr(pair.ours, "use_kernels", True)
    rows = [
        (memory_of(pair.ours.encode_kv(random_tokens(1, length)[0].tolist()), f"kv {length}"),)
        for length in (30, 7)
    ]
    rows = [(replace(m, key=replace(m.key, preprocessing="kv")),) for (m,) in rows]
    tokens = random_tokens(2, 3)
    form = "materialized-int8"
    by_torch = logits(pair.ours, rows, form, tokens, kernels=False)
    by_kernels = logits(pair.ours, rows, form, tokens, kernels=True)
    torch.testing.assert_close(by_kernels, by_torch, atol=2e-4, rtol=1e-4)
    wide = logits(pair.ours, rows, "materialized", tokens, kernels=True)
    assert not torch.equal(wide, by_kernels)
