"""What guessing from the prompt gains: copies, corrections, and a story in which nothing repeats.

    python benchmarks/lookup.py [--rounds 7] [--guesses 10 20]

SmolLM2-135M-Instruct from its package, float32 and int8, one request, greedily, with and without
guesses in turns. Tokens must be equal. Writes JSON and a Markdown page to
benchmarks/results/MACHINE-DATE/.
"""

import argparse
import json
import sys
import time
from statistics import median
from typing import Any

import torch
from real_weights import RESULTS

import xattn
from xattn.bench.machine import record

NEW_TOKENS = 96
PARAGRAPH = (
    "Amelia Whitford of Northgate Logistics opened container 7741-B on 14 March. She found forty "
    "crates of oranges, two of them broken, and a letter from Captain Ruiz, who had sealed it in "
    "Valencia nine days before. The letter said that the crates were for the harbour school."
)
TASKS = {
    "a copy": f"Repeat this text exactly, word for word:\n\n{PARAGRAPH}",
    "a correction": "Correct the spelling of this text, and change nothing else:\n\n"
    + PARAGRAPH.replace("found", "fuond").replace("letter", "leter"),
    "a story": "Tell a short story about a lighthouse and a storm.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--guesses", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[str, Any] = {"machine": record(arguments.threads), "rows": []}
    for quantize in (None, "int8"):
        model = xattn.load("smollm2-135m-instruct", offline=True, quantize=quantize)
        for task, text in TASKS.items():
            row = measured(model, text, arguments.guesses, arguments.rounds)
            found["rows"].append({"weights": quantize or "float32", "task": task, **row})
            print(found["rows"][-1], flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "lookup.json").write_text(json.dumps(found, indent=2) + "\n")
    text = page(found, arguments.guesses)
    (RESULTS / "lookup.md").write_text(text)
    print(text)


def measured(model: xattn.Model, text: str, guesses: list[int], rounds: int) -> dict[str, Any]:
    """Seconds of every round, by the number of guesses; 0 is without."""
    request = [{"role": "user", "content": text}]
    seconds: dict[int, list[float]] = {count: [] for count in (0, *guesses)}
    said = {}
    for number in range(rounds + 1):
        for count in seconds:
            begun = time.perf_counter()
            answer = model.generate(
                prompt=request,
                max_new_tokens=NEW_TOKENS,
                prompt_lookup_num_tokens=count or None,
            )
            if number:  # the first is not counted
                seconds[count].append(time.perf_counter() - begun)
            said[count] = answer.tokens
    if len({*said.values()}) > 1:
        sys.exit(f"the answers differ: {said}")
    return {"tokens": len(said[0]), "seconds": seconds}


def page(found: dict[str, Any], guesses: list[int]) -> str:
    lines = ["# What guessing from the prompt gains", ""]
    lines += [", ".join(f"{k} {v}" for k, v in found["machine"].items()), ""]
    heads = "".join(f" {count} guesses |" for count in guesses)
    lines.append(f"| weights | task | tokens | a token, without |{heads}")
    lines.append("|---" * (4 + len(guesses)) + "|")
    for row in found["rows"]:
        plain = row["seconds"][0]
        ratios = [
            median(a / b for a, b in zip(plain, row["seconds"][count], strict=True))
            for count in guesses
        ]
        lines.append(
            f"| {row['weights']} | {row['task']} | {row['tokens']} "
            f"| {1e3 * median(plain) / row['tokens']:.2f} ms |"
            + "".join(f" {ratio:.2f} times as fast |" for ratio in ratios)
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
