"""The form that ``auto`` takes: by arithmetic where it matters, and never a lossy one."""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from pairs import memory_of

import xattn
from xattn import model as model_module
from xattn.costs import Rates, Reading, cost
from xattn.decoding import Request, Settings
from xattn.decoding.forms import EXACT, FEW_POSITIONS, choose, decide, readings_of
from xattn.errors import PromptError, UsageError
from xattn.models.pins import Pins
from xattn.models.rates import Measured

RATES = Rates(
    near_bytes_per_second=40e9,
    far_bytes_per_second=20e9,
    step_flops_per_second=100e9,
    projection_flops_per_second=250e9,
)
SLOW_TO_PROJECT = replace(RATES, projection_flops_per_second=1e6)
SLOW_TO_MULTIPLY = replace(RATES, step_flops_per_second=1e6)
STEPS = Settings(max_new_tokens=4)


def of(rates):
    return lambda: rates


def nobody_asks():
    raise AssertionError("the rates do not matter here")


def long_memory(network, source="long", positions=64):
    generator = torch.Generator().manual_seed(len(source))
    width = network.spec.decoder.memory_width
    return memory_of(torch.randn(positions, width, generator=generator), source)


@pytest.fixture
def network(pairs):
    return pairs("t5").ours


def request_of(network, *memories, prompt=1):
    return Request((0,) * prompt, memories or (long_memory(network),))


def test_the_sooner_done_is_taken(network):
    requests = [request_of(network)]
    assert choose(network, requests, STEPS, of(SLOW_TO_PROJECT)) == "absorbed"
    assert choose(network, requests, STEPS, of(SLOW_TO_MULTIPLY)) == "materialized"


def test_beams_and_requests_that_share_a_memory_tip_the_scale(network):
    """One projection serves all of them, and each of them multiplies."""
    memory = long_memory(network, positions=900)
    decoder = network.spec.decoder

    def seconds(form, rows):
        reading = Reading(positions=900, rows=rows, prompt_tokens=rows)
        return cost(decoder, [reading], form, rates, steps=2).seconds

    rates = replace(RATES, near_bytes_per_second=1e15, far_bytes_per_second=1e15)
    tipping = next(n for n in range(1, 99) if seconds("materialized", n) < seconds("absorbed", n))
    assert tipping > 1, "a case where it matters"
    settings = Settings(max_new_tokens=2)
    for count, form in ((tipping - 1, "absorbed"), (tipping, "materialized")):
        requests = [request_of(network, memory)] * count
        assert choose(network, requests, settings, of(rates)) == form
    apart = [request_of(network, long_memory(network, f"{n}", 900)) for n in range(tipping)]
    assert choose(network, apart, settings, of(rates)) == "absorbed"


def test_who_reads_what_is_counted(network):
    one, other = long_memory(network, "one", 50), long_memory(network, "other", 70)
    requests = [request_of(network, one, other, prompt=3), request_of(network, one, prompt=2)]
    assert readings_of(requests, Settings(num_beams=4)) == [
        Reading(positions=50, rows=8, prompt_tokens=5),
        Reading(positions=70, rows=4, prompt_tokens=3),
    ]
    sampled = Settings(do_sample=True, num_return_sequences=3)
    assert [reading.rows for reading in readings_of(requests, sampled)] == [6, 3]
    guessed = Settings(prompt_lookup_num_tokens=10)
    assert [reading.rows for reading in readings_of(requests, guessed)] == [22, 11]


def test_short_memories_ask_for_no_rates(network):
    short = request_of(network, long_memory(network, positions=31))
    assert choose(network, [short], STEPS, nobody_asks) == "materialized"
    many = Settings(max_new_tokens=10_000)
    below = request_of(network, long_memory(network, positions=FEW_POSITIONS - 1))
    assert choose(network, [below], many, nobody_asks) == "materialized"
    both = request_of(
        network, long_memory(network, "a", FEW_POSITIONS), long_memory(network, "b", 8)
    )
    assert choose(network, [both], many, of(SLOW_TO_PROJECT)) == "absorbed"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama", "no cross-attention"),
        ("bfloat16", "bfloat16"),
        ("int8", "int8"),
        ("hook", "plain"),
    ],
)
def test_where_tokens_would_depend_on_it_there_is_no_choice(tmp_path, name, said):
    tiny.make("llama" if name == "llama" else "t5", tmp_path)
    loading = {"bfloat16": {"dtype": name}, "int8": {"quantize": name}}.get(name, {})
    network = xattn.load(tmp_path, **loading).network
    if name == "hook":  # as adapters may be set
        first = next(network.decoder.stack)
        first.cross_attn.k.register_forward_hook(lambda module, args, output: output * 2)
    found = decide(network, [Reading(positions=10**6, rows=1)], 4, nobody_asks)
    assert found.form == "materialized"
    assert said in found.why


