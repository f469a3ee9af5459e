"""What is said to fit is run, under a limit that the system enforces.

    python benchmarks/fit.py [--budget 1 --budget 2]

The shape of T5-base, random weights. For each budget beyond the weights, `fit` says how many
requests for documents of their own can be in flight, how many documents one request can read, and
how many beams it can have.
A process of its own, whose data (RLIMIT_DATA) may grow by that budget and no more once the weights
are loaded, then hands so many requests to an engine; and 15 percent more, which it must refuse.
Where what fits is not answered, or more is not refused, this ends with an error.

Writes a JSON record and a Markdown page to benchmarks/results/MACHINE-DATE/.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from real_weights import RESULTS

from xattn.bench.machine import record
from xattn.errors import CapacityError
from xattn.ledger import fit

LENGTH, NEW_TOKENS, MORE = 1000, 8, 1.15
WHATS = ("requests", "documents", "beams")
SLACK = 64 << 20
"""What the allocator and threads need beside what tensors take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget", type=int, action="append", help="GiB beyond the weights")
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run is not None:
        print(json.dumps(limited(**arguments.run)))
        return
    found: dict[str, Any] = {"machine": record(2), "runs": []}
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "xattn.bench.making", "t5-base", directory],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        model = f"{directory}/t5-base/transformers"
        for budget in arguments.budget or (1, 2):
            for what in WHATS:
                given = {"model": model, "budget": budget << 30, "what": what}
                done = subprocess.run(
                    [sys.executable, "-W", "ignore", __file__, "--run", json.dumps(given)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode != 0:
                    sys.exit(f"{given} ended with {done.returncode}: {done.stderr[-2000:]}")
                found["runs"].append(json.loads(done.stdout.splitlines()[-1]))
                print(found["runs"][-1], flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "fit.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "fit.md").write_text(page(found))
    wrong = [run for run in found["runs"] if not is_kept(run)]
    if wrong:
        sys.exit(f"not as it was said: {wrong}")


def is_kept(run: dict[str, Any]) -> bool:
    """All that was said to fit was answered, and more was refused."""
    return run["answered"] == run["asked"] > 0 and run["refused"]


def limited(model: str, budget: int, what: str) -> dict[str, Any]:
    """One budget, in a process that can take no more."""
    import resource

    import torch

    import xattn

    torch.set_num_threads(2)
    loaded = xattn.load(model, offline=True)
    # Threads, kernels, and the room that the allocator keeps of a source are there now.
    loaded.generate([3 + n for n in range(LENGTH)], max_new_tokens=2)
    held = data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (held + budget + SLACK, held + budget + SLACK))
    weights = loaded.ledger().total_bytes
    given = {"document": LENGTH}
    [said, *_] = fit(loaded.spec, given, weights + budget, new_tokens=NEW_TOKENS)
    count = {
        "requests": said.batch,
        "documents": said.sources["document"],
        "beams": said.beams,
    }[what]
    if not count:
        sys.exit(f"{what}: {count} fit, so that nothing can be tried")
    more = int(count * MORE) + 1
    with xattn.Engine(loaded, capacity_bytes=budget, max_rows=4096) as engine:
        fits = submitted(loaded, engine, count, what)
        grown = 0
        while not all(ticket.done for ticket in fits):
            grown = max(grown, data_bytes() - held)
            time.sleep(0.005)
        lengths = [len(ticket.result().tokens) for ticket in fits]
        while engine.stats().held_bytes:  # what was answered is let go a moment later
            time.sleep(0.005)
        refusal = ""
        try:
            for ticket in submitted(loaded, engine, more, what):
                ticket.cancel()
        except CapacityError as error:
            refusal = str(error)
    return {
        "budget_bytes": budget,
        "what": what,
        "fits": count,
        "asked": len(fits),
        "answered": sum(length == NEW_TOKENS for length in lengths),
        "more": more,
        "refused": bool(refusal),
        "refusal": refusal,
        "data_grew_bytes": grown,
    }


def submitted(model: Any, engine: Any, count: int, what: str) -> list[Any]:
    """So many requests at once, or one for so many documents; none may wait."""
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "wait": False}
    documents = [[3 + (n + k) % 30000 for k in range(LENGTH)] for n in range(count)]
    if what == "requests":
        return [engine.submit(document, **settings) for document in documents]
    if what == "beams":
        [memory] = [model.encode(document) for document in documents[:1]]
        return [engine.submit(memory, num_beams=count, **settings)]
    return [engine.submit([model.encode(document) for document in documents], **settings)]


def data_bytes() -> int:
    """What counts for RLIMIT_DATA: private memory that can be written."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmData")).split()[1])


def page(found: dict[str, Any]) -> str:
    lines = ["# What is said to fit", ""]
    lines += [", ".join(f"{k} {v}" for k, v in found["machine"].items()), ""]
    lines += [
        f"T5-base, documents of {LENGTH} tokens. The limit is RLIMIT_DATA.",
        "",
        "| budget | what | said to fit | answered | 15 % more | data grew by |",
        "|---|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        refused = "refused" if run["refused"] else "NOT REFUSED"
        lines.append(
            f"| {run['budget_bytes'] / 2**30:g} GiB | {run['what']} | {run['fits']} "
            f"| {run['answered']} | {run['more']}: {refused} "
            f"| {run['data_grew_bytes'] / 2**30:.2f} GiB |"
        )
    refusals = [f"- {run['refusal']}" for run in found["runs"] if run["refusal"]]
    return "\n".join([*lines, "", "What the refusals say:", "", *refusals]) + "\n"


if __name__ == "__main__":
    main()
