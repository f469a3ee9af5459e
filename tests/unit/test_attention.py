"""The primitive against its naive twin: outputs, log-sum-exps and gradients."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xattn.attention import (
    Absorbed,
    Materialized,
    attend,
    attention_weights,
    combine,
    merge,
    narrow,
)
from xattn.attention.reference import attend_reference, materialize
from xattn.attention.segments import BLOCK

INF = float("inf")


def materialized(n=2, s=7, g=2, k=8, *, seed=0, masked=()):
    random = torch.Generator().manual_seed(seed)
    mask = torch.ones(n, s, dtype=torch.bool)
    for row, first in masked:
        mask[row, first:] = False
    return Materialized(
        k_NGSK=torch.randn(n, g, s, k, generator=random),
        v_NGSK=torch.randn(n, g, s, k, generator=random),
        mask_NS=mask if masked else None,
    )


def absorbed(n=2, s=7, g=2, k=8, d=12, *, seed=0, masked=(), biases=True):
    random = torch.Generator().manual_seed(seed)
    mask = torch.ones(n, s, dtype=torch.bool)
    for row, first in masked:
        mask[row, first:] = False
    return Absorbed(
        states_NSD=torch.randn(n, s, d, generator=random),
        k_weight_GKD=torch.randn(g, k, d, generator=random) / d**0.5,
        v_weight_GKD=torch.randn(g, k, d, generator=random) / d**0.5,
        k_bias_GK=torch.randn(g, k, generator=random) if biases else None,
        v_bias_GK=torch.randn(g, k, generator=random) if biases else None,
        mask_NS=mask if masked else None,
    )


def narrowed(s=7, **shape):
    return materialized(s=s, **shape).narrowed()


def narrowed_states(s=7, **shape):
    wide = absorbed(s=s, **shape)
    states_NSD, scales_NS = narrow(wide.states_NSD)
    return replace(wide, states_NSD=states_NSD, scales_NS=scales_NS)


def queries(n=2, w=3, h=4, k=8, seed=1):
    return torch.randn(n, w, h, k, generator=torch.Generator().manual_seed(seed))


MAKERS = {"materialized": materialized, "absorbed": absorbed}
NARROW_MAKERS = {"materialized-int8": narrowed, "absorbed-int8": narrowed_states}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1), (1, 1)])
@pytest.mark.parametrize("masked", [(), ((0, 3),), ((0, 0), (1, 5))], ids=str)
def test_attend_equals_twin(make, heads, groups, masked):
    segment, q = make(g=groups, masked=masked), queries(h=heads)
    out, lse = attend(q, segment, scale=0.3)
    want, want_lse = attend_reference(q, [segment], scale=0.3)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, want_lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", NARROW_MAKERS.values(), ids=NARROW_MAKERS)
@pytest.mark.parametrize("positions", [7, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("masked", [(), ((0, 3),), ((0, 0), (1, BLOCK + 2))], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_narrow_segments_equal_what_they_stand_for(make, positions, masked, biased):
    segment, q = make(s=positions, masked=masked), queries()
    random = torch.Generator().manual_seed(5)
    bias = torch.randn(2, 1, 1, positions, generator=random) if biased else None
    out, lse = attend(q, segment, scale=0.3, bias_NHWS=bias)
    want, want_lse = attend_reference(q, [segment], scale=0.3, bias_NHWS=bias)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, want_lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", NARROW_MAKERS.values(), ids=NARROW_MAKERS)
def test_weights_of_narrow_segments_are_those_that_attend_uses(make):
    segment, q = make(s=BLOCK + 9, masked=((0, 5),)), queries()
    weights = attention_weights(q, segment, [0, 3], scale=0.3)
    values = materialize(segment).v_NGSK[:, [0, 1]]
    read = torch.einsum("nwas,nask->nwak", weights, values)
    out, _ = attend(q, segment, scale=0.3)
    torch.testing.assert_close(read, out[:, :, [0, 3]], atol=1e-5, rtol=1e-5)


def test_a_row_of_zeros_stays_zero_and_what_is_no_number_shows():
    steps, scales = narrow(torch.tensor([[0.0, 0.0], [1e-30, -2e-30], [float("nan"), 1.0]]))
    assert (steps[0] == 0).all()
    assert steps[1] * scales[1] == pytest.approx(torch.tensor([1e-30, -2e-30]), rel=0.01)
    assert scales[2].isnan()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_fully_masked_rows_read_zeros(make):
    segment, q = make(masked=((0, 0),)), queries()
    for inputs in (q, q.clone().requires_grad_()):
        out, lse = attend(inputs, segment, scale=0.3)
        assert (out[0] == 0).all()
        assert (lse[0] == -INF).all()
        assert out[1].isfinite().all()
        assert (out[1] != 0).any()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("shape", [(1, 1, 3, 7), (2, 4, 3, 7), (1, 4, 1, 7), (2, 1, 1, 7)], ids=str)
def test_bias_equals_twin(make, shape):
    segment, q = make(), queries()
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    bias[..., 2] = -INF
    out, lse = attend(q, segment, scale=0.3, bias_NHWS=bias)
    want, want_lse = attend_reference(q, [segment], scale=0.3, bias_NHWS=bias)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, want_lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("masked", [(), ((0, 4), (1, 2)), ((0, 0),)], ids=str)
@pytest.mark.parametrize("groups", [4, 2])
def test_gradients_equal_twin(make, masked, groups):
    weights = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(9))

    def gradients(function):
        segment, q = make(g=groups, masked=masked), queries().requires_grad_()
        leaves = [q]
        for value in vars(segment).values():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                leaves.append(value.requires_grad_())
        out, lse = function(q, segment)
        read = lse.masked_fill(lse == -INF, 0.0)
        ((out * weights).sum() + (0.1 * read**2).sum()).backward()
        return [leaf.grad for leaf in leaves]

    got = gradients(lambda q, segment: attend(q, segment, scale=0.3))
    want = gradients(lambda q, segment: attend_reference(q, [segment], scale=0.3))
    for one, other in zip(got, want, strict=True):
        assert other.isfinite().all()
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    empty=st.lists(st.booleans(), min_size=5, max_size=5),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_merge_is_one_softmax_over_the_union(lengths, empty, order):
    parts = [
        (materialized if i % 2 else absorbed)(
            s=length, seed=i, masked=((0, 0),) if empty[i] else ()
        )
        for i, length in enumerate(lengths)
    ]
    q = queries()
    want, want_lse = attend_reference(q, parts, scale=0.3)
    order.shuffle(parts)
    out, lse = combine([attend(q, part, scale=0.3) for part in parts])
    torch.testing.assert_close(out, want, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(lse, want_lse, atol=2e-5, rtol=1e-5)


def test_merge_of_nothing_read_is_zero():
    parts = [
        attend(queries(), materialized(seed=i, masked=((0, 0), (1, 0))), scale=1.0) for i in (0, 1)
    ]
    assert (merge(parts) == 0).all()


@pytest.mark.parametrize(
    ("first", "second"),
    [((), ()), (((0, 0),), ()), (((0, 0),), ((0, 0), (1, 0)))],
    ids=["all read", "one part unread", "a query reads nothing"],
)
def test_merge_gradients_equal_twin(first, second):
    def gradient(function):
        q = queries().requires_grad_()
        function(q).square().sum().backward()
        return q.grad

    parts = [materialized(seed=1, masked=first), absorbed(s=4, seed=2, masked=second)]
    got = gradient(lambda q: merge([attend(q, part, scale=0.3) for part in parts]))
    want = gradient(lambda q: attend_reference(q, parts, scale=0.3)[0])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_weights_are_the_softmax_of_the_chosen_heads(make):
    segment, q = make(masked=((1, 4),)), queries()
    weights = attention_weights(q, segment, [3, 0], scale=0.3)
    values = materialize(segment).v_NGSK.repeat_interleave(2, dim=1)[:, [3, 0]]
    want, _ = attend_reference(q, [segment], scale=0.3)
    torch.testing.assert_close(
        torch.einsum("nwas,nask->nwak", weights, values), want[:, :, [3, 0]], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 2))
    assert (weights[1, :, :, 4:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    segment, q = materialized(), queries()
    half = Materialized(k_NGSK=segment.k_NGSK.to(dtype), v_NGSK=segment.v_NGSK.to(dtype))
    out, lse = attend(q.to(dtype), half, scale=0.3)
    want, want_lse = attend_reference(q, [segment], scale=0.3)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out.float(), want, atol=3e-2, rtol=3e-2)
    torch.testing.assert_close(lse, want_lse, atol=3e-2, rtol=3e-2)


def test_attention_is_never_causal_by_itself():
    segment = materialized(n=1, s=3)
    q = queries(n=1, w=3)
    changed = Materialized(
        k_NGSK=segment.k_NGSK.index_fill(2, torch.tensor([2]), 1.0), v_NGSK=segment.v_NGSK
    )
    first, _ = attend(q, segment, scale=1.0)
    second, _ = attend(q, changed, scale=1.0)
    assert (first[:, 0] != second[:, 0]).any(), "the first query sees the last position"
