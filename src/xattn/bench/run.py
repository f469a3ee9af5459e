"""A run: models are made, workers started, cells measured, and everything is written down."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xattn.bench import machine
from xattn.bench.aims import judge_aims
from xattn.bench.cells import Cell
from xattn.bench.equality import Scores, Verdict, followed, judge
from xattn.bench.making import ModelFiles
from xattn.bench.processes import (
    THREAD_VARIABLES,
    Process,
    WorkerFailed,
    command,
    environment,
)
from xattn.bench.recordings import Windows
from xattn.bench.report import write_report
from xattn.bench.rounds import Rounds, Taken, Turn, take_turns
from xattn.bench.summary import spread
from xattn.bench.tasks import NotRun
from xattn.bench.workloads import Plan
from xattn.errors import UsageError, XattnError

LOAD_SECONDS = 600.0
RECORD = "bench.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is made."""

    output: Path
    """Directory of the record, the page and the pictures."""
    scratch: Path
    """Directory of models and recordings; what it has is used again."""
    rounds: int = 7
    quick: bool = False
    cores: tuple[int, ...] = ()
    """The cores that every worker is pinned to; empty: none is pinned."""
    threads: int = 2
    resume: bool = False
    """Keep the cells that ``output`` has a record of, and measure the others."""
    start: Callable[[str, int, Sequence[int]], list[str]] = command
    """The command line of a worker."""


