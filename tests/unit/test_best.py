"""The kernel that reads the vocabulary, against torch's own functions."""

import math
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tree import TreeNetwork, memory

import xattn.decoding.best
from xattn.decoding import Request, Settings, decode
from xattn.decoding.best import MOST, best_of_logits, best_of_logprobs
from xattn.native import library

pytestmark = pytest.mark.skipif(library() is None, reason="there is no C++ compiler")

INF, NAN = math.inf, math.nan


def in_order(x_RV, k):
    """Best first, of equal ones the lower id first; NaN is the largest."""
    values, ids = torch.sort(x_RV, dim=-1, descending=True, stable=True)
    return values[:, :k].numpy(), ids[:, :k].numpy()


def without_kernels(monkeypatch):
    monkeypatch.setattr(xattn.decoding.best, "library", lambda: None)


@st.composite
def tied_rows(draw):
    """Rows of few different numbers, of widths around those at which the kernel changes step."""
    width = draw(st.sampled_from([1, 2, 7, 15, 16, 17, 63, 64, 65, 130, 2047, 2049, 4100]))
    rows = draw(st.integers(1, 3))
    numbers = draw(st.lists(st.sampled_from([-INF, -80.0, -1.5, 0.0, 0.25, 9.0]), min_size=1))
    seed = draw(st.integers(0, 1000))
    chosen = torch.randint(
        len(numbers), (rows, width), generator=torch.Generator().manual_seed(seed)
    )
    return torch.tensor(numbers)[chosen]


@given(tied_rows(), st.integers(1, MOST))
@settings(deadline=None, max_examples=200)
def test_ties_go_by_id(x_RV, k):
    values, ids = in_order(x_RV, k)
    for best in (best_of_logits(x_RV, k), best_of_logprobs(x_RV, k)):
        assert np.array_equal(best.ids_RK, ids)
        assert np.array_equal(best.logits_RK, values)
    assert np.array_equal(best_of_logits(x_RV, 1).ids_RK[:, 0], x_RV.max(-1).indices.numpy())


@given(tied_rows(), st.integers(1, MOST))
@settings(deadline=None, max_examples=100)
def test_log_probabilities_are_those_of_log_softmax(x_RV, k):
    want = torch.sort(x_RV.double().log_softmax(-1), dim=-1, descending=True).values[:, :k]
    found = best_of_logits(x_RV, k).logprobs_RK
    np.testing.assert_allclose(found, want.numpy(), rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("shape", [(1, 32128), (4, 32128), (5, 51864), (2, 65537), (3, 32769)])
@pytest.mark.parametrize("k", [1, 8, MOST])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_vocabularies_of_real_size(shape, k, threads):
    generator = torch.Generator().manual_seed(shape[1])
    x_RV = 3 * torch.randn(shape, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        best = best_of_logits(x_RV, k)
    finally:
        torch.set_num_threads(before)
    values, ids = in_order(x_RV, k)
    assert np.array_equal(best.ids_RK, ids)
    assert np.array_equal(best.logits_RK, values)
    want = x_RV.double().log_softmax(-1).gather(1, torch.from_numpy(ids))
    np.testing.assert_allclose(best.logprobs_RK, want.numpy(), rtol=2e-7, atol=2e-7)


def test_a_row_is_read_alike_whatever_is_beside_it():
    x_RV = torch.randn(6, 40000, generator=torch.Generator().manual_seed(0))
    x_RV[1], x_RV[3] = -INF, NAN
    together = best_of_logits(x_RV, 9)
    for row in range(6):
        alone = best_of_logits(x_RV[row : row + 1], 9)
        for part, whole in zip(alone, together, strict=True):
            np.testing.assert_array_equal(part[0], whole[row])


def test_rows_may_be_parts_of_longer_ones():
    x_RV = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0))
    for part in (x_RV[:, 4000:], x_RV[:, :999], x_RV[1:3], x_RV[:, ::2], x_RV.double()):
        best, same = best_of_logits(part, 5), best_of_logits(part.float().contiguous(), 5)
        assert np.array_equal(best.ids_RK, same.ids_RK)
        np.testing.assert_allclose(best.logprobs_RK, same.logprobs_RK, rtol=1e-6)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("place", [0, 7, 2500, 39999])
