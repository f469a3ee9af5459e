"""The flags are the keywords of the library, and their values arrive there."""

from dataclasses import fields

import pytest
import typer
from typer.testing import CliRunner

from xattn.cli.options import GENERATION, takes
from xattn.cli.transcribe import FORMATS, LAYOUT, TRANSCRIPTION
from xattn.decoding import transcript
from xattn.decoding.settings import Settings
from xattn.decoding.subtitles import SubtitleLayout
from xattn.decoding.transcription_settings import TranscriptionSettings

NO_FLAG = {"bad_words_ids", "eos_token_id", "strict_length"}
"""Settings of generate for programs: token ids of one checkpoint, and how its own length binds."""


def names(dataclass):
    return {field.name for field in fields(dataclass)}


def test_every_setting_has_a_flag_of_its_name():
    assert GENERATION.keys() == names(Settings) - NO_FLAG | {"form"}
    assert TRANSCRIPTION.keys() == names(TranscriptionSettings)
    assert LAYOUT.keys() == names(SubtitleLayout)
    assert FORMATS == transcript.FORMATS


@pytest.fixture
def parsed():
    """What the flags of both tables become."""
    received = []

    @takes(settings=GENERATION | TRANSCRIPTION)
    def command(*, settings):
        received.append(settings)

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
