"""What forms cost: bytes as states hold them, operations as torch counts them, seconds by sums."""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from pairs import memory_of
from torch.utils.flop_counter import FlopCounterMode

from xattn.attention import Absorbed, attend
from xattn.costs import FAR_BYTES, NEAR_BYTES, Rates, Reading, cost, flops, projection_flops
from xattn.errors import AbsorptionError, UsageError
from xattn.spec import FORMS, is_absorbed

EXACT = ("materialized", "absorbed")
RATES = Rates(
    near_bytes_per_second=40e9,
    far_bytes_per_second=20e9,
    step_flops_per_second=100e9,
    projection_flops_per_second=250e9,
)
FREE = 1e30
"""A rate at which nothing takes any time."""


def memories_of(pair, lengths):
    width = pair.ours.spec.decoder.memory_width
    generator = torch.Generator().manual_seed(5)
    return [memory_of(torch.randn(S, width, generator=generator), f"costs {S}") for S in lengths]


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
@pytest.mark.parametrize("form", FORMS)
def test_the_bytes_held_are_those_of_a_state(pairs, name, form):
    network = pairs(name).ours
    memories = memories_of(pairs(name), (40, 9))
    state = network.start([[memory] for memory in memories], form=form)
    readings = [Reading(positions=len(memory), rows=1) for memory in memories]
    assert cost(network.spec.decoder, readings, form, RATES, steps=1).held_bytes == (
        state.cross_bytes
    )


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
@pytest.mark.parametrize("form", FORMS)
def test_the_bytes_of_a_step_are_those_that_each_layer_reads(pairs, name, form):
    network = pairs(name).ours
    [memory] = memories_of(pairs(name), (40,))
    read = 0
    for segment in network.project(memory, form=form).segments:
        read += segment.size_bytes
        if isinstance(segment, Absorbed):
            read += segment.k_weight_GKD.nbytes + segment.v_weight_GKD.nbytes
    found = cost(network.spec.decoder, [Reading(positions=40, rows=3)], form, RATES, steps=1)
    assert found.step_bytes == read


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
@pytest.mark.parametrize("form", EXACT)
def test_the_operations_of_a_step_are_those_that_torch_counts(pairs, name, form):
    network = pairs(name).ours
    [memory] = memories_of(pairs(name), (17,))
    attention = network.spec.decoder.cross_attention
    # What needs a gradient is written out as products, which torch counts.
    q_1WHK = torch.randn(1, 3, attention.heads, attention.head_width, requires_grad=True)
    segments = network.project(memory, form=form).segments
    with FlopCounterMode(display=False) as counter:
        for segment in segments:
            attend(q_1WHK, segment, scale=attention.scale)
    decoder = network.spec.decoder
    biases = counter.get_total_flops() - flops(decoder, 17, 3, form)
    # A key bias is multiplied with the queries, for the log-sum-exp alone.
    per_layer = 2 * 3 * attention.heads * attention.head_width
    absorbs_bias = is_absorbed(form) and attention.k_bias
    assert biases == decoder.placement.count * per_layer * absorbs_bias


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
def test_the_operations_of_projecting_are_those_that_torch_counts(pairs, name):
    network = pairs(name).ours
    [memory] = memories_of(pairs(name), (23,))
    memory.states_SD.requires_grad_()  # oneDNN's own products are not counted
    with FlopCounterMode(display=False) as counter:
        network.project(memory, form="materialized")
    assert counter.get_total_flops() == projection_flops(network.spec.decoder, 23, "materialized")


def test_memories_add_up(pairs):
    decoder = pairs("t5").ours.spec.decoder
    readings = [Reading(positions=700, rows=2), Reading(positions=300, rows=5)]
    both = cost(decoder, readings, "materialized", RATES, steps=9)
    apart = [cost(decoder, [one], "materialized", RATES, steps=9) for one in readings]
    for name in ("held_bytes", "step_bytes", "step_flops", "projection_flops"):
        assert getattr(both, name) == sum(getattr(one, name) for one in apart)
    shared = cost(decoder, [Reading(positions=700, rows=8)], "absorbed", RATES, steps=9)
    single = cost(decoder, [Reading(positions=700, rows=1)], "absorbed", RATES, steps=9)
    assert shared.step_bytes == single.step_bytes
    assert shared.step_flops == 8 * single.step_flops


@pytest.mark.parametrize("beams", [1, 4])
def test_more_steps_than_arithmetic_says_make_projecting_worthwhile(pairs, beams):
    """With reading free, a projection pays back what absorbed steps multiply more."""
    decoder = pairs("t5").ours.spec.decoder
    attention, L, S = decoder.cross_attention, decoder.placement.count, 500
    H, G, K, D = attention.heads, attention.kv_heads, attention.head_width, decoder.memory_width
    rates = replace(RATES, near_bytes_per_second=FREE, far_bytes_per_second=FREE)
    projecting = 2 * 2 * S * D * G * K * L / rates.projection_flops_per_second
    more = 2 * 2 * beams * H * L * (S * D + K * D - S * K) / rates.step_flops_per_second
    even = projecting / more
    assert even > 0.3, "the sizes make a case"
    reading = Reading(positions=S, rows=beams, prompt_tokens=beams)
    for steps in range(1, 12):
        materialized, absorbed = (
            cost(decoder, [reading], form, rates, steps=steps) for form in EXACT
        )
        assert (materialized.seconds < absorbed.seconds) == (steps > even)


def test_where_only_reading_takes_time_the_fewer_bytes_win(pairs):
    decoder = pairs("t5").ours.spec.decoder
    rates = replace(RATES, step_flops_per_second=FREE, projection_flops_per_second=FREE)
    readings = [Reading(positions=10**6, rows=8)]
    materialized, absorbed = (cost(decoder, readings, f, rates, steps=50) for f in EXACT)
    assert absorbed.step_bytes < materialized.step_bytes
    assert absorbed.seconds < materialized.seconds
    # The states come from memory, and the few weights from a cache.
    most, least = rates.near_bytes_per_second, rates.far_bytes_per_second
    assert absorbed.step_bytes / most < absorbed.step_seconds < absorbed.step_bytes / least


def test_a_small_memory_is_read_from_a_cache_and_a_large_one_from_memory():
    assert RATES.bytes_per_second(0) == RATES.bytes_per_second(NEAR_BYTES) == pytest.approx(40e9)
    assert RATES.bytes_per_second(2 * FAR_BYTES) == pytest.approx(20e9)


@given(
    st.floats(1, 1e12),
    st.floats(1, 1e12),
)
def test_more_bytes_are_read_no_faster(one, other):
    small, large = sorted((one, other))
    assert RATES.bytes_per_second(small) >= RATES.bytes_per_second(large) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda d: Reading(positions=0, rows=1), "`positions` must be at least 1, but is 0"),
        (lambda d: Reading(positions=1, rows=0), "`rows` must be at least 1, but is 0"),
        (lambda d: Reading(positions=1, rows=1, prompt_tokens=-1), "`prompt_tokens` must be"),
        (lambda d: cost(d, [], "materialized", RATES, steps=0), "`steps` must be at least 1"),
    ],
)
def test_what_is_out_of_bounds_is_named(pairs, call, said):
    with pytest.raises(UsageError, match=said):
        call(pairs("t5").ours.spec.decoder)


def test_an_illegal_form_has_no_cost(pairs):
    decoder = pairs("t5").ours.spec.decoder
    normed = replace(decoder.cross_attention, qk_norm=decoder.norm)
    with pytest.raises(AbsorptionError, match="norm"):
        cost(replace(decoder, cross_attention=normed), [], "absorbed", RATES, steps=1)
