"""Statistics, against numbers worked out by hand."""

import pytest

from xattn.bench.summary import ratio, spread, straight_line


def test_spread_is_the_median_and_the_middle_eight_tenths():
    assert spread(range(11)) == (5.0, 1.0, 9.0)
    assert spread([3.0]) == (3.0, 3.0, 3.0)


def test_ratio_is_of_medians_and_its_spread_is_within_rounds():
    """A round in which everything is ten times as slow changes neither."""
    found = ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert found == (2.0, 2.0, 2.0)
    found = ratio([3.0, 4.0, 5.0], [1.0, 2.0, 1.0])
    assert found.median == 4.0
    assert found.p10 == pytest.approx(2.0 + 0.2 * (3.0 - 2.0))


def test_ratio_needs_as_many_rounds_on_both_sides():
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_a_line_is_found_and_a_parabola_is_none():
    xs = [256, 1024, 8192, 32768]
    line = straight_line(xs, [5 + 0.25 * x for x in xs])
    assert line == pytest.approx((5.0, 0.25, 1.0))
    assert straight_line(xs, [x * x for x in xs]).r_squared < 0.98
