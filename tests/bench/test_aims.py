"""Figures against what they should be."""

import pytest
from bench_cells import recorded, timed

from xattn.bench.aims import bandwidth, judge_aims, times_faster


def verdict_of(cells, start):
    [aim] = [aim for aim in judge_aims(cells) if aim["aim"].startswith(start)]
    return aim["verdict"], aim["found"], aim["cells"]


def test_without_figures_nothing_is_reached():
    assert {aim["verdict"] for aim in judge_aims([])} == {"not measured"}


def test_times_are_compared_per_step():
    """CTranslate2's 63 steps against our 64."""
    ours, theirs = timed(steps=64, warm=0.64), timed(steps=63, warm=1.26)
    cell = recorded("W2", {"xattn": ours, "ctranslate2": theirs})
    assert times_faster(cell, "ctranslate2", "warm") == pytest.approx(2.0)
    assert times_faster(cell, "transformers", "warm") is None


def test_who_projects_in_every_call_is_compared_with_that():
    ours, theirs = timed(warm=1.0, anew=2.0), timed(warm=4.0)
    text = recorded("W2", {"xattn": ours, "ctranslate2": theirs, "transformers": theirs})
    assert times_faster(text, "ctranslate2", "warm") == 4.0
    assert times_faster(text, "transformers", "warm") == 2.0
    speech = recorded("W1", {"xattn": ours, "ctranslate2": theirs})
    assert times_faster(speech, "ctranslate2", "warm") == 2.0


@pytest.mark.parametrize("which", ["every", "median"])
def test_who_says_something_else_is_not_faster(which):
    engines = {"xattn": timed(warm=1.0), "ctranslate2": timed(warm=9.0)}
    wrong = {"holds": False, "agreement": 0.5, "rule": "same tokens", "faults": ("they differ",)}
    cells = [recorded("W2", engines), recorded("W2", engines, equality=wrong)]
    aim = f"W1, W2: decoding from memory, times CTranslate2, {which}"
    assert verdict_of(cells[:1], aim) == ("reached", 9.0, 1)
    assert verdict_of(cells[1:], aim) == ("missed", 0.0, 1)
    assert verdict_of(cells, aim)[2] == 2


@pytest.mark.parametrize(("ours", "verdict"), [(0.96, "reached"), (0.5, "missed")])
def test_int8_weights_must_say_what_float32_says(ours, verdict):
    cell = recorded("W1", {}, followed={"xattn": ours, "ctranslate2": 0.9})
    assert verdict_of([cell], "W1: share of int8's tokens")[0] == verdict
    more = verdict_of([cell], "int8: 1 + that share, less CTranslate2's")
    assert more == (verdict, pytest.approx(0.1 + ours), 1)


@pytest.mark.parametrize(("theirs", "verdict"), [(1.31, "reached"), (1.29, "missed")])
def test_the_worst_cell_decides(theirs, verdict):
    cells = [
        recorded("W2", {"xattn": timed(warm=1.0), "ctranslate2": timed(warm=one)})
        for one in (9.0, theirs)
    ]
    found = verdict_of(cells, "W1, W2: decoding from memory, times CTranslate2, every cell")
    assert found == (verdict, pytest.approx(theirs), 2)
    middle = verdict_of(cells, "W1, W2: decoding from memory, times CTranslate2, median")
    assert middle == ("reached", pytest.approx((9 + theirs) / 2), 2)


def test_each_is_taken_at_its_best():
    ours = timed(cold=1.0, cold_Engine=0.5)
    theirs = {"ctranslate2": timed(cold=12.0, cold_one=10.0), "transformers": timed(cold=40.0)}
    cells = [recorded("W3", {"xattn": ours, **theirs})]
    assert verdict_of(cells, "W3: one source, 32 prefixes, times CTranslate2")[:2] == (
        "reached",
        20,
    )
    assert verdict_of(cells, "W3: one source, 32 prefixes, times transformers")[0] == "reached"


def test_memory_counts_for_many_requests():
    def with_peak(peak):
        return timed(cold=1.0) | {"memory": {"peak_bytes": peak, "loaded_bytes": 1}}

    more = recorded("W4", {"xattn": with_peak(200), "ctranslate2": with_peak(100)})
    assert verdict_of([more], "W4: CTranslate2's peak memory") == ("missed", 0.5, 1)


def lengths(form, beams, seconds, per_position):
    return [
        recorded(
            "W6",
            {"xattn": timed(step=seconds(n)) | {"notes": {"held_bytes": per_position * n}}},
            axes={"form": form, "beams": beams, "positions": n},
        )
        for n in (256, 2048, 32768)
    ]


def test_length_is_linear_and_bytes_are_flat_in_beams():
    cells = [
        *lengths("materialized", "beam1", lambda n: 1e-6 * n, 24),
        *lengths("materialized", "beam4", lambda n: 2e-6 * n, 24),
        *lengths("absorbed_int8", "beam1", lambda n: 1e-6 * n, 0.5),
    ]
    assert verdict_of(cells, "W6: time is linear")[0] == "reached"
    assert verdict_of(cells, "W6: bytes held for one beam") == ("reached", 1.0, 3)
    assert verdict_of(cells, "W6: bytes held in float32") == ("reached", 48.0, 3)
    squared = lengths("materialized", "beam4", lambda n: 1e-9 * n * n, 48)
    assert verdict_of(squared, "W6: time is linear")[0] == "missed"
    copies = [*cells[:3], *squared]
    assert verdict_of(copies, "W6: bytes held for one beam") == ("missed", 0.5, 3)


def test_the_roofline_is_the_fastest_way_to_read():
    reading = timed(slow=2.0, fast=1.0) | {"notes": {"bytes": 10**10}}
    notes = {"weight_bytes": 5 * 10**9, "cross_bytes": 10**9, "self_bytes": 10**9}
    cells = [
        recorded("W7", {"machine": reading}),
        recorded("W7", {"xattn": timed(steps=10, warm=10.0) | {"notes": notes}}),
    ]
    assert bandwidth(cells) == ("fast", 10**10)
    assert verdict_of(cells, "W7: share of the memory bandwidth, fp32")[:2] == ("reached", 0.7)
    assert verdict_of(cells, "W7: share of the memory bandwidth, int8")[0] == "not measured"
