"""Tokens that were fed and taken back, against a decoder that never saw them."""

import pytest
import tiny
import torch
from pairs import random_tokens

from xattn.decoding import Request, Settings, decode
from xattn.errors import UsageError

TOLERANCE = dict(atol=1e-4, rtol=0.0)


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def network_of(request, pairs, monkeypatch):
    def make(name):
        monkeypatch.setattr(pairs(name).ours, "use_kernels", request.param)
        return pairs(name).ours

    return make


def attended_of(pair, rows):
    if pair.decoder_only:
        return [[]] * rows
    return [[memory] for memory in pair.memories(pair.inputs(rows, 7)[0])]


@pytest.mark.parametrize("name", tiny.TINY)
def test_logits_after_every_token(pairs, network_of, name):
    network, tokens = network_of(name), random_tokens(3, 9)
    attended = attended_of(pairs(name), 3)
    state = network.start(attended)
    got = [network.step(tokens[:, :2], state)[:, None], network.step_all(tokens[:, 2:], state)]
    want = network.score(tokens, network.start(attended))[:, 1:]
    torch.testing.assert_close(torch.cat(got, dim=1), want, **TOLERANCE)
    assert state.lengths == [9, 9, 9]


@pytest.mark.parametrize("name", tiny.TINY)
def test_what_was_taken_back_leaves_no_trace(pairs, network_of, name):
    network, tokens = network_of(name), random_tokens(2, 9)
    attended = attended_of(pairs(name), 2)
    state = network.start(attended)
    network.step_all(tokens[:, :4], state)
    network.step_all(random_tokens(2, 5, seed=8), state)
    state.truncate([4, 4])
    got = network.step_all(tokens[:, 4:], state)
    want = network.score(tokens, network.start(attended))[:, 4:]
    torch.testing.assert_close(got, want, **TOLERANCE)


def test_beams_keep_what_another_one_takes_back(pairs, network_of):
    """Rows of unequal lengths that began as one."""
    network, tokens = network_of("bart"), random_tokens(1, 6)
    attended = attended_of(pairs("bart"), 1)
    state = network.start(attended)
    network.step_all(tokens, state)
    state.reorder([0, 0, 0])
    network.step_all(random_tokens(3, 2), state)
    state.truncate([2, 6, 7])
    following = random_tokens(3, 1, seed=5)
    got = network.step(following, state)
    ahead = random_tokens(3, 2)
    for row, before in enumerate((tokens[:, :2], tokens, torch.cat((tokens, ahead[2:, :1]), 1))):
        alone = torch.cat((before, following[row : row + 1]), dim=1)
        want = network.score(alone, network.start(attended))[:, -1]
        torch.testing.assert_close(got[row : row + 1], want, **TOLERANCE)


@pytest.mark.parametrize("lengths", [[3], [5, 4], [-1, 4], [4, 4, 4]])
def test_lengths_that_no_row_has(pairs, lengths):
    state = pairs("bart").ours.start(attended_of(pairs("bart"), 2))
    pairs("bart").ours.step_all(random_tokens(2, 4), state)
    with pytest.raises(UsageError, match=r"lengths.*\[4, 4\]"):
        state.truncate(lengths)


@pytest.mark.parametrize("name", tiny.TINY)
def test_guesses_change_no_token(pairs, network_of, name):
    pair, network = pairs(name), network_of(name)
    for seed in range(4):
        prompt = tuple(random_tokens(1, 8, seed=seed)[0].tolist()) * 2
        request = Request(prompt, tuple(attended_of(pair, 1)[0]))
        settings = {"max_new_tokens": 24, "eos_token_id": ()}
        before = network.counters.steps
        [[plain]] = decode(network, [request], Settings(**settings))
        between = network.counters.steps
        [[found]] = decode(network, [request], Settings(**settings, prompt_lookup_num_tokens=6))
        assert found.tokens == plain.tokens
        assert found.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
        assert network.counters.steps - between <= between - before
