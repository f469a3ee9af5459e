"""A cell from end to end, with every engine and tiny models; and a run that must fail."""

import json
import re
import sys
from pathlib import Path

import pytest
from bench_cells import recorded, timed, tiny_cell

from xattn.bench import run as runs
from xattn.bench.processes import command
from xattn.bench.report import write_report
from xattn.bench.run import Run, Settings, faults
from xattn.bench.workloads import Plan
from xattn.cli import main
from xattn.errors import UsageError

TAMPERED = """
import sys
from xattn.bench import worker
turn = worker.Worker._turn
def other(self, asked):
    answer = turn(self, asked)
    answer["outputs"][0][-1] += 1
    return answer
def shorter(self, asked):
    answer = turn(self, asked)
    answer["outputs"][0].pop()
    return answer
load = worker.Worker._load
def lazy(self, asked):
    answer = load(self, asked)
    for layer in self._engine._model.network.decoder.layers:
        layer.ffn.down.matrix.scales_O.zero_()
    return answer
worker.Worker._turn = {what}
worker.main()
"""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def measure(scratch, tmp_path):
    def one(*cells, start=command, rounds=2):
        settings = Settings(output=tmp_path, scratch=scratch, rounds=rounds, threads=1, start=start)
        said = []
        with Run(settings, said.append) as run:
            return run.measure(cells), said

    return one


def tampering(engine, what):
    """Workers as they are, and one that lies."""

    def start(name, threads, cores):
        if name != engine:
            return command(name, threads, cores)
        code = TAMPERED.format(what=what)
        return [sys.executable, "-c", code, name, "--threads", str(threads)]

    return start


@pytest.mark.parametrize("model", ["t5-tiny", pytest.param("marian-tiny", marks=pytest.mark.slow)])
def test_all_engines_say_the_same(measure, model, tmp_path):
    cells = [tiny_cell(model, task={"beams": beams}) for beams in (1, 4)]
    record, _ = measure(*cells)
    assert list(faults(record)) == []
    for cell in record["cells"]:
        assert cell["equality"]["compared"] == ("xattn", "ctranslate2", "transformers")
        assert cell["equality"]["agreement"] == 1.0
        assert len(cell["outputs"]["xattn"][0]) == 8
        for found in cell["engines"].values():
            assert {"warm", "cold"} <= found["measures"].keys()
            assert all(len(one["seconds"]) == 2 for one in found["measures"].values())
        theirs = cell["engines"]["ctranslate2"]["measures"]
        assert theirs["warm"]["derived"] == "cold less first"
        for warm, cold, first in zip(
            *(theirs[name]["seconds"] for name in ("warm", "cold", "first")), strict=True
        ):
            assert warm == pytest.approx(cold - first, abs=1e-6)
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(record))


@pytest.mark.slow
def test_many_requests_are_answered_alike_and_memory_is_taken(measure):
    sources = tuple(tuple(range(5 + n, 25 + n)) for n in range(2))
    task = {
        "kind": "requests",
        "prefixes": ((7, 8), (9, 10), (11, 12)),
        "reads": (0, 1, 0),
    }
    cell = tiny_cell(memory="cold", engines=("xattn", "ctranslate2", "transformers"), task=task)
    cell = runs.replace(cell, task=runs.replace(cell.task, sources=sources))
    record, _ = measure(cell, rounds=1)
    assert list(faults(record)) == []
    [found] = record["cells"]
    assert [len(answer) for answer in found["outputs"]["ctranslate2"]] == [8, 8, 8]
    for engine in found["engines"].values():
        assert engine["memory"]["peak_bytes"] >= engine["memory"]["loaded_bytes"] > 2**20


@pytest.mark.parametrize(
    ("engine", "what"),
    [
        ("xattn", "other"),
        ("ctranslate2", "shorter"),
        pytest.param("xattn", "shorter", marks=pytest.mark.slow),
        pytest.param("ctranslate2", "other", marks=pytest.mark.slow),
    ],
)
def test_a_run_fails_if_an_engine_does_other_work(measure, tmp_path, engine, what):
    engines = ("xattn", "ctranslate2")
    record, _ = measure(tiny_cell(engines=engines), start=tampering(engine, what), rounds=1)
    [fault] = faults(record)
    assert re.search(r"beam1/fp32: xattn and ctranslate2 differ: answer 0", fault)
    page = write_report(record, tmp_path).read_text()
    assert "## FAILED" in page
    assert "**DIFFER**" in page


@pytest.mark.parametrize("kind", ["text", "requests"])
def test_quantised_engines_answer_as_likely(measure, kind):
    task = {"kind": kind}
    if kind == "requests":
        task |= {"prefixes": ((7, 8), (9, 10)), "reads": (0, 0)}
    cell = tiny_cell(
        precision="int8", engines=("xattn", "ctranslate2"), rule="as likely", task=task
    )
    record, _ = measure(cell, rounds=1)
    assert list(faults(record)) == []
    scores = record["cells"][0]["scores"]
    for author in ("xattn", "ctranslate2"):
        own, other = scores[author]["xattn"], scores[author]["ctranslate2"]
        assert own == pytest.approx(other, abs=0.08)
        assert all(-12 < one < 0 for one in own)


