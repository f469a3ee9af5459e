"""``xattn encode`` and ``xattn cache`` on real weights, in a process and across processes."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import xattn as library
from xattn.cli import main
from xattn.store.payload import Payload, pack

ROOT = Path(__file__).parents[2]
RECORDING = ROOT / "examples" / "assets" / "recording.wav"
LM = "smollm2-135m-instruct"
NOTES = "The lighthouse of Cape Marrow was built in 1844 by Anna Verhoeven. It is 41 metres high.\n"
QUESTIONS = (
    "Question: Who built the lighthouse?\nAnswer:",
    "Question: How high is the lighthouse?\nAnswer:",
)


@pytest.fixture
def xattn(capsys, monkeypatch, tmp_path):
    """Run a command in this process, with a store of its own; returns what it printed."""
    monkeypatch.setenv("XATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XATTN_OFFLINE", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        return capsys.readouterr()

    return run


def listed(xattn, *flags):
    return json.loads(xattn("cache", "ls", "--json", *flags).out)["memories"]


def counted(xattn, *flags):
    return json.loads(xattn("cache", "stats", "--json", *flags).out)


def payload_of(root, key):
    [path] = root.rglob(f"tenants/*/??/{key}.safetensors")
    return path


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
    bundle.write_bytes(bundle.read_bytes()[: -len('{"end": 1}\n')])
    assert "cut off" in xattn("cache", "import", bundle, code=1).err


def test_entries_are_pinned_verified_and_removed(xattn, tmp_path):
    words = tmp_path / "words.txt"
    for word in ("hello", "world"):
        words.write_text(word)
        xattn("encode", words, "-m", "g2p-en")
    kept = next(row["key"] for row in listed(xattn) if row["label"] == "hello")
    xattn("cache", "pin", kept)
    removed = xattn("cache", "gc", "--capacity", "1").out.splitlines()
    assert removed[0].split()[1] == "world"
    assert removed[1:] == ["1 removed, 1 left"]
    assert counted(xattn)["capacity_bytes"] == 20 * 2**30, "--capacity holds for one call"
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
        (("cache", "gc", "--capacity", "0"), 2, ["--capacity", "at least 1 byte", "'0'"]),
        (("cache", "export"), 2, ["--all"]),
        (("cache", "import", "none"), 1, ["none: No such file"]),
        (("cache", "import", str(RECORDING)), 1, ["no bundle of memories"]),
        (("encode", "none.txt", "-m", "g2p-en"), 1, ["none.txt: no such file"]),
        (("encode", str(RECORDING)), 2, ["--model"]),
        (("encode", str(RECORDING), "-m", "smollm2-135m-instruct"), 1, ["not readable as UTF-8"]),
        (("encode", "x", "-m", "g2p-en", "--max-positions", "3"), 2, ["max_positions"]),
        (("encode", "x", "-m", "g2p-en", "--max-positions", "0"), 2, ["--max-positions", "1", "0"]),
        (
            ("encode", "x", "-m", "g2p-en", "--max-positions", "9", "--for", "generate"),
            2,
            ["--max-positions", "--for generate"],
        ),
        (("encode", "x", "-m", "g2p-en", "--for", "me"), 2, ["--for", "'me'", "'transcribe'"]),
        (("encode", "x", "-m", LM, "--max-positions", "99"), 2, ["max_positions", "99"]),
        (("generate", "--memory", "none", "a"), 1, ["none: no such file"]),
        (("generate", "--memory", "x"), 2, ["PROMPT must be given", "decoder-only"]),
        (("generate", "--memory", "x", "--memory", "x", "a"), 2, ["--memory", "1 file", "2 files"]),
        (("generate", "--memory", "x", "--chat", "a"), 2, ["--memory", "--chat"]),
        (("generate", "--memory", "-", "-"), 2, ["stdin", "PROMPT and --memory"]),
        (("generate", "--memory", "-", "--memory", "-", "a"), 2, ["stdin", "--memory and"]),
        (("generate", "--memory", "-", "--jsonl", "-"), 2, ["stdin", "--memory and --jsonl"]),
        (("generate", "--memory", "x", "--output", "y"), 2, ["--output", "--jsonl"]),
        (("generate", "--memory", "x", "--stream", "--json", "a"), 2, ["--stream", "--json"]),
        (("generate", "--memory", ".", "a"), 1, [".: not readable as UTF-8"]),
        (("generate", "--memory", str(RECORDING), "a"), 1, ["not readable as UTF-8"]),
        (("generate", "--memory", "-", "a"), 1, ["the source text is empty"]),
        (("generate", "-m", "g2p-en", "--memory", "x", ""), 2, ["0 tokens", "leave it out"]),
    ],
)
def test_mistakes_are_one_line(xattn, tmp_path, arguments, code, words):
    (tmp_path / "x").write_text("some text")
    done = xattn(*arguments, code=code)
    assert done.err.startswith("xattn: error: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert any(part in done.err for part in word.split("|")), done.err


def test_a_text_comes_from_stdin(xattn):
    assert "1 piece, 1 encoded" in xattn("encode", "-", "-m", "g2p-en", stdin=b"a word").out
    assert "1 piece, 1 found" not in xattn("encode", "-", "-m", "g2p-en", stdin=b"\xff", code=1).out


# The store as flags say


def test_a_codec_is_told_with_what_it_lost(xattn, tmp_path):
    (tmp_path / "word").write_text("hello world")
    for codec in ("int4", "int8", "float32"):
        encode = ("encode", "word", "-m", "g2p-en", "--cache-codec", codec)
        assert "1 encoded" in xattn(*encode).out, "what lost something else is no hit"
        assert "1 found" in xattn(*encode).out
        [row] = [row for row in listed(xattn) if row["codec"] == codec]
        exact = codec == "float32"
        assert (row["relative_l2"] == row["largest"] == 0) is exact
        assert row["relative_l2"] < 0.2
        assert f"  {row['relative_l2']:.2g}  " in xattn("cache", "ls").out
        assert counted(xattn)["codecs"][codec] == 1
    assert "1 float32" in xattn("cache", "stats").out


def test_tenants_see_their_own(xattn, tmp_path):
    (tmp_path / "word").write_text("hello")
    ann, ben = ("--cache-tenant", "ann"), ("--cache-tenant", "ben")
    xattn("encode", "word", "-m", "g2p-en", *ann)
    assert "0 encoded" in xattn("encode", "word", "-m", "g2p-en", *ann).out
    assert len(listed(xattn, *ann)) == 1
    assert listed(xattn, *ben) == listed(xattn) == []
    assert "1 encoded" in xattn("encode", "word", "-m", "g2p-en", *ben).out
    [key] = [row["key"] for row in listed(xattn, *ben)]
    assert "no memory" in xattn("cache", "pin", key, *ann, code=1).err
    assert xattn("cache", "clear", "--yes", *ann).out == "1 removed\n"
    assert len(listed(xattn, *ben)) == 1


def test_what_was_not_written_with_the_secret_is_set_aside(xattn, tmp_path):
    (tmp_path / "word").write_text("hello")
    (tmp_path / "secret").write_text("a secret of many bytes\n")
    flags = ("--cache-secret-file", "secret")
    xattn("encode", "word", "-m", "g2p-en", *flags)
    assert xattn("cache", "verify", *flags).out == "1 whole, 0 set aside\n"
    [row] = listed(xattn, *flags)
    path = payload_of(tmp_path / "cache", row["key"])
    memory = Payload(bytearray(path.read_bytes())).memory()
    forged = replace(memory, states_SD=memory.states_SD + 1)
    path.write_bytes(pack(forged, "float32", encode_seconds=1.0, created=0.0))
    assert xattn("cache", "verify").out == "1 whole, 0 set aside\n", "it is whole, and forged"
    done = xattn("cache", "verify", "--json", *flags, code=1)
    assert json.loads(done.out) == {"whole": 0, "set_aside": [row["key"]]}
    assert "1 encoded" in xattn("encode", "word", "-m", "g2p-en", *flags).out


def test_a_bundle_of_strangers_needs_trust(xattn, tmp_path):
    (tmp_path / "word").write_text("hello")
    (tmp_path / "secret").write_text("a secret of many bytes\n")
    xattn("encode", "word", "-m", "g2p-en")
    with (tmp_path / "bundle").open("wb") as file:
        exported = [sys.executable, "-m", "xattn", "cache", "export", "--all"]
        subprocess.run(exported, stdout=file, check=True)
    into = ("--cache-dir", "other", "--cache-secret-file", "secret")
    assert "secret" in xattn("cache", "import", "bundle", *into, code=1).err
    assert listed(xattn, *into) == []
    assert xattn("cache", "import", "bundle", "--trust", *into).out == "1 imported\n"
    assert "0 encoded, 1 found" in xattn("encode", "word", "-m", "g2p-en", *into).out
    assert xattn("cache", "verify", *into).out == "1 whole, 0 set aside\n"


def test_memories_expire_and_gc_names_them(xattn, tmp_path):
    for name, flags in (("brief", ("--cache-ttl", "0.001")), ("lasting", ("--cache-ttl", "1h"))):
        (tmp_path / name).write_text(name)
        xattn("encode", name, "-m", "g2p-en", *flags)
    lasting, brief = listed(xattn)
    assert lasting["expires"] > brief["expires"]
    done = json.loads(xattn("cache", "gc", "--json").out)
    assert done == {
        "removed": 1,
        "memories": [{"key": brief["key"], "label": "brief"}],
        "left": 1,
    }
    assert [row["label"] for row in listed(xattn)] == ["lasting"]


def test_a_budget_is_kept_with_the_directory(xattn, tmp_path):
    for word in ("one", "two", "three"):
        (tmp_path / word).write_text(word)
    xattn("encode", "one", "-m", "g2p-en")
    [row] = listed(xattn)
    budget = str(int(row["bytes"] * 1.5))
    xattn("encode", "two", "-m", "g2p-en", "--cache-capacity", budget)
    assert counted(xattn)["capacity_bytes"] == int(budget)
    xattn("encode", "three", "-m", "g2p-en")
    assert len(listed(xattn)) == 1


def test_what_one_machine_encoded_another_finds(xattn, tmp_path):
    (tmp_path / "word").write_text("hello")
    shared = ("--cache-shared", f"file://{tmp_path}/shared")
    for here, told in (("first", "1 encoded, 0 found"), ("second", "0 encoded, 1 found")):
        done = xattn("encode", "word", "-m", "g2p-en", "--cache-dir", here, *shared)
        assert told in done.out


def test_flags_come_from_variables(xattn, tmp_path, monkeypatch):
    (tmp_path / "word").write_text("hello")
    monkeypatch.setenv("XATTN_CACHE_CODEC", "int8")
    monkeypatch.setenv("XATTN_CACHE_TENANT", "ann")
    monkeypatch.setenv("XATTN_ENCODE_CACHE_CODEC", "int4")
    xattn("encode", "word", "-m", "g2p-en")
    assert [row["codec"] for row in listed(xattn)] == ["int4"]
    assert listed(xattn, "--cache-tenant", "") == []


# Answers that attend to files


def answer(xattn, *arguments, **more):
    return json.loads(xattn("generate", *arguments, "--json", **more).out)


def test_a_language_model_goes_on_from_what_was_encoded(xattn, tmp_path):
    (tmp_path / "notes.txt").write_text(NOTES)
    xattn("encode", "notes.txt", "--model", LM)
    some = ("--memory", "notes.txt", *QUESTIONS, "--max-new-tokens", "12")
    warm = answer(xattn, *some)
    assert [document["encoder_passes"] for document in warm] == [0, 0]
    assert [document["prompt"] for document in warm] == list(QUESTIONS)
    assert counted(xattn)["uses"] == 1
    assert counted(xattn)["memories"] == 1
    cold = answer(xattn, *some, "--no-cache")
    assert cold[0]["encoder_passes"] == 1
    whole = answer(xattn, *(NOTES + question for question in QUESTIONS), "--max-new-tokens", "12")
    for documents in (cold, whole):
        assert [one["text"] for one in documents] == [one["text"] for one in warm]
    assert counted(xattn)["memories"] == 1, "a prompt is not kept"


def test_what_attends_is_kept_for_the_next(xattn, tmp_path):
    (tmp_path / "notes.txt").write_text(NOTES)
    flags = ("--memory", "notes.txt", QUESTIONS[0], "--max-new-tokens", "4")
    assert answer(xattn, *flags)["encoder_passes"] == 1
    assert answer(xattn, *flags)["encoder_passes"] == 0
    assert "0 encoded, 1 found" in xattn("encode", "notes.txt", "-m", LM).out


def test_an_answer_to_a_file_is_streamed(xattn, tmp_path):
    (tmp_path / "notes.txt").write_text(NOTES)
    flags = ("--memory", "notes.txt", "-", "--max-new-tokens", "8")
    lines = b"The lighthouse was built by\nIts height is\n"
    streamed = xattn("generate", *flags, "--stream", stdin=lines).out
    assert streamed == xattn("generate", *flags, stdin=lines).out
    piped = ("--memory", "-", "The lighthouse was built by", "--max-new-tokens", "8")
    alone = xattn("generate", *piped, stdin=NOTES.encode()).out
    assert streamed.startswith(alone.rstrip("\n"))


def test_an_encoder_decoder_attends_to_all_files_together(xattn, tmp_path):
    texts = {"one": "hello world", "two": "a little word"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    model = library.load("g2p-en")
    memories = {name: model.encode(text) for name, text in texts.items()}
    flags = ("-m", "g2p-en", "--memory", "one")
    assert answer(xattn, *flags)["text"] == model.generate(memories["one"]).text
    both = answer(xattn, *flags, "--memory", "two")
    assert both["text"] == model.generate(list(memories.values())).text
    assert both["encoder_passes"] == 1, "the first was found"
    begun = answer(xattn, *flags, "HH")
    assert begun["text"] == model.generate(memories["one"], "HH").text != both["text"]
    assert counted(xattn)["memories"] == 2


def test_a_recording_is_attended_to_as_it_was_encoded(xattn):
    xattn("encode", RECORDING, "-m", "whisper-tiny.en")
    attended = ("-m", "whisper-tiny.en", "--memory", RECORDING, "--max-new-tokens", "60")
    heard = answer(xattn, *attended)
    assert heard["encoder_passes"] == 0
    assert "write it once and share it with everyone" in heard["text"].lower()
    assert answer(xattn, *attended, " Many people")["text"].startswith(" can read the same book")


def test_a_recording_is_encoded_for_whom_is_said(xattn):
    one = ("encode", RECORDING, "-m", "whisper-tiny.en", "--for", "generate")
    assert "1 piece, 1 encoded" in xattn(*one).out
    [entry] = listed(xattn)
    model = library.load("whisper-tiny.en")
    assert entry["key"] == model.prepare(RECORDING).key.digest
    flags = ("-m", "whisper-tiny.en", RECORDING, "--max-new-tokens", "8")
    xattn("generate", *flags)
    assert [(row["key"], row["uses"]) for row in listed(xattn)] == [(entry["key"], 1)]
    assert "1 encoded, 0 found" in xattn("encode", RECORDING, "-m", "whisper-tiny.en").out


def test_records_attend_to_files_of_their_own(xattn, tmp_path):
    for name, text in (("one", "hello world"), ("two", "a little word")):
        (tmp_path / name).write_text(text)
    lines = [
        {"id": "own", "memory": "one"},
        {"id": "both", "memory": ["one", "two"], "prompt": "HH"},
        {"id": "none", "prompt": "hello"},
        {"id": "number", "memory": 7},
        {"id": "empty", "memory": []},
        {"id": "missing", "memory": "three"},
        {"id": "stdin", "memory": "-"},
        {"id": "chat", "memory": "one", "messages": [{"role": "user", "content": "hello"}]},
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ("generate", "-m", "g2p-en", "--jsonl", source, "--output", output)
    said = xattn(*command, code=1).err.splitlines()
    assert [line.split("'")[1] for line in said] == ["number", "empty", "missing", "stdin", "chat"]
    done = {record["id"]: record for record in map(json.loads, output.read_text().splitlines())}
    assert done.keys() == {"own", "both", "none"}
    flags = ("-m", "g2p-en", "--memory", "one")
    assert done["own"]["text"] == answer(xattn, *flags)["text"]
    assert done["both"]["text"] == answer(xattn, *flags, "--memory", "two", "HH")["text"]
    assert done["none"]["text"] == answer(xattn, "-m", "g2p-en", "hello")["text"]
    lossy = xattn(*command, "--cache-codec", "int8", code=2)
    assert "another command, model or options" in lossy.err


def test_records_attend_to_the_file_of_the_command(xattn, tmp_path):
    (tmp_path / "notes.txt").write_text(NOTES)
    lines = [{"id": n, "prompt": question} for n, question in enumerate(QUESTIONS)]
    records = "".join(json.dumps(line) + "\n" for line in lines).encode()
    flags = ("--memory", "notes.txt", "--max-new-tokens", "8")
    done = xattn("generate", *flags, "--jsonl", "-", stdin=records).out
    alone = answer(xattn, *flags, *QUESTIONS)
    assert [json.loads(line)["text"] for line in done.splitlines()] == [a["text"] for a in alone]


def test_answers_do_without_a_store_that_cannot_be_opened(xattn, tmp_path):
    (tmp_path / "cache").write_text("mine")
    (tmp_path / "notes.txt").write_text(NOTES)
    flags = ("--memory", "notes.txt", QUESTIONS[0], "--max-new-tokens", "4")
    done = xattn("generate", *flags)
    assert done.err.startswith("xattn: memories are not kept: ")
    assert done.err.count("\n") == 1
    assert done.out == xattn("generate", *flags, "--no-cache").out
    assert xattn("generate", "A prompt", "--max-new-tokens", "2").err == "", (
        "nothing was to be kept"
    )


def test_answers_do_without_a_shared_place_that_does_not_answer(xattn, tmp_path):
    (tmp_path / "word").write_text("hello")
    (tmp_path / "file").write_text("mine")
    shared = ("--cache-shared", f"file://{tmp_path}/file/in")
    done = xattn("generate", "-m", "g2p-en", "--memory", "word", *shared)
    assert done.err.startswith("xattn: warning: the memory store is done without")
    assert done.err.count("\n") == 1
    assert done.out == xattn("generate", "-m", "g2p-en", "--memory", "word", "--no-cache").out
