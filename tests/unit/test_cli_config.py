"""Which of flag, variable, and file sets an option; and what `config show` says about it."""

import json
import os

import pytest

from xattn.cli import main
from xattn.cli.settings import collect, find_files, read_file, variables
from xattn.errors import UsageError

KNOWN = {
    "transcribe": {"model": False, "beam_size": False, "temperature": False},
    "generate": {"model": False, "threads": False, "stop_strings": True},
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty home and an empty current directory, with no variables of ours set."""
    for name in [name for name in os.environ if name.startswith("XATTN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    here = tmp_path / "project" / "inner"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    return here


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def shown(capsys):
    """Rows of `xattn config show --json`, by (command, name)."""
    assert main(["config", "show", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["settings"]
    return {(row["command"], row["name"]): (row["value"], row["source"]) for row in rows}


def test_the_nearest_file_upward_comes_before_the_personal_one(workplace, tmp_path):
    personal = write(tmp_path / "home" / "config" / "xattn" / "config.toml", "")
    outer = write(workplace.parent.parent / "xattn.toml", "")
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "home" / "config")}
    assert find_files(workplace, environ) == [outer, personal]
    nearer = write(workplace.parent / "xattn.toml", "")
    assert find_files(workplace, environ) == [nearer, personal]


def test_without_xdg_the_personal_file_is_under_home(workplace, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    personal = write(tmp_path / ".config" / "xattn" / "config.toml", "")
    assert find_files(workplace, {}) == [personal]


@pytest.mark.parametrize(
    ("environ", "file_text", "expected"),
    [
        ({}, "", None),
        ({}, 'model = "file"', ("file", "FILE")),
        ({}, 'model = "top"\n[transcribe]\nmodel = "own"', ("own", "FILE")),
        ({"XATTN_MODEL": "variable"}, '[transcribe]\nmodel = "own"', ("variable", "XATTN_MODEL")),
        (
            {"XATTN_MODEL": "variable", "XATTN_TRANSCRIBE_MODEL": "nearer"},
            "",
            ("nearer", "XATTN_TRANSCRIBE_MODEL"),
        ),
        ({"XATTN_MODEL": ""}, 'model = "file"', ("file", "FILE")),
    ],
)
def test_precedence(tmp_path, environ, file_text, expected):
    path = write(tmp_path / "xattn.toml", file_text)
    found = collect(KNOWN, [read_file(path, KNOWN)], environ)["transcribe"].get("model")
    if expected is None:
        assert found is None
    else:
        value, source = expected
        assert (found.value, found.source) == (value, source.replace("FILE", str(path)))


def test_a_nearer_file_beats_a_farther_one_key_by_key(tmp_path):
    near = read_file(write(tmp_path / "a.toml", "[transcribe]\nbeam-size = 2"), KNOWN)
    far = read_file(write(tmp_path / "b.toml", 'model = "m"\n[transcribe]\nbeam_size = 9'), KNOWN)
    found = collect(KNOWN, [near, far], {})["transcribe"]
    assert {name: setting.value for name, setting in found.items()} == {
        "beam_size": 2,
        "model": "m",
    }


def test_lists_reach_options_of_either_kind(tmp_path):
    text = '[transcribe]\ntemperature = [0, 0.5]\n[generate]\nstop_strings = ["a", "b"]'
    found = collect(KNOWN, [read_file(write(tmp_path / "x.toml", text), KNOWN)], {})
    assert found["transcribe"]["temperature"].value == "0,0.5"
    assert found["generate"]["stop_strings"].value == ["a", "b"]
    found = collect(KNOWN, [], {"XATTN_GENERATE_STOP_STRINGS": "a, b"})
    assert found["generate"]["stop_strings"].value == ["a", "b"]


def test_only_common_options_have_a_variable_without_a_command():
    assert variables("transcribe", "beam_size") == ["XATTN_TRANSCRIBE_BEAM_SIZE"]
    assert variables("transcribe", "model") == ["XATTN_TRANSCRIBE_MODEL", "XATTN_MODEL"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modle = 1", ["'modle'", "did you mean 'model'"]),
        ("beam_size = 1", ["'beam_size'", "known are", "transcribe"]),
        ("[transcribe]\nbeam_sise = 1", ["'beam_sise'", "[transcribe]", "'beam_size'"]),
        ("[transcrib]\nbeam_size = 1", ["'transcrib'", "'transcribe'"]),
        ("transcribe = 3", ["[transcribe] must be a table", "3"]),
        ("model = ", ["is not valid TOML"]),
        ('[cache]\ncodec = "int8"', ["'cache' must be one value", "cache_codec"]),
    ],
)
def test_a_file_with_a_mistake_is_refused(tmp_path, text, words):
    path = write(tmp_path / "xattn.toml", text)
    with pytest.raises(UsageError) as caught:
        read_file(path, KNOWN)
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_config_show_says_where_each_value_came_from(workplace, monkeypatch, capsys):
    path = write(workplace / "xattn.toml", "threads = 3\n[transcribe]\nbeam_size = 2\nseed = 1")
    monkeypatch.setenv("XATTN_TRANSCRIBE_BEAM_SIZE", "4")
    rows = shown(capsys)
    assert rows["transcribe", "beam_size"] == (4, "XATTN_TRANSCRIBE_BEAM_SIZE")
    assert rows["transcribe", "threads"] == (3, str(path))
    assert rows["generate", "threads"] == (3, str(path))
    assert rows["transcribe", "seed"] == (1, str(path))
    assert rows["generate", "seed"] == (0, "default, or the checkpoint's")
    assert rows["generate", "num_beams"] == (1, "default, or the checkpoint's")
    assert rows["transcribe", "no_speech_threshold"] == (0.6, "default")
    assert rows["transcribe", "model"] == ("whisper-tiny.en", "default")


def test_config_show_as_text(workplace, monkeypatch, capsys):
    monkeypatch.setenv("XATTN_OFFLINE", "1")
    assert main(["config", "show"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["generate.offline", "true", "XATTN_OFFLINE"] in lines
    assert ["generate.top_p", "1.0", "default,", "or", "the", "checkpoint's"] in lines


def test_a_flag_beats_a_variable(workplace, monkeypatch, capsys):
    # Both values are out of bounds, so that the message shows which one was taken.
    monkeypatch.setenv("XATTN_TRANSCRIBE_BEAM_SIZE", "-7")
    assert main(["transcribe", "none.wav", "--beam-size", "-8"]) == 2
    assert "-8" in capsys.readouterr().err
    assert main(["transcribe", "none.wav"]) == 2
    assert "-7" in capsys.readouterr().err


def test_a_bad_value_names_the_variable_it_came_from(workplace, monkeypatch, capsys):
    monkeypatch.setenv("XATTN_THREADS", "many")
    assert main(["generate", "hello"]) == 2
    message = capsys.readouterr().err
    assert "XATTN_THREADS gives 'many'" in message
    assert message.count("\n") == 1


def test_a_bad_value_of_a_command_in_a_group_names_its_variable(workplace, monkeypatch, capsys):
    monkeypatch.setenv("XATTN_CACHE_STATS_CACHE_RAM", "lots")
    assert main(["cache", "stats"]) == 2
    message = capsys.readouterr().err
    assert "XATTN_CACHE_STATS_CACHE_RAM gives 'lots'" in message
    assert message.count("\n") == 1


def test_the_options_of_the_store_are_set_for_all_commands(workplace, monkeypatch, capsys):
    path = write(workplace / "xattn.toml", "cache_codec = 'int8'\ncache-capacity = '2G'")
    monkeypatch.setenv("XATTN_CACHE_TTL", "1h")
    monkeypatch.setenv("XATTN_ENCODE_CACHE_TTL", "2h")
    rows = shown(capsys)
    for command in ("transcribe", "translate", "generate", "encode"):
        assert rows[command, "cache_codec"] == ("int8", str(path))
        assert rows[command, "cache_capacity"] == (2 * 2**30, str(path))
        assert rows[command, "cache_verify_reads"] == ("first", "default")
        assert rows[command, "cache_tenant"] == ("", "default")
    assert rows["generate", "cache_ttl"] == (3600.0, "XATTN_CACHE_TTL")
    assert rows["encode", "cache_ttl"] == (7200.0, "XATTN_ENCODE_CACHE_TTL")


def test_what_one_call_does_is_no_setting(workplace, capsys):
    rows = shown(capsys)
    assert not [name for _, name in rows if name in ("memory", "for_", "chat", "json")]


def test_help_shows_a_default_and_where_it_came_from(workplace, monkeypatch, capsys):
    path = write(workplace / "xattn.toml", "cache_codec = 'int8'")
    monkeypatch.setenv("XATTN_CACHE_LS_CACHE_TENANT", "someone")
    assert main(["cache", "ls", "--help"]) == 0
    text = "".join(capsys.readouterr().out.split())  # lines are broken anywhere
    assert f"[default:int8][from{path}]" in text
    assert "[default:someone][fromXATTN_CACHE_LS_CACHE_TENANT]" in text
    assert "'xattnconfigshow'printseach" in text
    assert text.count("Memorystore:") == 1


def test_help_works_beside_a_file_with_a_mistake(workplace, capsys):
    write(workplace / "xattn.toml", "nonsense = 1")
    assert main(["transcribe", "--help"]) == 0
    assert "--beam-size" in capsys.readouterr().out
    assert main(["config", "show"]) == 2
    assert "'nonsense'" in capsys.readouterr().err
