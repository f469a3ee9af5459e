"""The flags are the keywords of the library, and their values arrive there."""

from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from xattn import MemoryStore, load
from xattn.cli import main
from xattn.cli.options import GENERATION, LOADING, STORE, takes
from xattn.cli.transcribe import FORMATS, LAYOUT, TRANSCRIPTION
from xattn.decoding import transcript
from xattn.decoding.settings import Settings
from xattn.decoding.subtitles import SubtitleLayout
from xattn.decoding.transcription_settings import TranscriptionSettings
from xattn.store import CODECS
from xattn.store.store import Verification

NO_FLAG = {"prefix_allowed_tokens_fn", "bad_words_ids", "eos_token_id", "strict_length"}
"""Settings of generate for programs: token ids of one checkpoint, and how its own length binds."""


def names(dataclass):
    return {field.name for field in fields(dataclass)}


def test_every_setting_has_a_flag_of_its_name():
    assert GENERATION.keys() == names(Settings) - NO_FLAG | {"form"}
    assert TRANSCRIPTION.keys() == names(TranscriptionSettings)
    assert LAYOUT.keys() == names(SubtitleLayout)
    assert FORMATS == transcript.FORMATS


def test_the_store_and_loading_have_a_flag_for_each_keyword():
    assert {option.keyword for option in STORE.values()} == set(signature(MemoryStore).parameters)
    loading = set(signature(load).parameters) - {"name", "hash"}
    assert LOADING.keys() == loading | {"threads"}
    assert get_args(STORE["cache_codec"].kind) == CODECS
    assert get_args(STORE["cache_verify_reads"].kind) == Verification


@pytest.fixture
def parsed():
    """What the flags of the keywords of ``generate`` and ``transcribe`` become."""
    received = []

    @takes(settings=GENERATION | TRANSCRIPTION)
    def command(*, settings):
        received.append(settings)

    return parser_of(command, received)


@pytest.fixture
def store_options():
    """What the flags of the store become, beside those of loading."""
    received = []

    @takes(store=STORE, loading=LOADING)
    def command(*, store, loading):
        assert loading == {"device": "cpu", "dtype": "float32", "offline": False}
        received.append(store)

    return parser_of(command, received)


def parser_of(command, received):
    """A function from flags to what ``command`` puts into ``received``."""
    app = typer.Typer()
    app.command()(command)

    def parse(*flags):
        result = CliRunner().invoke(app, list(flags))
        assert result.exit_code == 0, result.output
        return received.pop()

    return parse