@pytest.mark.parametrize("rest", [0.0, -INF])
def test_a_number_that_is_none_shows(bad, place, rest):
    x_RV = torch.full((2, 40000), rest)
    x_RV[1] = torch.arange(40000) / 1000
    x_RV[0, place] = bad
    for k in (1, 5):
        best = best_of_logits(x_RV, k)
        assert np.isnan(best.logprobs_RK[0]).all()
        assert np.isfinite(best.logprobs_RK[1]).all()
        found = best_of_logprobs(x_RV, k)
        assert found.ids_RK[0, 0] == place
        np.testing.assert_array_equal(found.logprobs_RK[0, 0], np.float32(bad))


@pytest.mark.parametrize("width", [3, 200, 40000])
def test_rows_of_which_nothing_is_left(width):
    x_RV = torch.full((2, width), -INF)
    x_RV[1, -1] = 2.0
    best = best_of_logits(x_RV, 3)
    assert np.isnan(best.logprobs_RK[0]).all()
    assert best.logprobs_RK[1].tolist() == [0.0, -INF, -INF]
    assert best.ids_RK.tolist() == [[0, 1, 2], [width - 1, 0, 1]]


@pytest.mark.parametrize("k", [1, 6, 200, 999])
def test_torch_alone_finds_the_same(monkeypatch, k):
    x_RV = torch.randn(3, 500, generator=torch.Generator().manual_seed(1))
    with_kernels = best_of_logits(x_RV, k), best_of_logprobs(x_RV, k)
    without_kernels(monkeypatch)
    by_torch = best_of_logits(x_RV, k), best_of_logprobs(x_RV, k)
    for ours, theirs in zip(with_kernels, by_torch, strict=True):
        assert ours.ids_RK.shape == (3, min(k, 500))
        assert np.array_equal(ours.ids_RK, theirs.ids_RK)
        np.testing.assert_allclose(ours.logprobs_RK, theirs.logprobs_RK, atol=2e-6)
        assert np.array_equal(ours.logits_RK, theirs.logits_RK)


KINDS = [
    Settings(max_new_tokens=9, logprobs=3),
    Settings(max_new_tokens=9, do_sample=True, num_return_sequences=3),
    Settings(max_new_tokens=9, num_beams=4, num_return_sequences=4, logprobs=3),
    Settings(max_new_tokens=9, num_beams=4, repetition_penalty=1.3, min_new_tokens=4),
    Settings(max_new_tokens=9, num_beams=4, renormalize_logits=True, suppress_tokens=(4, 7)),
    Settings(max_new_tokens=9, num_beams=5, patience=1.6, num_return_sequences=5, logprobs=2),
    Settings(max_new_tokens=9, num_beams=3, do_sample=True, logprobs=2),
]


@pytest.mark.parametrize("chosen", KINDS)
def test_searches_do_the_same_without_kernels(monkeypatch, chosen):
    requests = [Request((1, 2), (memory("m"),)), Request((3,), (memory("n"),), seed=5)]
    ours = decode(TreeNetwork(90, eos=(0, 1, 2)), requests, chosen)
    without_kernels(monkeypatch)
    theirs = decode(TreeNetwork(90, eos=(0, 1, 2)), requests, chosen)
    for mine, other in zip(chain(*ours), chain(*theirs), strict=True):
        assert (mine.tokens, mine.finish) == (other.tokens, other.finish)
        assert mine.score == pytest.approx(other.score, abs=1e-5)
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        for found, same in zip(mine.top_logprobs, other.top_logprobs, strict=True):
            assert [token for token, _ in found] == [token for token, _ in same]
            assert [p for _, p in found] == pytest.approx([p for _, p in same], abs=1e-5)
