"""Placements as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xattn.errors import UsageError
from xattn.placing import drawn, layers_of, written


@pytest.mark.parametrize(
    ("where", "layers", "chosen"),
    [
        ("every:1", 4, [0, 1, 2, 3]),
        ("every:4", 12, [3, 7, 11]),
        ("every:4", 10, [3, 7]),
        ("every:5+3", 20, [3, 8, 13, 18]),  # Llama 3.2 Vision
        ("every:3+0", 7, [0, 3, 6]),
        ("alternate", 5, [0, 2, 4]),
        ("first:2", 5, [0, 1]),
        ("first", 5, [0, 1, 2]),
        ("last:2", 5, [3, 4]),
        ("last", 6, [3, 4, 5]),
        ("middle", 8, [2, 3, 4, 5]),
        ("middle:1", 5, [2]),
        ("sandwich", 12, [0, 1, 2, 9, 10, 11]),
        ("sandwich:1", 6, [0, 5]),
        ("sandwich", 2, [0, 1]),
        ("single", 6, [2]),
        ("all", 3, [0, 1, 2]),
        ("none", 3, []),
        ("3, 8,13", 16, [3, 8, 13]),
        ("2", 3, [2]),
        ("mask:0110", 4, [1, 2]),
        ([3, 8], 9, [3, 8]),
        ((0,), 1, [0]),
        ([True, False, True], 3, [0, 2]),
        ("EVERY:2", 4, [1, 3]),
    ],
)
def test_a_placement_names_layers(where, layers, chosen):
    mask = layers_of(where, layers)
    assert len(mask) == layers
    assert [layer for layer, crosses in enumerate(mask) if crosses] == chosen


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("every", "a number from 1 to 6"),
        ("every:0", "a number from 1 to 6"),
        ("every:7", r"there are 6 layers"),
        ("every:2+6", "S from 0 to 5"),
        ("first:9", "there are 6 layers"),
        ("alternate:2", "'alternate' alone"),
        ("first:2+1", "'first' alone"),
        ("evry:4", "Did you mean 'every'"),
        ("", "one of every:N"),
        ("3,6", "from 0 to 5 .there are 6.*names layer 6"),
        ([6], "names layer 6"),
        ([-1], "a list of layers from 0 to 5"),
        ([True, False], "6 booleans"),
        ([1.5], "a list of layers"),
        (3, "a list of layers"),
        (None, "a list of layers"),
        ("mask:01", "one digit, 0 or 1, for each of the 6 layers"),
        ("mask:012345", "one digit"),
    ],
)
def test_what_is_no_placement_is_refused(where, said):
    with pytest.raises(UsageError, match=said):
        layers_of(where, 6)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_mask_survives_being_written(mask):
    assert layers_of(written(mask), len(mask)) == tuple(mask)
    assert drawn(mask).count("█") == sum(mask)
