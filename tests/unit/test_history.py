"""Tokens of many rows, against lists of lists."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xattn.decoding.history import History

FILLER = 99
PROMPTS = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=5), min_size=1, max_size=4)


@given(PROMPTS, st.data(), st.integers(0, 80))
@settings(deadline=None, max_examples=100)
def test_rows_are_what_lists_would_be(prompts, data, steps):
    history = History(prompts, FILLER, torch.device("cpu"))
    rows, new = [list(prompt) for prompt in prompts], [[] for _ in prompts]
    for step in range(steps):
        kept = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
        history.select(kept)
        history.append([100 * step + place for place in range(len(kept))])
        rows = [[*rows[row], 100 * step + place] for place, row in enumerate(kept)]
        new = [[*new[row], 100 * step + place] for place, row in enumerate(kept)]
    width = max(map(len, prompts)) + steps
    assert history.tokens_RT.tolist() == [[FILLER] * (width - len(row)) + row for row in rows]
    assert history.new_RT.tolist() == history.new_tokens() == new
