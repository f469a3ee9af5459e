"""What fits, and that one more does not."""

from dataclasses import replace

import pytest
from driven import Driven
from tiny import memory_heavy

import xattn
from xattn.errors import UsageError
from xattn.ledger import plan
from xattn.ledger.amounts import MOST_COUNT, amount_of
from xattn.ledger.fit import fit
from xattn.ledger.specs import spec_of
from xattn.spec import FORMS

T5, VISION = spec_of("t5-base"), spec_of("llama-3.2-11b-vision")
GIB = 2**30


@pytest.mark.parametrize("form", FORMS)
def test_what_fits_fits_and_one_more_does_not(form):
    given, budget = {"document": "4x500"}, 3 * GIB
    [found] = [one for one in fit(T5, given, budget, beams=2) if one.form == form]

    def total(**changed):
        return plan(T5, given, engine=True, **{"beams": 2, "form": form} | changed).total_bytes

    assert total(batch=found.batch) <= budget < total(batch=found.batch + 1)
    assert total(beams=found.beams) <= budget < total(beams=found.beams + 1)


@pytest.mark.parametrize(
    ("name", "kind", "given", "counted", "budget", "dtype"),
    [
        ("t5-base", "document", "4x500", "{}x500", 3, "float32"),
        ("t5-base", "text", "300w", "{}x300w", 3, "float32"),
        ("t5-base", "table", "100r8c", "{}x100r8c", 3, "float32"),
        ("whisper-large-v3", "audio", "30s", "{}x30s", 8, "float16"),
        ("whisper-large-v3", "audio", "10m", "{}x10m", 16, "float16"),
        ("llama-3.2-11b-vision", "image", "2", "{}", 24, "bfloat16"),
        ("llama-3.2-11b-vision", "image", "560x560", "{}x560x560", 24, "bfloat16"),
        ("t5gemma2-270m-270m", "image", "3", "{}", 4, "bfloat16"),
        ("smollm2-135m", "document", "3x500", "{}x500", 2, "bfloat16"),
    ],
)
def test_so_many_sources_fit_and_one_more_does_not(name, kind, given, counted, budget, dtype):
    """Counted as they were asked for: a recording of ten minutes is one, in twenty windows."""
    spec = spec_of(name)
    for found in fit(spec, {kind: given}, budget * GIB, dtype=dtype):
        count = found.sources[kind]
        assert count > 0

        def total(count, form=found.form):
            inputs = {kind: counted.format(count)}
            return plan(spec, inputs, form=form, dtype=dtype, engine=True).total_bytes

        assert total(count) <= budget * GIB < total(count + 1), found.form


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """One model, with weights of each kind."""
    directory = tmp_path_factory.mktemp("heavy")
    memory_heavy(directory)
    return {kind: xattn.load(directory, quantize=kind) for kind in (None, "int8", "int4")}


@pytest.mark.parametrize("prompt", [1, 40, 300])
@pytest.mark.parametrize("form", ["materialized", "absorbed"])
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_what_fits_is_what_an_engine_takes(heavy, quantize, form, prompt):
    model, length, new = heavy[quantize], 300, 64
    budget = (192 if prompt < 300 else 768) << 20
    weights = model.ledger().total_bytes
    kinds = {"weights_dtype": quantize or "float32", "prompt_tokens": prompt, "new_tokens": new}
    given = {"document": length}
    [said] = [f for f in fit(model.spec, given, weights + budget, **kinds) if f.form == form]
    driven = Driven(model, form=form, max_rows=4096)

    def taken(count):
        sources = [[3 + (n + k) % 500 for k in range(length)] for n in range(count)]
        told = [5] * (prompt - 1) or None
        jobs = [driven.job(source, told, max_new_tokens=new) for source in sources]
        return driven.admission.predicted(jobs).total

    assert said.batch > 3
    assert taken(said.batch) <= budget < taken(int(1.15 * said.batch) + 1)


def test_nothing_fits_where_weights_alone_are_too_many():
    [one, *_] = fit(T5, {"document": 10}, 2**20)
    assert (one.batch, one.beams, one.sources) == (0, 0, {"document": 0})


def test_a_bound_that_is_not_memorys_is_no_answer():
    """A million documents of one token fit into a pebibyte: more may not be asked for."""
    [one, *_] = fit(T5, {"document": 1}, 2**50)
    assert (one.batch, one.sources) == (None, {"document": None})
    [absorbed] = [f for f in fit(T5, {"document": 1}, 2**50) if f.form == "absorbed"]
    assert absorbed.sources == {"document": None}


def test_int8_is_a_form_of_its_own():
    given = {"document": 1000}
    assert fit(T5, given, 8 * GIB, dtype="int8", weights_dtype="float32") == fit(T5, given, 8 * GIB)


def test_what_cannot_be_asked_for_is_named():
    with pytest.raises(UsageError, match="`form` must be left out"):
        fit(T5, {"document": 3}, GIB, form="absorbed")
    with pytest.raises(UsageError, match="`budget_bytes` must be at least 1"):
        fit(T5, {"document": 3}, 1.5)
    with pytest.raises(UsageError, match="one amount of each kind"):
        fit(T5, {"document": [3, 4]}, GIB)


def test_amounts_are_taken_as_they_are():
    ten = amount_of(spec_of("whisper-large-v3"), "audio", "10m")
    assert (ten.count, ten.pieces, ten.positions, ten.total) == (1, 20, 1500, 30_000)
    assert amount_of(spec_of("whisper-large-v3"), "audio", replace(ten, count=3)).total == 90_000
    with pytest.raises(UsageError, match=f"1 to {MOST_COUNT} sources"):
        amount_of(spec_of("whisper-large-v3"), "audio", replace(ten, count=MOST_COUNT))
    with pytest.raises(UsageError, match="takes document"):
        amount_of(T5, "audio", ten)
