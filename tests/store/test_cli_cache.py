"""``xattn encode`` and ``xattn cache`` on real weights, in a process and across processes."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from xattn.cli import main

ROOT = Path(__file__).parents[2]
RECORDING = ROOT / "examples" / "assets" / "recording.wav"


@pytest.fixture
def xattn(capsys, monkeypatch, tmp_path):
    """Run a command in this process, with a store of its own; returns what it printed."""
    monkeypatch.setenv("XATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XATTN_OFFLINE", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        return capsys.readouterr()

    return run


def listed(xattn):
    return json.loads(xattn("cache", "ls", "--json").out)["memories"]


def test_a_recording_is_encoded_once_for_all_commands(xattn):
    first = xattn("encode", RECORDING, "--model", "whisper-tiny.en")
    assert "1 piece, 1 encoded, 0 found" in first.out
    assert "1 piece, 0 encoded, 1 found" in xattn("encode", RECORDING, "-m", "whisper-tiny.en").out
    warm = json.loads(xattn("transcribe", RECORDING, "--json").out)
    cold = json.loads(xattn("transcribe", RECORDING, "--json", "--no-cache").out)
    assert (warm["encoder_passes"], cold["encoder_passes"]) == (0, 1)
    for field in ("text", "segments"):
        assert warm[field] == cold[field]
    [entry] = listed(xattn)
    assert (entry["label"], entry["modality"], entry["positions"]) == (
        "recording.wav",
        "audio",
        1500,
    )
    assert "saved" in xattn("cache", "stats").out


def test_an_edited_paragraph_encodes_its_own_chunk(xattn, tmp_path):
    sentences = [f"Sentence {n} speaks of {n * 7} things, and of others." for n in range(120)]
    document = tmp_path / "document.txt"
    document.write_text(" ".join(sentences))
    command = ("encode", document, "--model", "g2p-en", "--max-positions", "62", "--json")
    first = json.loads(xattn(*command).out)
    assert first["found"] == 0
    assert first["encoded"] > 50
    sentences[60] = "Something else was said here."
    document.write_text(" ".join(sentences))
    again = json.loads(xattn(*command).out)
    assert 1 <= again["encoded"] <= 3
    assert again["found"] >= first["encoded"] - 3


def test_memories_are_carried_to_another_store(xattn, tmp_path):
    xattn("encode", RECORDING, "-m", "whisper-tiny.en")
    [entry] = listed(xattn)
    bundle = tmp_path / "bundle"
    with bundle.open("wb") as file:
        subprocess.run(
            [sys.executable, "-m", "xattn", "cache", "export", entry["key"][:10]],
            stdout=file,
            check=True,
        )
    assert xattn("cache", "clear", "--yes").out == "1 removed\n"
    assert listed(xattn) == []
    assert xattn("cache", "import", bundle).out == "1 imported\n"
    assert [row["key"] for row in listed(xattn)] == [entry["key"]]
    transcript = json.loads(xattn("transcribe", RECORDING, "--json").out)
    assert transcript["encoder_passes"] == 0
    bundle.write_bytes(bundle.read_bytes()[:-1])
    assert "cut off" in xattn("cache", "import", bundle, code=1).err


def test_entries_are_pinned_verified_and_removed(xattn, tmp_path):
    words = tmp_path / "words.txt"
    for word in ("hello", "world"):
        words.write_text(word)
        xattn("encode", words, "-m", "g2p-en")
    kept = next(row["key"] for row in listed(xattn) if row["label"] == "hello")
    xattn("cache", "pin", kept)
    assert xattn("cache", "gc", "--capacity", "1").out.endswith("\n1 removed, 1 left\n")
    assert [row["pinned"] for row in listed(xattn)] == [True]
    [path] = (tmp_path / "cache").rglob("tenants/*/??/*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = xattn("cache", "verify", code=1)
    assert done.out == "0 whole, 1 set aside\n"
    assert xattn("cache", "verify").out == "0 whole, 0 set aside\n"


def test_a_store_that_cannot_be_opened_is_done_without(xattn, tmp_path):
    (tmp_path / "cache").write_text("mine")
    done = xattn("transcribe", RECORDING)
    assert "many people" in done.out.lower()
    assert done.err.startswith("xattn: memories are not kept: ")
    assert done.err.count("\n") == 1
    assert (tmp_path / "cache").read_text() == "mine"


def test_records_are_encoded_with_a_report(xattn, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"{name} little word")
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"id": name, "source": f"{name}.txt"} for name in ("one", "none", "two")]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ("encode", "-m", "g2p-en", "--jsonl", source, "--output", output)
    assert "none.txt: no such file" in xattn(*flags, code=1).err
    reports = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(report["id"], report["encoded"]) for report in reports] == [("one", 1), ("two", 1)]
    assert {key for report in reports for key in report["keys"]} == {
        row["key"] for row in listed(xattn)
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("cache", "pin", "zzz"), 1, ["no memory 'zzz'", "cache ls"]),
        (("cache", "gc", "--capacity", "much"), 2, ["--capacity", "500MiB", "'much'"]),
        (("cache", "gc", "--capacity", "0"), 2, ["at least 1 byte"]),
        (("cache", "export"), 2, ["--all"]),
        (("cache", "import", "none"), 1, ["none: No such file"]),
        (("cache", "import", str(RECORDING)), 1, ["no bundle of memories"]),
        (("encode", "none.txt", "-m", "g2p-en"), 1, ["none.txt: no such file"]),
        (("encode", str(RECORDING)), 2, ["--model"]),
        (("encode", str(RECORDING), "-m", "smollm2-135m-instruct"), 1, ["not readable as UTF-8"]),
        (("encode", "x", "-m", "g2p-en", "--max-positions", "3"), 2, ["max_positions"]),
    ],
)
def test_mistakes_are_one_line(xattn, tmp_path, arguments, code, words):
    (tmp_path / "x").write_text("some text")
    done = xattn(*arguments, code=code)
    assert done.err.startswith("xattn: error: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert any(part in done.err for part in word.split("|")), done.err


def test_a_text_comes_from_stdin(xattn, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a word")))
    assert "1 piece, 1 encoded" in xattn("encode", "-", "-m", "g2p-en").out