def test_other_work_fails_even_where_tokens_may_differ(measure):
    cell = tiny_cell(precision="int8", engines=("xattn", "ctranslate2"), rule="as likely")
    less = "setattr(worker.Worker, '_load', lazy) or turn"
    lies = {what: measure(cell, start=tampering("xattn", what), rounds=1)[0] for what in
            ("other", "shorter", less)}  # fmt: skip
    assert any("of xattn has a log-probability of" in one for one in faults(lies["other"]))
    assert any("different numbers of tokens: [7] and [8]" in one for one in faults(lies["shorter"]))
    assert any("a token to ctranslate2, and" in fault for fault in faults(lies[less]))


def test_an_engine_that_breaks_fails_the_run_and_is_started_again(measure):
    broken = tampering("ctranslate2", "lambda self, asked: sys.exit('out of luck')")
    started = []

    def start(name, threads, cores):
        started.append(name)
        return (broken if started.count("ctranslate2") == 1 else command)(name, threads, cores)

    cell = tiny_cell(engines=("xattn", "ctranslate2"))
    record, said = measure(cell, cell, start=start, rounds=1)
    [fault] = faults(record)
    assert "ctranslate2 failed: ctranslate2: its process ended" in fault
    assert "out of luck" in record["cells"][0]["engines"]["ctranslate2"]["error"]
    assert "ctranslate2 failed" in record["cells"][0]["engines"]["xattn"]["not_run"]
    assert record["cells"][1]["equality"]["agreement"] == 1.0
    assert any("out of luck" in line for line in said)


@pytest.mark.slow
def test_an_engine_that_breaks_where_memory_is_taken_loses_no_times(measure):
    started = []

    def start(name, threads, cores):
        started.append(name)
        broken = tampering(name, "lambda self, asked: sys.exit('out of luck')")
        return (broken if started.count(name) == 2 else command)(name, threads, cores)

    cell = tiny_cell(engines=("xattn", "ctranslate2"), memory="cold")
    record, _ = measure(cell, start=start, rounds=1)
    assert all("peak memory of" in fault for fault in faults(record))
    assert len(list(faults(record))) == 2
    for found in record["cells"][0]["engines"].values():
        assert found["measures"]["cold"]["seconds"]


