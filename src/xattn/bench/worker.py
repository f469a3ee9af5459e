"""One engine in a process of its own: ``python -m xattn.bench.worker ENGINE --threads 2``.

A line of JSON comes in, a line of JSON goes out; between two lines the process waits for the pipe
and computes nothing. What the engine itself prints goes to stderr.

==========  ===============================  =====================================================
``do``      with                             answer
==========  ===============================  =====================================================
hello                                        ``facts``: versions, threads, cores
load        ``files``, ``precision``         ``seconds``
set_up      ``task``                         ``measures``, ``notes``
turn        ``measure``, ``repeats``,        ``seconds`` of each repeat, ``outputs`` of the last
            ``discard``
likelihood  ``task``, ``answers``            ``logprobs``: the mean of each answer's tokens
memory                                       ``resident_bytes``, ``peak_bytes``, ``cpu_seconds``
quit
==========  ===============================  =====================================================

An answer is ``{"ok": …}``, ``{"not_run": reason}`` where this engine cannot do it, or
``{"error": message, "trace": …}``.
"""

import argparse
import gc
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from xattn.bench.engines import Engine, Scorer, engine_of
from xattn.bench.making import ModelFiles
from xattn.bench.tasks import NotRun, Ready, Task
from xattn.errors import require
from xattn.native.process import peak_bytes, resident_bytes


class Worker:
    """What the lines ask for, done by one engine."""

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._threads = name, threads
        self._engine: Engine | None = None
        self._loaded: tuple[str, str] | None = None
        self._ready = Ready(calls={})

    def answer(self, line: str) -> dict[str, Any]:
        """The answer to one line; errors are answers, too."""
        try:
            asked = json.loads(line)
            known: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
                "hello": self._hello,
                "load": self._load,
                "set_up": self._set_up,
                "turn": self._turn,
                "likelihood": self._likelihood,
                "memory": lambda _: memory_in_use(),
                "quit": lambda _: {},
            }
            require(asked.get("do") in known, "do", f"one of {', '.join(known)}", asked.get("do"))
            return {"ok": known[asked["do"]](asked)}
        except NotRun as reason:
            return {"not_run": str(reason)}
        except Exception as error:  # noqa: BLE001  (it is told to whoever asked, who fails the cell)
            return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}

    def _running(self) -> Engine:
        if self._engine is None:
            try:
                self._engine = engine_of(self._name, self._threads)
            except ImportError as error:
                raise NotRun(f"{self._name} is not installed here: {error}") from error
        return self._engine

    def _hello(self, _: dict[str, Any]) -> dict[str, Any]:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return {"facts": {**self._running().facts(), "cores": cores}, "pid": os.getpid()}

    def _load(self, asked: dict[str, Any]) -> dict[str, Any]:
        begun = time.perf_counter()
        files, precision = ModelFiles(**asked["files"]), asked["precision"]
        if self._loaded != (files.name, precision):
            self._loaded, self._ready = None, Ready(calls={})
            gc.collect()
            self._running().load(files, precision)
            self._loaded = (files.name, precision)
        return {"seconds": time.perf_counter() - begun}

    def _set_up(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._ready = Ready(calls={})
        self._ready = self._running().set_up(Task.of(asked["task"]))
        return {"measures": list(self._ready.calls), "notes": self._ready.notes}

    def _turn(self, asked: dict[str, Any]) -> dict[str, Any]:
        measure, calls = asked["measure"], self._ready.calls
        require(measure in calls, "measure", f"one of {', '.join(calls)}", measure)
        call, seconds, outputs = calls[measure], [], None
        gc.collect()
        for repeat in range(-asked.get("discard", 0), asked["repeats"]):
            call.before()
            begun = time.perf_counter()
            outputs = call.run()
            took = time.perf_counter() - begun
            if repeat >= 0:
                seconds.append(took)
        return {"seconds": seconds, "outputs": outputs}

    def _likelihood(self, asked: dict[str, Any]) -> dict[str, Any]:
        engine = self._running()
        if not isinstance(engine, Scorer):
            raise NotRun(f"{self._name} scores no answers here")
        return {"logprobs": engine.likelihood(Task.of(asked["task"]), asked["answers"])}


def memory_in_use() -> dict[str, Any]:
    """Bytes of this process that are in RAM, and that were at most; and its processor time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": peak_bytes(),
        "resident_bytes": resident_bytes(),
    }


def serve(worker: Worker, lines: TextIO, answers: TextIO) -> None:
    """Answer line after line, until one says quit or the pipe ends."""
    for line in lines:
        answers.write(json.dumps(worker.answer(line)) + "\n")
        answers.flush()
        if '"quit"' in line:
            return


def main() -> None:
    """Pin, take stdout for the answers alone, and serve."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("engine")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cores", default="", help="comma-separated; none: wherever it may run")
    given = parser.parse_args()
    if given.cores:
        os.sched_setaffinity(0, {int(core) for core in given.cores.split(",")})
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    serve(Worker(given.engine, given.threads), sys.stdin, answers)


if __name__ == "__main__":
    main()