def test_a_flag_that_is_not_given_does_not_reach_the_library(parsed):
    assert parsed() == {}


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--num-beams", "4"], {"num_beams": 4}),
        (["--do-sample"], {"do_sample": True}),
        (["--no-do-sample"], {"do_sample": False}),
        (["--top-p", "0.9"], {"top_p": 0.9}),
        (["--early-stopping", "never"], {"early_stopping": "never"}),
        (["--early-stopping", "true"], {"early_stopping": True}),
        (["--early-stopping", "false"], {"early_stopping": False}),
        (["--suppress-tokens", "1, 2"], {"suppress_tokens": (1, 2)}),
        (["--stop-strings", ".", "--stop-strings", "a b"], {"stop_strings": [".", "a b"]}),
        (["--temperature", "0,0.5"], {"temperature": (0.0, 0.5)}),
        (["--temperature", "0.5"], {"temperature": (0.5,)}),
        (["--log-prob-threshold", "-1"], {"log_prob_threshold": -1.0}),
        (
            ["--vad-parameters", "threshold_db=-40,speech_pad_ms=200"],
            {"vad_parameters": {"threshold_db": -40, "speech_pad_ms": 200}},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_flag_arrives_as_the_library_takes_it(parsed, flags, settings):
    assert parsed(*flags) == settings


def test_a_store_of_which_nothing_is_said_is_the_librarys(store_options):
    assert store_options() == {}


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--cache-dir", "there"], {"root": Path("there")}),
        (["--cache-codec", "int8"], {"codec": "int8"}),
        (["--cache-capacity", "1234"], {"capacity_bytes": 1234}),
        (["--cache-capacity", "500MiB"], {"capacity_bytes": 500 * 2**20}),
        (["--cache-quota", "1.5g"], {"quota_bytes": 3 * 2**29}),
        (["--cache-ram", "0"], {"ram_bytes": 0}),
        (["--cache-tenant", "a/b"], {"tenant": "a/b"}),
        (["--cache-ttl", "90"], {"ttl_seconds": 90.0}),
        (["--cache-ttl", "0.5h"], {"ttl_seconds": 1800.0}),
        (["--cache-ttl", "7d"], {"ttl_seconds": 604800.0}),
        (["--cache-verify-reads", "always"], {"verify": "always"}),
        (
            ["--cache-shared", "file:///there", "--cache-shared-capacity", "2T"],
            {"cold": "file:///there", "cold_bytes": 2**41},
        ),
    ],
    ids=" ".join,
)
def test_a_store_is_described_as_the_library_takes_it(store_options, flags, options):
    assert store_options(*flags) == options


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"0123456789abcdef", b"0123456789abcdef"),
        (b"0123456789abcdef\n", b"0123456789abcdef"),
        (b"0123456789abcdef\n\n", b"0123456789abcdef\n"),
        (bytes(range(256)), bytes(range(256))),
    ],
)
def test_a_secret_is_what_is_in_its_file(store_options, tmp_path, content, secret):
    (tmp_path / "secret").write_bytes(content)
    assert store_options("--cache-secret-file", str(tmp_path / "secret")) == {"secret": secret}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--cache-codec", "int2"], ["--cache-codec", "'int2'", "'bfloat16'"]),
        (["--cache-capacity", "much"], ["--cache-capacity", "at least 1 byte", "'much'"]),
        (["--cache-capacity", "0"], ["--cache-capacity", "at least 1 byte", "'0'"]),
        (["--cache-capacity", "8388608T"], ["--cache-capacity", "below 8388608T"]),
        (["--cache-capacity", "9" * 400 + "G"], ["--cache-capacity", "below 8388608T"]),
        (["--cache-ram", "-5"], ["--cache-ram", "at least 0 bytes", "'-5'"]),
        (["--cache-quota", "1e3"], ["--cache-quota", "500MiB", "'1e3'"]),
        (["--cache-secret-file", "short"], ["--cache-secret-file", "16 to 65536", "has 15"]),
        (["--cache-secret-file", "long"], ["--cache-secret-file", "16 to 65536", "more than"]),
        (["--cache-secret-file", "none"], ["--cache-secret-file", "'none'", "No such file"]),
        (["--cache-secret-file", "."], ["--cache-secret-file", "'.'", "Is a directory"]),
        (["--cache-ttl", "0"], ["--cache-ttl", "above 0", "'0'"]),
        (["--cache-ttl", "1y"], ["--cache-ttl", "7d", "'1y'"]),
        (["--cache-ttl", "36501d"], ["--cache-ttl", "at most 36500d", "'36501d'"]),
        (["--cache-verify-reads", "often"], ["--cache-verify-reads", "'often'", "'always'"]),
        (["--cache-shared", "no://x"], ["--cache-shared", "fsspec", "no"]),
        (["--cache-shared-capacity", "5M"], ["--cache-shared-capacity", "--cache-shared,"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_flag_of_the_store_out_of_its_bounds(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_bytes(b"0123456789abcde\n")
    (tmp_path / "long").write_bytes(b"x" * (2**16 + 1))
    assert main(["cache", "ls", "--cache-dir", str(tmp_path / "store"), *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("xattn: error: ")
    assert said.count("\n") == 1
    for word in words:
        assert word in said