rate = st.floats(1e6, 1e16)


@given(rate, rate, rate, rate, st.integers(1, 10**6), st.integers(1, 64), st.integers(1, 4096))
def test_no_rates_make_it_lossy(pairs, near, far, step, projection, positions, rows, steps):
    rates = Rates(
        near_bytes_per_second=near,
        far_bytes_per_second=far,
        step_flops_per_second=step,
        projection_flops_per_second=projection,
    )
    found = decide(pairs("t5").ours, [Reading(positions=positions, rows=rows)], steps, of(rates))
    assert found.form in EXACT
    assert found.why


def test_what_is_pinned_is_taken(network):
    memory, pins = long_memory(network), Pins(network)
    requests = [request_of(network, memory)]
    pins.pin(memory, "materialized")
    assert choose(network, requests, STEPS, nobody_asks, pins) == "materialized"
    pins.unpin(memory, "materialized")
    pins.pin(memory, "absorbed")
    assert choose(network, requests, STEPS, nobody_asks, pins) == "absorbed"
    longer = long_memory(network, "longer", 65)
    pins.pin(longer, "materialized")
    both = [request_of(network, memory, longer)]
    assert choose(network, both, STEPS, nobody_asks, pins) == "materialized"


def test_a_pin_that_loses_something_is_not_taken(network):
    memory, pins = long_memory(network), Pins(network)
    pins.pin(memory, "absorbed-int8")
    requests = [request_of(network, memory)]
    assert choose(network, requests, STEPS, of(SLOW_TO_MULTIPLY), pins) == "materialized"
    assert choose(network, requests, STEPS, of(SLOW_TO_PROJECT), pins) == "absorbed"


def test_a_projection_says_its_form(network):
    for form in EXACT:
        projection = network.project(long_memory(network), form=form)
        requests = [request_of(network, projection)]
        assert choose(network, requests, STEPS, nobody_asks) == form


def test_a_prompt_that_does_not_fit_is_an_error_as_in_decoding(network):
    with pytest.raises(PromptError, match="0 tokens"):
        choose(network, [request_of(network, prompt=0)], STEPS, nobody_asks)


# Through the model


@pytest.fixture
def loaded(tmp_path):
    tiny.make("bart", tmp_path)
    return xattn.load(tmp_path)


SOURCE = [5, 9, 12, 7, 2] * 8


@pytest.mark.parametrize("rates", [SLOW_TO_PROJECT, SLOW_TO_MULTIPLY])
def test_generate_chooses_and_says_the_same(loaded, monkeypatch, rates):
    forms, start = [], loaded.network.start

    def watched(attended, *, form="materialized", **how):
        forms.append(form)
        return start(attended, form=form, **how)

    monkeypatch.setattr(loaded.network, "start", watched)
    monkeypatch.setattr(
        model_module, "rates_of", lambda network: Measured(rates=rates, source="the test")
    )
    wanted = "absorbed" if rates is SLOW_TO_PROJECT else "materialized"
    settings = {"max_new_tokens": 4, "no_repeat_ngram_size": 1}
    named = [loaded.generate(SOURCE, form=form, **settings).tokens for form in EXACT]
    forms.clear()
    assert loaded.generate(SOURCE, **settings).tokens == named[0] == named[1]
    [answer] = loaded.generate_batch([SOURCE], form="auto", **settings)
    assert answer.tokens == named[0]
    assert forms == [wanted] * 2


def test_streams_choose_too(loaded, monkeypatch):
    asked = []

    def rates_of(network):
        asked.append(network)
        return Measured(rates=SLOW_TO_PROJECT, source="the test")

    monkeypatch.setattr(model_module, "rates_of", rates_of)
    monkeypatch.setattr(type(loaded), "tokenizer", None)
    monkeypatch.setattr(model_module, "TextStream", lambda *_: None)
    loaded.stream(SOURCE, max_new_tokens=4)
    assert asked == [loaded.network]


def test_a_form_of_another_name_is_an_error_that_lists_them(loaded):
    with pytest.raises(UsageError, match="`form` must be one of auto, materialized, absorbed, "):
        loaded.generate(SOURCE, form="folded")
