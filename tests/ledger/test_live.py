"""The account of what is there: each tensor once, whoever holds it."""

import pytest
import tiny
from driven import Driven

import xattn
from xattn.spec import FORMS

SOURCE = list(range(3, 40))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    tiny.make("t5", directory)
    return xattn.load(directory)


@pytest.mark.parametrize("form", FORMS)
def test_a_pin_holds_a_projection_and_its_states(model, form):
    before = model.ledger().total_bytes
    memory = model.encode(SOURCE)
    states = memory.states_SD.nbytes
    read = model.pin_projection(memory, form=form)
    account = model.ledger()
    own = 0 if form == "absorbed" else read
    assert account.total_bytes - before == states + own
    assert account.of("states") == states
    assert account.of("keys and values") + account.of("int8 states") == own
    model.unpin_projection(memory, form=form)
    assert model.ledger().total_bytes == before


def test_what_two_forms_and_an_engine_share_is_there_once(model):
    memory = model.encode(SOURCE)
    states = memory.states_SD.nbytes
    model.pin_projection(memory, form="absorbed")
    read = model.pin_projection(memory, form="materialized")
    driven = Driven(model, form="absorbed")
    driven.submit(memory, max_new_tokens=8, min_new_tokens=8)
    driven.worker.turn()
    account = driven.worker.ledger()
    assert account.of("states") == states
    assert account.of("keys and values") == read
    driven.finish()
    for form in ("absorbed", "materialized"):
        model.unpin_projection(memory, form=form)


def test_a_pin_of_keys_and_values_is_the_memory_itself(tmp_path):
    tiny.make("llama", tmp_path)
    model = xattn.load(tmp_path)
    memory = model.encode(SOURCE)
    model.pin_projection(memory)
    account = model.ledger()
    assert account.of("states") == memory.states_SD.nbytes
    assert account.of("keys and values") == 0
