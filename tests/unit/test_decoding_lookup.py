"""Guesses from what was seen before: they change how often the decoder is run, and nothing else."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tree import TreeNetwork, memory

from xattn.decoding import Request, Settings, decode, stream
from xattn.decoding.lookup import LENGTHS, Seen
from xattn.errors import UsageError

V = 5
GUESSES = (1, 2, 5, 63)


class Copier(TreeNetwork):
    """After token n comes n + 1, and after the last one the first; now and then, something else."""

    def __init__(self, vocab, *, slips=(), **kwargs):
        super().__init__(vocab, **kwargs)
        self.slips, self.fed = slips, 0

    def step(self, tokens_RT, state, counts_R=None, *, only=None):
        super().step(tokens_RT, state, counts_R)
        self.fed = max(self.fed, len(state.tokens[0]))
        [seen] = state.tokens
        logits = torch.linspace(0, 1, self.spec.decoder.vocab_size)[None].clone()
        follows = seen[-1] + (3 if len(seen) in self.slips else 1)
        logits[0, follows % self.spec.decoder.vocab_size] = 9.0
        return logits


def both(settings, request, *, network=TreeNetwork, guesses=5, **more):
    """Hypotheses and steps of the decoder, without guesses and with them."""
    found = []
    for chosen in (settings, replace(settings, prompt_lookup_num_tokens=guesses)):
        model = network(V)
        [hypotheses] = decode(model, [request], chosen, **more)
        found.append((hypotheses, len(model.rows_of_steps)))
    return found


class Letters:
    def decode(self, ids, *, skip_special=True):
        return "".join("abcde"[i] for i in ids)


def no_doubles(tokens, logits_RV):
    for row, own in enumerate(tokens):
        if own:
            logits_RV[row, own[-1]] = -math.inf
    return logits_RV


FREE = Settings(max_new_tokens=40, eos_token_id=())
KINDS = [
    FREE,
    replace(FREE, logprobs=2),
    replace(FREE, do_sample=True, temperature=0.5, seed=7),
    replace(FREE, repetition_penalty=1.4, no_repeat_ngram_size=6),
    replace(FREE, bad_words_ids=((1, 2), (3,)), penalize_prompt=False),
    replace(FREE, stop_strings=("abc", "cde", "ee")),
    replace(FREE, eos_token_id=(0,), min_new_tokens=9, begin_suppress_tokens=(1,)),
    replace(FREE, eos_token_id=(0,), min_new_tokens=39, forced_eos_token_id=(0,)),
]


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("guesses", GUESSES)
@pytest.mark.parametrize("prompt", [(1,), (1, 2, 3, 4) * 6, (4, 4, 4, 1, 0, 4, 4)])
def test_everything_found_is_what_plain_decoding_finds(settings, guesses, prompt):
    more = {"guesses": guesses, "tokenizer": Letters()}
    for network in (TreeNetwork, Copier):
        (plain, _), (guessed, _) = both(settings, Request(prompt), network=network, **more)
        assert guessed == plain
        more["processors"] = [no_doubles]
        (plain, _), (guessed, _) = both(settings, Request(prompt), network=network, **more)
        assert guessed == plain


@given(st.lists(st.integers(0, V - 1), min_size=1, max_size=30), st.integers(1, 63), st.text())
@examples(deadline=None, max_examples=60)
def test_any_prompt(prompt, guesses, label):
    request = Request(tuple(prompt), (memory(label),))
    (plain, _), (guessed, _) = both(FREE, request, guesses=guesses)
    assert guessed == plain


def test_what_repeats_takes_fewer_steps():
    (plain, slow), (guessed, quick) = both(FREE, Request((0, 1, 2, 3, 4) * 3), network=Copier)
    assert guessed == plain
    assert slow == 40
    assert quick == 1 + math.ceil(39 / (1 + 5))


@pytest.mark.parametrize("slip", [18, 20, 22])
def test_a_wrong_guess_is_taken_back(slip):
    request = Request((0, 1, 2, 3, 4) * 3)
    network = lambda vocab: Copier(vocab, slips=(slip, slip + 7))  # noqa: E731
    (plain, slow), (guessed, quick) = both(FREE, request, network=network)
    assert guessed == plain
    assert quick < slow


@pytest.mark.parametrize("limit", [17, 18, 25])
def test_no_guess_goes_past_the_last_position(limit):
    settings = Settings(eos_token_id=(), prompt_lookup_num_tokens=63)
    network = Copier(V, limit=limit)
    [[found]] = decode(network, [Request((0, 1, 2, 3, 4) * 3)], settings)
    assert len(found.tokens) == limit - 15
    assert network.fed <= limit


def test_a_text_attended_to_is_looked_up_too():
    text = replace(memory("m"), source_tokens=(0, 1, 2, 3, 4) * 5)
    assert both(FREE, Request((0, 1), (text,)), network=Copier)[1][1] == 8
    unknown = replace(text, source_tokens=(*text.source_tokens, V))
    (plain, _), (guessed, quick) = both(FREE, Request((0, 1), (unknown,)), network=Copier)
    assert guessed == plain
    assert quick > 8, "ids that the decoder does not have are not fed to it"


def test_streams_are_the_same():
    settings = replace(FREE, prompt_lookup_num_tokens=4)
    request = Request((0, 1, 2, 3, 4) * 3)
    streamed = tuple(stream(Copier(V), request, settings))
    assert streamed == decode(Copier(V), [request], FREE)[0][0].tokens


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 9))
def test_guesses_are_what_followed_last_time(tokens, most):
    seen = Seen(tokens)
    want = []
    for n in LENGTHS:
        starts = [i for i in range(len(tokens) - n) if tokens[i : i + n] == tokens[-n:]]
        if starts:
            want = tokens[starts[-1] + n :][:most]
            break
    assert seen.guess(most) == want


@pytest.mark.parametrize("value", [0, -1, 64, 1.5, True, "3"])
def test_bad_numbers_of_guesses(value):
    with pytest.raises(UsageError, match="prompt_lookup_num_tokens"):
        Settings(prompt_lookup_num_tokens=value)


@pytest.mark.parametrize("name", ["num_beams", "num_return_sequences"])
def test_guesses_are_for_one_sequence(name):
    with pytest.raises(UsageError, match=f"{name}.*prompt_lookup_num_tokens"):
        Settings(prompt_lookup_num_tokens=3, do_sample=True, **{name: 2})
    chosen = Settings(prompt_lookup_num_tokens=3)
    with pytest.raises(UsageError, match=r"requests.*prompt_lookup_num_tokens.* 2 instead"):
        decode(TreeNetwork(V), [Request((1,)), Request((2,))], chosen)
