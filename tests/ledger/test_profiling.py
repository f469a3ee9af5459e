"""Allocations that are noted, and where two lines meet."""

import gc
import time
from statistics import median

import pytest
import tiny
import torch

import xattn
from xattn.profiling.allocation import Allocations
from xattn.profiling.stores import StoreTimes, compare

KIB = 1024


def test_tensors_count_while_anything_holds_their_storage():
    with Allocations() as seen:
        with seen.tagged("first"):
            whole = torch.zeros(KIB, dtype=torch.float32)
            view = whole.view(32, 32)[3:].t()
            assert seen.total_bytes == 4 * KIB
            del whole
            assert seen.total_bytes == 4 * KIB
        with seen.tagged("second"):
            other = view + 1
            del view
            gc.collect()
            assert seen.total_bytes == other.untyped_storage().nbytes()
        del other
    assert seen.total_bytes == 0
    first, second = seen.tags()
    assert (first.tag, first.peak, first.resident) == ("first", 4 * KIB, 4 * KIB)
    assert (second.tag, second.peak, second.resident) == ("second", 29 * 128, 29 * 128)
    assert seen.peak_bytes == 4 * KIB + 29 * 128
    assert seen.working == {"first": 0, "second": 4 * KIB}


def test_what_was_there_before_is_nobodys():
    before = torch.zeros(KIB)
    with Allocations() as seen:
        kept = before.view(32, 32).t()
        before.add_(1)
    assert (seen.total_bytes, len(kept)) == (0, 32)
    with Allocations() as seen:
        seen.note([before])
    assert seen.total_bytes == 4 * KIB


def test_the_largest_at_the_peak_are_told_by_owner(tmp_path):
    tiny.make("t5", tmp_path)
    model = xattn.load(tmp_path)
    memory = model.encode([5] * 300)
    with Allocations() as seen, seen.tagged("project"):
        projection = model.network.project(memory)
    found = seen.largest()
    assert sum(one.bytes for one in found) >= projection.size_bytes
    assert found[0].bytes == max(one.bytes for one in found)
    for one in found:
        assert one.tag == "project"
        assert one.owner.startswith(("models/", "attention/"))


def times(measured):
    return StoreTimes(
        encode_seconds=1.0,
        put_seconds=2.0,
        get_seconds=0.2,
        predicted_requests=3.5,
        measured=tuple(measured),
        hits=0,
        misses=0,
    )


@pytest.mark.parametrize(
    ("encode", "put", "get", "counts"),
    [(1.0, 2.0, 0.2, (1, 2, 4, 8)), (0.5, 0.1, 0.1, (1, 2)), (1.0, 3.0, 0.4, (1, 3, 9))],
)
def test_lines_meet_where_arithmetic_says(encode, put, get, counts):
    """n encode = encode + put + (n - 1) get at n = 1 + put / (encode - get)."""
    sweep = [(n, n * encode, encode + put + (n - 1) * get) for n in counts]
    assert times(sweep).measured_requests == pytest.approx(1 + put / (encode - get))


def test_lines_that_do_not_meet():
    assert times([(1, 1.0, 2.0), (2, 2.0, 4.0)]).measured_requests is None
    assert times([(4, 2.0, 1.0), (8, 4.0, 1.5)]).measured_requests == 4


@pytest.mark.slow
def test_a_store_pays_from_where_it_is_foretold(tmp_path):
    """Twenty texts of a small model, of which writing costs about what encoding does."""
    tiny.make("t5", tmp_path, d_model=128, d_kv=32, d_ff=512)
    model = xattn.load(tmp_path)
    sources = [[3 + (n + k) % 90 for k in range(500)] for n in range(20)]

    def prepare():
        return model.prepare_batch(sources)

    def seconds():
        begun = time.perf_counter()
        model.encode_prepared(prepare())
        return time.perf_counter() - begun

    encode = median(seconds() for _ in range(7))
    found = compare(model, prepare, (1, 2, 3, 4, 6, 8, 12, 16), encode_seconds=encode)
    assert found.measured_requests == pytest.approx(found.predicted_requests, rel=0.5, abs=0.5)
