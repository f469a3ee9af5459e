"""What the ledger foretells, and what is found: bytes, peaks, and when a store pays.

    python benchmarks/ledger.py

Profiles in processes of their own: Whisper tiny.en on a recording, the shapes of T5-small and
T5-base on random texts, the grapheme-to-phoneme BART, SmolLM2; in float32 and int8, in every form.

Writes a JSON record and a Markdown page to benchmarks/results/MACHINE-DATE/, and ends with an error
where bytes, a peak, or the request from which a store pays are not about as they were foretold.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from real_weights import RESULTS

from xattn.bench.machine import record

RECORDING = Path(__file__).parents[1] / "examples/assets/recording.wav"
HEARD = ["--input", str(RECORDING)]
READ = ["--input-text", "Paris is the capital of France. " * 40, "--prompt", "The capital is"]
CASES: list[tuple[str, str, list[str]]] = [
    ("Whisper tiny.en", "whisper-tiny.en", HEARD),
    (
        "Whisper tiny.en, 5 beams",
        "whisper-tiny.en",
        [*HEARD, "--num-beams", "5"],
    ),
    (
        "Whisper tiny.en, absorbed, int8",
        "whisper-tiny.en",
        [*HEARD, "--form", "absorbed", "--quantize", "int8"],
    ),
    ("G2P", "g2p-en", ["--input-text", "attention", "--max-new-tokens", "24"]),
    ("SmolLM2-135M", "smollm2-135m-instruct", READ),
]
SHAPES = ("t5-small", "t5-base")
BYTES_WITHIN, PEAK_WITHIN, PAYS_WITHIN = 0.02, 0.1, 0.25
FORMS = ("materialized", "absorbed", "materialized-int8", "absorbed-int8")


def main() -> None:
    found: dict[str, Any] = {"machine": record(2), "cases": {}}
    with tempfile.TemporaryDirectory() as directory:
        cases = list(CASES)
        for shape in SHAPES:
            cases += random_cases(shape, Path(directory))
        for name, model, options in cases:
            found["cases"][name] = profiled(model, options)
            print(name, flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "ledger.json").write_text(json.dumps(found, indent=2) + "\n")
    text = page(found)
    (RESULTS / "ledger.md").write_text(text)
    print(text)
    wrong = [f"{name}: {what}" for name, case in found["cases"].items() for what in misses(case)]
    if wrong:
        sys.exit("not as foretold: " + "; ".join(wrong))


def misses(case: dict[str, Any]) -> Iterator[str]:
    """What was not as it was foretold."""
    early = case["tokens"] < case["wishes"]["new_tokens"]
    for size in case["sizes"]:
        # A cache grows by doubling, up to what is allowed: an answer that ends before has spare.
        if early and size["what"] == "self-attention cache":
            continue
        if abs(size["predicted"] / size["measured"] - 1) > BYTES_WITHIN:
            yield f"{size['input']}, {size['what']}: {size['predicted']} and {size['measured']}"
    if abs(case["predicted_peak_bytes"] / case["peak_bytes"] - 1) > PEAK_WITHIN:
        yield f"peak: {case['predicted_peak_bytes']} and {case['peak_bytes']}"
    tensors = case["tensors"]
    if tensors["workspace_bytes"] > tensors["predicted_workspace_bytes"]:
        yield f"workspace: {tensors['workspace_bytes']}"
    if (times := case["store"]) is not None:
        said, found = times["predicted_requests"], times["measured_requests"]
        if said is None or found is None or abs(said - found) > max(0.5, PAYS_WITHIN * said):
            yield f"a store pays from {said} and {found}"


def random_cases(shape: str, directory: Path) -> list[tuple[str, str, list[str]]]:
    """A text of 2048 tokens; the model has no tokenizer, so it is given as ids."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "xattn.bench.making", shape, str(directory)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    model = str(directory / shape / "transformers")
    ids = ["--tokens", "2048", "--num-beams", "4", "--rounds", "2"]
    ids += ["--lengths", "256,2048", "--requests", "1,2,3"]
    cases = [(f"{shape}, {form}", model, [*ids, "--form", form]) for form in FORMS]
    return [*cases, (f"{shape}, int8 weights", model, [*ids, "--quantize", "int8"])]


def profiled(model: str, options: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "xattn", "profile", model]
    done = subprocess.run(
        [*command, *options, "--threads", "2", "--offline", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{model} {options}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def page(found: dict[str, Any]) -> str:
    lines = ["# Foretold and found", ""]
    lines += [", ".join(f"{k} {v}" for k, v in found["machine"].items()), ""]
    lines += [
        "| model | largest difference of states, keys and values, cache, weights "
        "| peak in RAM: foretold, found | a store pays from: foretold, found |",
        "|---|---|---|---|",
    ]
    for name, case in found["cases"].items():
        worst = max((abs(s["predicted"] / s["measured"] - 1) for s in case["sizes"]), default=0)
        peak, said = case["peak_bytes"], case["predicted_peak_bytes"]
        lines.append(
            f"| {name} | {worst:.2%} | {said / 2**20:.0f} and {peak / 2**20:.0f} MiB "
            f"({said / peak - 1:+.1%}) | {store_of(case)} |"
        )
    return "\n".join(lines) + "\n"


def store_of(case: dict[str, Any]) -> str:
    times = case["store"]
    if times is None:
        return "no inputs"
    said, found = times["predicted_requests"], times["measured_requests"]
    shown = ("never" if one is None else f"{one:.2f} requests" for one in (said, found))
    return ", ".join(shown)


if __name__ == "__main__":
    main()
