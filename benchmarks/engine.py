"""Throughput of an engine with requests in flight, against one request at a time.

    python benchmarks/engine.py [--rounds 5] [--threads 2] [--only t5-small whisper-tiny.en]

T5-small (its shape, random weights) on 16 sources of 64 tokens, and Whisper tiny.en (real weights)
on 8 windows of a recording: 32 new tokens each, greedy. A round asks the same requests of
``Model.generate``, one after the other, and of engines with 1, 4, 16 and 32 in flight; rounds are
interleaved, and medians reported. Memories are encoded before, and projected within what is
measured. The tokens of every answer are compared with those of ``Model.generate``.

Writes a JSON record and a Markdown page to benchmarks/results/MACHINE-DATE/; models that are not
run stay as they were there.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import xattn
from xattn.bench.machine import record, results
from xattn.bench.making import make
from xattn.inputs.audio import read_audio
from xattn.memory import Memory

ROOT = Path(__file__).parents[1]
RECORDING = ROOT / "examples" / "assets" / "recording.wav"
RESULTS = results(Path(__file__).parent / "results")
IN_FLIGHT = (1, 4, 16, 32)
AT_LEAST = 6
"""Requests of a measurement, and twice as many as are in flight."""
SETTINGS = dict(max_new_tokens=32, min_new_tokens=32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    models = ["t5-small", "whisper-tiny.en"]
    parser.add_argument("--only", nargs="+", choices=models, default=models)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = RESULTS / "engine.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found["machine"] = record(arguments.threads, packages=("torch",))
    with tempfile.TemporaryDirectory() as directory:
        for name in arguments.only:
            found[name] = measured(name, *loaded(name, Path(directory)), arguments.rounds)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "engine.md").write_text(page(found))
    print(page(found))


def loaded(name: str, directory: Path) -> tuple[xattn.Model, list[Memory]]:
    """A model, and what its requests are about."""
    if name == "whisper-tiny.en":
        model, samples_T = xattn.load(name), read_audio(RECORDING).samples_T
        return model, [model.encode(samples_T[n * 8000 :]) for n in range(8)]
    model, rng = xattn.load(make(name, directory).xattn), random.Random(0)
    sources = [[rng.randrange(3, 32000) for _ in range(64)] for _ in range(16)]
    return model, model.encode_batch(sources)


def measured(name: str, model: xattn.Model, memories: list[Memory], rounds: int) -> dict[str, Any]:
    """New tokens per second, alone and with so many in flight."""
    want = [model.generate(memory, **SETTINGS).tokens for memory in memories]
    ways: dict[str, Callable[[], float]] = {"alone": lambda: alone(model, memories)}
    for count in IN_FLIGHT:
        ways[str(count)] = lambda count=count: together(model, memories, count, want)
    ways["32"]()  # once, for nothing: what is made on first use
    figures: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, measure in ways.items():
            figures[way].append(measure())
        print(name, {way: round(values[-1]) for way, values in figures.items()}, flush=True)
    medians = {way: statistics.median(values) for way, values in figures.items()}
    return {
        "tokens_per_second": {way: round(value, 1) for way, value in medians.items()},
        "times_alone": {way: round(value / medians["alone"], 2) for way, value in medians.items()},
        "rounds": {way: [round(v, 1) for v in values] for way, values in figures.items()},
    }


def alone(model: xattn.Model, memories: list[Memory]) -> float:
    before, new = time.perf_counter(), 0
    for memory in memories[:AT_LEAST]:
        new += len(model.generate(memory, **SETTINGS).tokens)
    return new / (time.perf_counter() - before)


def together(
    model: xattn.Model, memories: list[Memory], count: int, want: list[tuple[int, ...]]
) -> float:
    requests = [n % len(memories) for n in range(max(AT_LEAST, 2 * count))]
    with xattn.Engine(model, max_rows=count) as engine:
        before = time.perf_counter()
        tickets = [engine.submit(memories[n], **SETTINGS) for n in requests]
        answers = [ticket.result().tokens for ticket in tickets]
        took = time.perf_counter() - before
    if answers != [want[n] for n in requests]:
        raise SystemExit(f"with {count} in flight, tokens differ from those of each alone")
    return sum(map(len, answers)) / took


def page(found: dict[str, Any]) -> str:
    return "\n".join(lines(found)) + "\n"


def lines(found: dict[str, Any]) -> Iterator[str]:
    yield from ("# Requests in flight, against one at a time", "")
    yield from (f"- {name}: {value}" for name, value in found["machine"].items())
    yield from ("", "New tokens per second, medians; in brackets, times `Model.generate`.", "")
    ways = ["alone", *map(str, IN_FLIGHT)]
    yield "| model | " + " | ".join(["generate", *(f"{n} in flight" for n in IN_FLIGHT)]) + " |"
    yield "|---|" + "---|" * len(ways)
    for name, figures in found.items():
        if name != "machine":
            speed, times = figures["tokens_per_second"], figures["times_alone"]
            cells = [f"{speed[way]:.0f} ({times[way]:.2f})" for way in ways]
            yield f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
