"""Forms on the command line: what the doctor says of them, and where they are set."""

import json
import os

import pytest
import tiny

from xattn.cli import main
from xattn.spec import FORMS


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No settings of the machine, and no network."""
    for name in [name for name in os.environ if name.startswith("XATTN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XATTN_OFFLINE", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A tiny T5 as transformers saves it."""
    directory = tmp_path_factory.mktemp("t5")
    tiny.make("t5", directory)
    return directory


@pytest.fixture
def run(capsys):
    def command(*arguments, code=0):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        return capsys.readouterr()

    return command


def test_the_doctor_explains_every_form_at_every_length(run, t5):
    asked = ("--positions", "40,5000", "--num-beams", 4, "--max-new-tokens", 16)
    forms = json.loads(run("doctor", "--model", t5, *asked, "--json").out)["forms"]
    assert (forms["num_beams"], forms["max_new_tokens"]) == (4, 16)
    assert forms["kernels"].startswith(("used", "not used: "))
    assert forms["rates"]["step_flops_per_second"] > 0
    assert [length["positions"] for length in forms["lengths"]] == [40, 5000]
    for length in forms["lengths"]:
        assert [form["form"] for form in length["forms"]] == list(FORMS)
        [chosen] = [form for form in length["forms"] if form["note"] == "chosen"]
        assert chosen["form"] == length["chosen"]
        assert length["why"]
    long = {form["form"]: form for form in forms["lengths"][1]["forms"]}
    quickest = min(("materialized", "absorbed"), key=lambda form: long[form]["seconds"])
    assert forms["lengths"][1]["chosen"] == quickest
    assert "seconds" not in long["absorbed-int8"]
    short, text = forms["lengths"][0], run("doctor", "--model", t5, *asked).out
    assert short["chosen"] == "materialized"
    assert f"auto takes materialized. {short['why']}" in text
    assert "5000 positions" in text
    for form in FORMS:
        assert sum(line.startswith(f"{form} ") for line in text.splitlines()) == 2


def test_the_doctor_measures_again_where_it_is_asked(run, t5, monkeypatch):
    from xattn.models import rates

    measure, calls = rates.measure, []

    def counted(*, kernels):
        calls.append(kernels)
        return measure(kernels=kernels)

    monkeypatch.setattr(rates, "measure", counted)
    run("doctor", "--model", t5, "--positions", "2000")
    calls.clear()
    run("doctor", "--model", t5, "--positions", "2000")
    assert calls == []
    text = run("doctor", "--model", t5, "--positions", "2000", "--measure").out
    assert len(calls) == 1
    assert "measured now" in text


def test_the_doctor_says_why_there_is_no_choice(run, t5):
    found = run("doctor", "--model", t5, "--dtype", "bfloat16", "--positions", "5000", "--json").out
    forms = json.loads(found)["forms"]
    assert forms["rates"] is None
    assert forms["kernels"].startswith("not used: ")
    assert "bfloat16" in forms["lengths"][0]["why"]


def test_the_doctor_names_compiler_kernels_and_rates(run, monkeypatch):
    machine = json.loads(run("doctor", "--json").out)["machine"]
    assert machine["compiler"]
    assert machine["kernels"]
    assert machine["rates"]
    monkeypatch.setenv("XATTN_NATIVE", "0")
    without = json.loads(run("doctor", "--json").out)["machine"]
    assert without["kernels"] == "none: XATTN_NATIVE=0"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--positions", "12,x"), 2, "`--positions` must be whole numbers"),
        (("--positions", "0"), 2, "`--positions` must be lengths from 1 to"),
        (("--positions", "-5"), 2, "`--positions` must be lengths from 1 to"),
        (("--positions", "12,99999999999"), 2, "`--positions` must be lengths from 1 to"),
        (("--positions", ""), 2, "`--positions` must be lengths from 1 to"),
        (("--num-beams", "0"), 2, "num-beams"),
        (("--max-new-tokens", "0"), 2, "max-new-tokens"),
    ],
)
def test_mistakes_of_the_doctor_are_named(run, t5, arguments, code, said):
    found = run("doctor", "--model", t5, *arguments, code=code)
    assert found.out == ""
    assert said in found.err


def test_the_doctor_has_nothing_to_say_of_a_decoder_alone(run, tmp_path):
    tiny.make("llama", tmp_path / "llama")
    found = run("doctor", "--model", tmp_path / "llama", code=2)
    assert "decoder-only" in found.err
    assert run("doctor", "--model", tmp_path / "none", code=1).err.startswith("xattn: error: ")


def test_a_model_of_the_settings_is_not_the_doctors(run, tmp_path):
    (tmp_path / "xattn.toml").write_text('model = "no-such-model"\n')
    assert "forms" not in json.loads(run("doctor", "--json").out)


def test_a_form_is_set_by_flag_variable_and_file(run, tmp_path, monkeypatch):
    words = ("translate", "attention", "--model", "g2p-en", "--no-cache")
    plain = run(*words).out
    assert plain
    for form in ("auto", "absorbed"):
        assert run(*words, "--form", form).out == plain
        monkeypatch.setenv("XATTN_TRANSLATE_FORM", form)
        assert run(*words).out == plain
    monkeypatch.delenv("XATTN_TRANSLATE_FORM")
    (tmp_path / "xattn.toml").write_text('[translate]\nform = "auto"\n')
    assert run(*words).out == plain
    (tmp_path / "xattn.toml").write_text('[translate]\nform = "folded"\n')
    assert "folded" in run(*words, code=2).err
    (tmp_path / "xattn.toml").unlink()
    assert "'auto'" in run(*words, "--form", "folded", code=2).err