def test_weights_that_cannot_be_made_fail_the_run(measure, scratch, monkeypatch):
    monkeypatch.setattr(runs.Run, "_files", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    record, _ = measure(tiny_cell(engines=("xattn", "ctranslate2")), rounds=1)
    assert [fault.rpartition(": ")[2] for fault in faults(record)] == ["no room", "no room"]


def test_who_cannot_run_a_cell_says_why(measure, tmp_path):
    record, _ = measure(
        tiny_cell(precision="int8", engines=("transformers", "llama.cpp")), rounds=1
    )
    engines = record["cells"][0]["engines"]
    assert engines["transformers"] == {"not_run": "transformers runs in float32 only here"}
    assert "not_run" in engines["llama.cpp"]
    assert list(faults(record)) == []
    page = write_report(record, tmp_path).read_text()
    assert "transformers not run: transformers runs in float32 only here (all)" in page


def test_a_run_goes_on_where_it_was_interrupted(scratch, tmp_path):
    def run(*cells, **changed):
        started = []

        def start(name, threads, cores):
            started.append(name)
            return command(name, threads, cores)

        given = {"output": tmp_path, "scratch": scratch, "rounds": 1, "threads": 1, "start": start}
        with Run(Settings(**given | changed), lambda line: None) as going:
            return going.measure(cells), started

    one, two = (tiny_cell(engines=("xattn",), task={"beams": beams}) for beams in (1, 2))
    first, _ = run(one)
    both, _ = run(one, two, resume=True)
    assert [cell["name"] for cell in both["cells"]] == [one.name, two.name]
    assert both["cells"][0] == json.loads(json.dumps(first["cells"][0]))
    assert run(one, two, resume=True) == (json.loads(json.dumps(both)), [])
    with pytest.raises(UsageError, match=r"of another run: its rounds is 1, and it would be 3 now"):
        run(one, two, resume=True, rounds=3)
    for damage in ("{", "[]", '{"machine": {}}'):
        (tmp_path / "bench.json").write_text(damage)
        with pytest.raises(
            UsageError, match=r"bench\.json is no record of a run, or a damaged one"
        ):
            run(one, resume=True)
    broken = both | {"cells": [both["cells"][0] | {"engines": {"xattn": {"error": "it broke"}}}]}
    (tmp_path / "bench.json").write_text(json.dumps(broken))
    again, started = run(one, resume=True)
    assert started == ["xattn"]
    assert "measures" in again["cells"][0]["engines"]["xattn"]


# Names, pages, the command line


def test_cells_are_chosen_by_workload_name_or_glob(tmp_path):
    plan = Plan(quick=False, scratch=tmp_path)
    names = [cell.name for cell in plan.cells()]
    assert len(set(names)) == len(names)
    assert {name.partition("/")[0] for name in names} == {f"W{n}" for n in range(1, 8)}
    chosen = plan.cells(("W2/t5-small/*/beam4/int8", "W3"))
    assert [cell.workload for cell in chosen] == ["W2"] * 4 + ["W3"]
    with pytest.raises(UsageError, match=r"`only` must name a workload .* but is 'W9' instead"):
        plan.cells(("W9",))


def test_equal_precision_must_give_equal_tokens(tmp_path):
    for quick in (False, True):
        for cell in Plan(quick=quick, scratch=tmp_path).cells():
            assert (cell.rule == "same tokens") == (cell.precision == "fp32"), cell.name


def record_of(*cells):
    return {
        "machine": {"processor": "a fast one", "pinned to": "0, 1", "threads": "2"},
        "settings": {"rounds": 7, "quick": True, "environment": {"OMP_NUM_THREADS": "2"}},
        "engines": {"xattn": {"threads": 2}},
        "cells": list(cells),
        "aims": [],
    }


def notes_of(positions):
    return {"held_bytes": 24_000 * positions, "read_bytes": 24_000 * positions}


def test_a_page_shows_figures_ratios_and_pictures(tmp_path):
    both = {"xattn": timed(steps=64, warm=0.64), "ctranslate2": timed(steps=64, warm=1.28)}
    lengths = [
        recorded(
            "W6",
            {"xattn": timed(step=n * 1e-6) | {"notes": notes_of(n)}},
            axes={"form": "materialized", "beams": "beam1", "positions": n},
        )
        for n in (256, 1024, 8192)
    ]
    reading = timed(read=0.5) | {"notes": {"bytes": 10**10}}
    notes = {"weight_bytes": 10**8, "cross_bytes": 0, "self_bytes": 0}
    roofline = [
        recorded("W7", {"machine": reading}),
        recorded("W7", {"xattn": timed(steps=64, warm=0.64) | {"notes": notes}}),
    ]
    many = recorded("W4", {"xattn": timed(cold=1.0), "ctranslate2": timed(cold=4.0)})
    record = record_of(recorded("W2", both), many, *lengths, *roofline)
    page = write_report(record, tmp_path).read_text()
    assert "- processor: a fast one" in page
    assert "- OMP_NUM_THREADS: 2" in page
    assert "| W2/cell | from memory | 10 ms | 20 ms | 2.00 (2.00 to 2.00) | equal |" in page
    assert "| materialized | 1 | 8192 | 8.19 ms | 187.50 | 187.50 |" in page
    assert "| W7/cell, xattn | 10 ms | 10.0 | 50% |" in page
    for workload in ("w2", "w4", "w6", "w7"):
        picture = tmp_path / f"{workload}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"({picture.name})" in page
    assert not Path(tmp_path / "w1.png").exists()


@pytest.mark.parametrize(("fault", "code"), [((), 0), (("xattn and peer differ",), 1)])
def test_the_command_fails_where_outputs_differ(monkeypatch, capsys, tmp_path, fault, code):
    verdict = {"holds": not fault, "agreement": 1.0, "rule": "same tokens", "faults": fault}
    record = record_of(recorded("W2", {"xattn": timed(warm=1.0)}, equality=verdict))
    monkeypatch.setattr(runs, "bench", lambda settings, only, say: record)
    assert main(["bench", "--only", "W2", "--output", str(tmp_path)]) == code
    shown = capsys.readouterr()
    assert f"written to {tmp_path}" in shown.out
    assert "a fast one, pinned to 0, 1, threads 2, 7 rounds; OMP_NUM_THREADS 2" in shown.out
    assert ("W2/cell: xattn and peer differ" in shown.err) == bool(fault)


def test_a_file_is_no_place_for_a_record(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["bench", "--only", "W7/read", "--output", str(tmp_path / "file")]) == 2
    assert "`--output` must be a directory that can be written" in capsys.readouterr().err


def test_bad_usage_is_said(capsys):
    assert main(["bench", "--list", "--only", "W9"]) == 2
    assert main(["bench", "--cores", "x"]) == 2
    assert main(["bench", "--cores", "0,0"]) == 2
    assert "`--cores` must be some of [" in capsys.readouterr().err
    assert main(["bench", "--list", "--quick", "--json", "--only", "W3"]) == 0
    assert json.loads(capsys.readouterr().out) == ["W3/t5-small/256/4/fp32"]
