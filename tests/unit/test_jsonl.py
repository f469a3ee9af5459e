"""Records in and out: ids, resume after a stop, and what a failure leaves behind."""

import io
import json

import pytest

from xattn.cli.jsonl import finished_records, read_records, run_records
from xattn.errors import InvalidSourceError, SourceNotFoundError, UsageError

RUN = "r"


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def loaded(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def upper(records):
    return [{"upper": record["text"].upper()} for record in records]


def test_ids_default_to_line_numbers_and_blank_lines_are_passed_over(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n\n{"id": "x", "text": "b"}\n{"text": "c"}\n')
    assert [record["id"] for record in read_records(str(path), ["text"])] == [1, "x", 4]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"text": "a"}\nnot json\n', ["line 2", "not JSON"]),
        ("[1]\n", ["line 1", "must be a JSON object"]),
        ('{"txt": "a"}\n', ["line 1", "'text' or 'prompt'", "txt"]),
        ('{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n', ["line 2", "repeats the id 1"]),
        ('{"id": 2, "text": "a"}\n{"text": "b"}\n', ["line 2", "repeats the id 2"]),
        ('{"id": [1], "text": "a"}\n', ["line 1", "'id' must be"]),
    ],
)
def test_a_bad_line_is_named_before_any_work(tmp_path, text, words):
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_records(str(path), ["text", "prompt"])
    assert all(word in str(caught.value) for word in words)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"none\.jsonl"):
        read_records(str(tmp_path / "none.jsonl"), ["text"])


def test_records_may_come_from_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO('{"text": "ä"}\n'.encode())))
    assert read_records("-", ["text"]) == [{"id": 1, "text": "ä"}]


def test_results_join_the_fields_of_their_record(tmp_path):
    output = tmp_path / "deep" / "out.jsonl"
    records = [{"id": 1, "text": "ä", "reference": "kept"}]
    assert run_records(records, str(output), upper, fields=["text"], run=RUN) == 0
    assert loaded(output) == [{"id": 1, "text": "ä", "reference": "kept", "upper": "Ä", "run": RUN}]
    assert "ä" in output.read_text()


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_resume_does_only_what_is_missing(tmp_path, batch_size):
    records = [{"id": n, "text": f"t{n}"} for n in range(5)]
    output = jsonl(
        tmp_path / "out.jsonl",
        [{"id": n, "text": f"t{n}", "upper": f"T{n}", "run": RUN} for n in (3, 0)],
    )
    seen = []

    def work(batch):
        seen.extend(record["id"] for record in batch)
        return upper(batch)

    run_records(records, str(output), work, batch_size=batch_size, fields=["text"], run=RUN)
    assert seen == [1, 2, 4]
    assert sorted(record["id"] for record in loaded(output)) == [0, 1, 2, 3, 4]


def test_every_cut_of_the_last_line_is_survived(tmp_path):
    """A run killed at any byte of its last line ends, when run again, with the same output."""
    records = [{"id": f"é{n}", "text": f"text {n}"} for n in range(2)]
    whole = tmp_path / "whole.jsonl"
    run_records(records, str(whole), upper, fields=["text"], run=RUN)
    content = whole.read_bytes()
    first = content.index(b"\n") + 1
    for cut in range(first, len(content) + 1):
        output = tmp_path / f"{cut}.jsonl"
        output.write_bytes(content[:cut])
        run_records(records, str(output), upper, fields=["text"], run=RUN)
        assert output.read_bytes() == content, f"cut at byte {cut} of {len(content)}"


def test_a_bad_line_inside_the_output_is_not_taken_for_a_cut(tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text('{"id": 1, "run": "r"}\n{"id": \n{"id": 3, "run": "r"}\n')
    before = output.read_bytes()
    with pytest.raises(UsageError, match="line 2"):
        finished_records(output)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        '{"note": "mine"}\n',
        '{"id": 1, "note": "mine"}\n',
        "dear diary, keep this line\nand this one",
        "one precious line",
        "{}",
        '{"idea": "a poem',
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    output = tmp_path / "notes"
    output.write_text(content)
    with pytest.raises(UsageError, match=r"is not JSON|is no output of xattn"):
        run_records([{"id": 1, "text": "a"}], str(output), upper, fields=["text"], run=RUN)
    assert output.read_text() == content


def test_other_options_need_another_output(tmp_path):
    output = tmp_path / "out.jsonl"
    records = [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]
    run_records(records[:1], str(output), upper, fields=["text"], run="4 beams")
    before = output.read_bytes()
    with pytest.raises(UsageError, match="another command, model or options"):
        run_records(records, str(output), upper, fields=["text"], run="greedy")
    assert output.read_bytes() == before


def test_each_record_is_on_disk_before_the_next_batch(tmp_path):
    output = tmp_path / "out.jsonl"
    lines_before = []

    def work(batch):
        lines_before.append(len(output.read_text().splitlines()))
        return upper(batch)

    run_records(
        [{"id": n, "text": "a"} for n in range(4)],
        str(output),
        work,
        batch_size=2,
        fields=["text"],
        run=RUN,
    )
    assert lines_before == [0, 2]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_record_that_fails_is_named_left_out_and_tried_again(tmp_path, capsys, batch_size):
    records = [{"id": name, "text": name} for name in "abc"]
    output = tmp_path / "out.jsonl"

    def picky(batch):
        for record in batch:
            if record["text"] == "b":
                raise InvalidSourceError("the source\nis empty")
        return upper(batch)

    assert (
        run_records(records, str(output), picky, batch_size=batch_size, fields=["text"], run=RUN)
        == 1
    )
    assert [record["id"] for record in loaded(output)] == ["a", "c"]
    assert capsys.readouterr().err == "xattn: error: record 'b': the source is empty\n"
    assert run_records(records, str(output), upper, fields=["text"], run=RUN) == 0
    assert [record["id"] for record in loaded(output)] == ["a", "c", "b"]


def test_without_an_output_file_records_go_to_stdout(capsys):
    run_records([{"id": 1, "text": "a"}], "-", upper, fields=["text"], run=RUN)
    assert json.loads(capsys.readouterr().out) == {"id": 1, "text": "a", "upper": "A", "run": RUN}


@pytest.mark.parametrize(
    "held", [{"id": 1, "text": "another", "run": RUN}, {"id": 1, "audio": "x.wav", "run": RUN}]
)
def test_the_output_of_another_run_is_refused(tmp_path, held):
    output = jsonl(tmp_path / "out.jsonl", [held])
    before = output.read_bytes()
    with pytest.raises(UsageError, match=r"holds another record with the id 1: its 'text'"):
        run_records([{"id": 1, "text": "t"}], str(output), upper, fields=["text"], run=RUN)
    assert output.read_bytes() == before


def test_a_field_that_the_result_replaces_does_not_count(tmp_path):
    output = tmp_path / "out.jsonl"
    records = [{"id": 1, "text": "t", "upper": "what somebody expected"}]
    run_records(records, str(output), upper, fields=["text"], run=RUN)
    run_records(records, str(output), upper, fields=["text"], run=RUN)
    [line] = loaded(output)
    assert (line["upper"], line["input_upper"]) == ("T", "what somebody expected")


def test_what_is_done_already_is_said(tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    records = [{"id": n, "text": "t"} for n in range(3)]
    run_records(records[:2], str(output), upper, fields=["text"], run=RUN)
    run_records(records, str(output), upper, fields=["text"], run=RUN)
    assert f"2 of 3 records are in {output} already" in capsys.readouterr().err
