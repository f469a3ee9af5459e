"""The protocol: what comes back for a line, for a wrong one, and for none."""

import io
import json
import os
import sys
from types import SimpleNamespace

import pytest

from xattn.bench import engines
from xattn.bench.making import ModelFiles
from xattn.bench.processes import Process, WorkerFailed, command, environment
from xattn.bench.tasks import Call, NotRun, Ready, Task
from xattn.bench.worker import Worker, memory_in_use, serve

FILES = vars(ModelFiles(name="none", xattn="none"))


class Echo:
    """An engine that says what it was given."""

    def __init__(self, threads):
        self.threads, self.loads, self.before = threads, 0, 0

    def facts(self):
        return {"threads": self.threads}

    def load(self, files, precision):
        self.loads += 1
        if precision == "int8":
            raise NotRun("it cannot count to eight")

    def set_up(self, task):
        def before():
            self.before += 1

        def fail():
            raise ZeroDivisionError("by nothing")

        run = Call(run=lambda: [list(source) for source in task.sources], before=before)
        return Ready(calls={"warm": run, "broken": Call(run=fail)}, notes={"loads": self.loads})


@pytest.fixture
def ask(monkeypatch):
    module = SimpleNamespace(Engine=Echo)
    monkeypatch.setitem(engines.MODULES, "echo", "echo_engine")
    monkeypatch.setitem(sys.modules, "echo_engine", module)
    worker = Worker("echo", 3)
    return lambda do, **given: worker.answer(json.dumps({"do": do, **given}))


def test_a_task_goes_there_and_outputs_come_back(ask):
    assert ask("hello")["ok"]["facts"]["threads"] == 3
    assert ask("load", files=FILES, precision="fp32")["ok"]["seconds"] >= 0
    ready = ask("set_up", task=vars(Task(kind="text", sources=((1, 2),))))
    assert ready == {"ok": {"measures": ["warm", "broken"], "notes": {"loads": 1}}}
    answer = ask("turn", measure="warm", repeats=3, discard=2)["ok"]
    assert answer["outputs"] == [[1, 2]]
    assert len(answer["seconds"]) == 3


def test_the_same_weights_are_loaded_once(ask):
    for _ in range(2):
        ask("load", files=FILES, precision="fp32")
    assert ask("set_up", task={"kind": "text"})["ok"]["notes"] == {"loads": 1}


def test_errors_are_answers(ask):
    assert ask("load", files=FILES, precision="int8") == {"not_run": "it cannot count to eight"}
    ask("load", files=FILES, precision="fp32")
    ask("set_up", task={"kind": "text"})
    broken = ask("turn", measure="broken", repeats=1)
    assert broken["error"] == "ZeroDivisionError: by nothing"
    assert "Traceback" in broken["trace"]
    assert "`measure` must be one of warm, broken" in ask("turn", measure="x", repeats=1)["error"]
    assert "`do` must be one of hello, load" in ask("dance")["error"]


def test_a_line_that_is_no_json_is_answered():
    assert "JSONDecodeError" in Worker("echo", 1).answer("{")["error"]


def test_an_engine_that_is_not_installed_is_not_run(monkeypatch):
    monkeypatch.setitem(engines.MODULES, "absent", "no_such_module_at_all")
    answer = Worker("absent", 1).answer('{"do": "hello"}')
    assert answer["not_run"].startswith("absent is not installed here: ")


def test_a_worker_serves_until_it_is_told_to_quit(ask):
    answers = io.StringIO()
    serve(
        Worker("echo", 1), io.StringIO('{"do": "memory"}\n{"do": "quit"}\n{"do": "x"}\n'), answers
    )
    lines = answers.getvalue().splitlines()
    assert [list(json.loads(line)) for line in lines] == [["ok"], ["ok"]]


def test_memory_is_told_in_bytes():
    found = memory_in_use()
    assert found["peak_bytes"] >= found["resident_bytes"] > 2**20


# Real processes


def process(code, **how):
    return Process("odd", [sys.executable, "-c", code], dict(os.environ), **how)


def test_a_real_worker_is_pinned_and_answers():
    cores = sorted(os.sched_getaffinity(0))[:1]
    variables = environment(1)
    assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == "1"
    with Process("ctranslate2", command("ctranslate2", 1, cores), variables) as worker:
        hello = worker.ask("hello")
        assert hello["facts"]["cores"] == cores
        assert hello["pid"] == worker.pid
        assert worker.cpu_seconds() >= 0
        with pytest.raises(NotRun, match="there is no CTranslate2 directory of none"):
            worker.ask("load", files=FILES, precision="fp32")
        with pytest.raises(WorkerFailed, match="ctranslate2: 'dance' failed: UsageError"):
            worker.ask("dance")


def test_a_worker_that_dies_is_noticed_with_its_last_words():
    code = "import sys; input(); sys.stderr.write('no more memory'); sys.exit(7)"
    with process(code) as worker, pytest.raises(WorkerFailed, match=r"exit code 7.*\n.*no more"):
        worker.ask("hello")


def test_a_worker_that_never_answers_is_ended():
    code = "import time; time.sleep(60)"
    with process(code) as worker, pytest.raises(WorkerFailed, match="took more than 0 s"):
        worker.ask("hello", timeout_seconds=0.2)


def test_an_answer_that_is_none_fails():
    code = "input(); print('{}', flush=True); input()"
    with process(code) as worker, pytest.raises(WorkerFailed, match=r"no answer but \{\}"):
        worker.ask("hello")