class Run:
    """The workers and what they have found. Use it as a context manager."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings, self._say = settings, say
        self._workers: dict[str, Process] = {}
        self._absent: dict[str, str] = {}
        self._held = ExitStack()
        self.record: dict[str, Any] = {
            "machine": machine.record(settings.threads, settings.cores),
            "settings": {
                "rounds": settings.rounds,
                "quick": settings.quick,
                "environment": variables_of(settings.threads),
            },
            "engines": {},
            "cells": [],
        }
        if settings.resume:
            self._resume()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def measure(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Measure the cells that have no record yet; it is written after each of them."""
        self._prepare_output()
        recorded = {cell["name"] for cell in self.record["cells"]}
        for number, cell in enumerate(cells, 1):
            if cell.name in recorded:
                continue
            self._say(f"{number} of {len(cells)}: {cell.name}")
            self.record["cells"].append(self._followed(self._cell(cell)))
            self.record["cells"].sort(key=lambda found: found["workload"])
            self.record["aims"] = judge_aims(self.record["cells"])
            self._write()
        return self.record

    def _prepare_output(self) -> None:
        try:
            self._settings.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"`--output` must be a directory that can be written, but is "
                f"{str(self._settings.output)!r}: {error.strerror}."
            ) from error

    def _followed(self, found: dict[str, Any]) -> dict[str, Any]:
        """With how long each engine says what float32 says, where that was measured before."""
        twin = found["name"].removesuffix("/int8") + "/fp32"
        [wide] = [cell for cell in self.record["cells"] if cell["name"] == twin] or [{}]
        reference = wide.get("outputs", {}).get("xattn")
        if reference is None or found["precision"] != "int8":
            return found
        outputs = found.get("outputs", {}).items()
        shares = {name: round(followed(said, reference), 4) for name, said in outputs}
        return found | {"followed": shares}

    def _write(self) -> None:
        text = json.dumps(self.record, indent=1)
        whole = self._settings.output / f"{RECORD}.part"
        whole.write_text(text + "\n", encoding="utf-8")
        whole.replace(self._settings.output / RECORD)

    def _resume(self) -> None:
        """Take the cells of the record in ``output`` that no engine broke in."""
        path = self._settings.output / RECORD
        if not path.is_file():
            self._say(f"nothing to go on with: no {path}")
            return
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            facts = {part: earlier[part] for part in ("machine", "settings")}
            engines, cells = earlier["engines"], earlier["cells"]
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(
                f"{path} is no record of a run, or a damaged one ({error}): remove it, or give "
                "another `--output`."
            ) from error
        for part, were in facts.items():
            for name, value in self.record[part].items():
                was = were.get(name)
                if was != value and name != "date":  # it may last past midnight
                    raise UsageError(
                        f"{path} is of another run: its {name} is {was!r}, and it would be "
                        f"{value!r} now. Give another `--output`, or no `--resume`."
                    )
        self.record["engines"] = engines
        self.record["cells"] = [
            cell
            for cell in cells
            if not any("error" in found for found in cell["engines"].values())
        ]
        self.record["aims"] = judge_aims(self.record["cells"])

    # One cell

    def _cell(self, cell: Cell) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": cell.name,
            "workload": cell.workload,
            "axes": cell.axes,
            "model": cell.model,
            "precision": cell.precision,
            "rule": cell.rule,
            "beams": cell.task.beams,
            "new_tokens": cell.task.new_tokens,
            "engines": {engine: {} for engine in cell.engines},
        }
        try:
            if cell.task.recordings:
                Windows(self._settings.scratch).make(len(cell.task.recordings))
        except (XattnError, OSError) as error:
            # Without recordings nobody can run it, which is nobody's fault.
            return self._without(cell, found, "not_run", error)
        try:
            files = self._files(cell)
        except (XattnError, OSError) as error:
            return self._without(cell, found, "error", error)
        ready = self._ready(cell, files, found["engines"])
        turns = [Turn(engine, one) for engine, names in ready.items() for one in names]
        outputs: dict[str, list[Any]] = {}
        try:
            rounds = take_turns(self._workers_of(ready), turns, self._settings.rounds)
        except WorkerFailed as error:
            self._failed(error, found["engines"])
            return found | {"equality": asdict(judge(cell.rule, {}))}
        for turn, taken in rounds.taken.items():
            measures = found["engines"][turn.engine].setdefault("measures", {})
            measures[turn.measure] = figures(taken, steps_of(cell, turn.measure))
            if turn.measure != "first":
                outputs.setdefault(turn.engine, [])
                outputs[turn.engine] += [
                    one for one in taken.outputs if one not in outputs[turn.engine]
                ]
        for engine in ready:
            derive(found["engines"][engine], cell)
        said = {engine: distinct[0] for engine, distinct in outputs.items()}
        scores = None
        if cell.rule == "as likely" and len(said) > 1:
            try:
                scores = self._scores(cell, said)
            except WorkerFailed as error:
                self._failed(error, found["engines"])
        if cell.memory:
            self._peaks(cell, files, ready, found["engines"])
        return found | {
            "idle": idle_share(rounds),
            "equality": asdict(verdict(cell, outputs, scores)),
            "scores": scores,
            "outputs": said,
        }

    def _without(
        self, cell: Cell, found: dict[str, Any], why: str, error: Exception
    ) -> dict[str, Any]:
        """A cell that no engine could run."""
        found["engines"] = {engine: {why: str(error)} for engine in cell.engines}
        return found | {"equality": asdict(judge(cell.rule, {}))}

    def _scores(self, cell: Cell, said: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
        """How likely each engine's answers are to all; None where one of them cannot say."""
        task = asdict(cell.task)
        try:
            return {
                author: {
                    engine: self._workers[engine].ask("likelihood", task=task, answers=answers)[
                        "logprobs"
                    ]
                    for engine in said
                }
                for author, answers in said.items()
            }
        except NotRun:
            return None

    def _files(self, cell: Cell) -> ModelFiles:
        """The cell's weights, made by a process of its own if need be."""
        if not cell.model:
            return ModelFiles(name="", xattn="")
        note = self._settings.scratch / cell.model / "files.json"
        if not note.is_file():
            self._say(f"writing the weights of {cell.model}")
            made = subprocess.run(
                [
                    *(sys.executable, "-W", "ignore", "-m", "xattn.bench.making"),
                    *(cell.model, str(self._settings.scratch)),
                ],
                env=environment(self._settings.threads),
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode != 0:
                last = made.stderr.strip().splitlines()[-1:]
                raise XattnError(f"the weights of {cell.model} cannot be made: {''.join(last)}")
        return ModelFiles(**json.loads(note.read_text()))

    def _ready(
        self, cell: Cell, files: ModelFiles, engines: dict[str, Any]
    ) -> dict[str, list[str]]:
        """Engine -> what it can be timed at. Who cannot run the cell is noted, with the reason."""
        ready: dict[str, list[str]] = {}
        for engine in cell.engines:
            try:
                worker = self._worker(engine)
                loaded = worker.ask(
                    "load",
                    files=asdict(files),
                    precision=cell.precision,
                    timeout_seconds=LOAD_SECONDS,
                )
                answer = worker.ask("set_up", task=asdict(cell.task))
            except NotRun as reason:
                engines[engine] = {"not_run": str(reason)}
            except WorkerFailed as error:
                self._failed(error, engines)
            else:
                ready[engine] = answer["measures"]
                engines[engine] = {"load_seconds": loaded["seconds"], "notes": answer["notes"]}
        return ready

    def _failed(self, error: WorkerFailed, engines: dict[str, Any]) -> None:
        """Note whose error it was, which fails the run, and that the others could not be timed."""
        self._say(f"error: {error}")
        worker = self._workers.pop(error.engine, None)
        if worker is not None:
            worker.close()
        for engine, found in engines.items():
            if engine == error.engine:
                engines[engine] = {"error": str(error).strip()}
            elif "notes" in found:
                engines[engine] = {"not_run": f"{error.engine} failed in this cell"}

    def _worker(self, engine: str) -> Process:
        if engine in self._absent:
            raise NotRun(self._absent[engine])
        if engine not in self._workers:
            process = self._start(engine)
            try:
                hello = process.ask("hello")
            except NotRun as reason:
                self._absent[engine] = str(reason)
                process.close()
                raise
            self.record["engines"][engine] = hello["facts"]
            self._workers[engine] = self._held.enter_context(process)
        return self._workers[engine]

    def _start(self, engine: str) -> Process:
        given = self._settings
        arguments = given.start(engine, given.threads, given.cores)
        return Process(engine, arguments, environment(given.threads))

    def _workers_of(self, ready: dict[str, list[str]]) -> dict[str, Any]:
        return {engine: self._workers[engine] for engine in ready}

    def _peaks(
        self, cell: Cell, files: ModelFiles, ready: dict[str, list[str]], engines: dict[str, Any]
    ) -> None:
        """Peak memory of one call in a process that has done nothing else."""
        for engine in ready:
            if "notes" not in engines[engine]:  # it broke
                continue
            setting = engines[engine]["notes"].get("setting", ())
            task = replace(cell.task, setting=tuple(setting))
            try:
                with self._start(engine) as process:
                    process.ask("load", files=asdict(files), precision=cell.precision)
                    before = process.ask("memory")
                    process.ask("set_up", task=asdict(task))
                    process.ask("turn", measure=cell.memory, repeats=1)
                    after = process.ask("memory")
            except (WorkerFailed, NotRun) as error:
                self._say(f"error: peak memory of {error}")
                engines[engine]["error"] = f"peak memory of {error}"
                continue
            engines[engine]["memory"] = {
                "loaded_bytes": before["resident_bytes"],
                "peak_bytes": after["peak_bytes"],
            }


def variables_of(threads: int) -> dict[str, str | None]:
    """What the workers' libraries are told about threads; None: nothing."""
    told = environment(threads)
    return {name: told.get(name) for name in THREAD_VARIABLES}


def figures(taken: Taken, steps: int) -> dict[str, Any]:
    """One measure, for the record."""
    return {
        "seconds": [round(value, 7) for value in taken.seconds],
        "steps": steps,
        "repeats": taken.repeats,
        **spread(taken.seconds)._asdict(),
    }


def steps_of(cell: Cell, measure: str) -> int:
    """Decoding steps of a call whose time is told per step; 1 where it is told per call."""
    return cell.task.new_tokens if cell.task.kind == "text" and measure in ("warm", "anew") else 1


def derive(found: dict[str, Any], cell: Cell) -> None:
    """Decoding alone, where it is what one new token leaves of a whole call: per round."""
    measures = found.get("measures", {})
    if "warm" in measures or "first" not in measures:
        return
    whole, first = measures["cold"]["seconds"], measures["first"]["seconds"]
    rest = [a - b for a, b in zip(whole, first, strict=True)]
    measures["warm"] = {
        "seconds": [round(value, 7) for value in rest],
        "steps": cell.task.new_tokens - 1,
        "derived": "cold less first",
        **spread(rest)._asdict(),
    }


def verdict(cell: Cell, outputs: dict[str, list[Any]], scores: Scores | None) -> Verdict:
    """Whether the engines did the same work; those of another precision only inform."""
    strict = {name: found for name, found in outputs.items() if name not in cell.loose}
    return judge(cell.rule, strict, scores)


def idle_share(rounds: Rounds) -> float | None:
    """Processor time of workers without a turn, as a share of the turns' time."""
    share = rounds.idle_seconds / rounds.turn_seconds if rounds.turn_seconds else math.nan
    return None if math.isnan(share) else round(share, 5)


def faults(record: dict[str, Any]) -> Iterator[str]:
    """What makes a run fail: unequal outputs, and engines that broke."""
    for cell in record["cells"]:
        for fault in cell["equality"]["faults"]:
            yield f"{cell['name']}: {fault}"
        for engine, found in cell["engines"].items():
            if "error" in found:
                yield f"{cell['name']}: {engine} failed: {found['error'].splitlines()[0]}"


def bench(
    settings: Settings, only: Sequence[str] = (), *, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the cells that match ``only`` (all if empty), and write record, page and pictures.

    ``say`` is told what is being done. Raises :class:`~xattn.errors.UsageError` for a name in
    ``only`` that is none.
    """
    plan = Plan(quick=settings.quick, scratch=settings.scratch)
    cells = plan.cells(tuple(only))
    with Run(settings, say) as run:
        record = run.measure(cells)
    write_report(record, settings.output)
    return record
