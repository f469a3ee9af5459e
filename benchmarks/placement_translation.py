"""Where cross-attention pays in translation: one encoder-decoder, trained from nothing, many times.

    python benchmarks/placement_translation.py --data DIR [--epochs 12]

DIR holds train, val and test_2016_flickr as .en.gz and .de.gz (Multi30k, task 1, lower-cased and
tokenised: for research alone, and no weights are kept). Eight placements under one budget, the
best three with three seeds; BLEU and chrF by sacrebleu, bytes, milliseconds a token. Finalists are
chosen by `val`; reported is `test_2016_flickr`, which chooses nothing. A run that is interrupted
goes on. Writes a record, a page and a picture to benchmarks/results/MACHINE-DATE/.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from real_weights import RESULTS

import xattn
from xattn.bench.machine import record
from xattn.placing import drawn
from xattn.readable import readable_bytes, readable_count
from xattn.tuning.charts import draw_sweep
from xattn.tuning.recipe import Evaluation, checked
from xattn.tuning.report import recommendation, table
from xattn.tuning.sweep import Sweep, summarised, sweep
from xattn.tuning.train import evaluate

PLACEMENTS = ("every:1", "every:2", "every:3", "first", "last", "middle", "alternate", "single")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/placement-translation"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--placements", default=",".join(PLACEMENTS))
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = sweep(
        checked(recipe(arguments)),
        arguments.placements.split(","),
        metric="bleu",
        finalists=arguments.finalists,
        finalist_seeds=3,
        say=lambda text: print(text, flush=True),
    )
    found = tested(found, arguments)
    RESULTS.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "machine": record(arguments.threads),
        "recipe": recipe(arguments),
        "trials": [asdict(trial) | {"directory": ""} for trial in found.trials],
        "recommendation": recommendation(found),
    }
    (RESULTS / "placement_translation.json").write_text(json.dumps(report, indent=2) + "\n")
    (RESULTS / "placement_translation.csv").write_text(table(found))
    draw_sweep(found, RESULTS / "placement_translation.png")
    text = page(report, found)
    (RESULTS / "placement_translation.md").write_text(text)
    print(text)


def pair(arguments: argparse.Namespace, name: str) -> list[str]:
    return [str(arguments.data / f"{name}.{side}.gz") for side in ("en", "de")]


def tested(found: Sweep, arguments: argparse.Namespace) -> Sweep:
    """The trials with what they make of the test set, in the place of the validation set."""
    kept = arguments.work / "tested.json"
    scores: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.is_file() else {}
    how = recipe(arguments)["evaluation"] | {"data": pair(arguments, "test_2016_flickr")}
    for trial in found.trials:
        name = f"{trial.placement} {trial.seed}"
        if name not in scores:
            scores[name] = evaluate(xattn.load(trial.directory), Evaluation(**how))
            kept.write_text(json.dumps(scores, indent=2) + "\n")
            print(f"tested {name}: {scores[name]}", flush=True)
    trials = [replace(t, scores=scores[f"{t.placement} {t.seed}"]) for t in found.trials]
    return summarised(trials, found.metric)


def recipe(arguments: argparse.Namespace) -> dict[str, Any]:
    """About five million parameters."""
    return {
        "directory": str(arguments.work),
        "model": {
            "scratch": {
                "vocabulary": 5000,
                "width": 192,
                "heads": 4,
                "feed_forward": 384,
                "encoder_layers": 3,
                "decoder_layers": 6,
            },
            "placement": "all",
        },
        "data": {"train": pair(arguments, "train"), "validation": pair(arguments, "val"),
                 "most_source": 64, "most_target": 64},
        "training": {
            "method": "full",
            "epochs": arguments.epochs,
            "batch_tokens": 6000,
            "learning_rate": 2e-3,
            "warmup": 200,
            "label_smoothing": 0.1,
            "dropout": 0.2,
            "precision": arguments.precision,
            "evaluate_every": 150,
            "save_every": 150,
        },
        "evaluation": {
            "data": pair(arguments, "val"),
            "metrics": ["bleu", "chrf"],
            "num_beams": 4,
            "most_tokens": 64,
            "tokenize": "none",
        },
    }  # fmt: skip


def page(report: dict[str, Any], found: Sweep) -> str:
    training = report["recipe"]["training"]
    lines = ["# Where cross-attention pays in translation", ""]
    lines += [", ".join(f"{k} {v}" for k, v in report["machine"].items()), ""]
    lines += [
        "Multi30k, English to German, lower-cased and tokenised; 3 encoder and 6 decoder layers of "
        f"width 192, {training['epochs']} epochs, 4 beams; BLEU (`tokenize=none`) and chrF of "
        "test_2016_flickr.",
        "",
        report["recommendation"],
        "",
        "| placement | layers | seeds | BLEU | 95 % | chrF | a position | parameters | a token |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(found.placements, key=lambda one: -one.quality):
        trials = [trial for trial in found.trials if trial.placement == one.placement]
        chrf = sum(trial.scores["chrf"] for trial in trials) / len(trials)
        spread = "" if one.interval is None else f"{one.interval[0]:.1f} to {one.interval[1]:.1f}"
        lines.append(
            f"| {one.placement}{' ◆' if one.on_front else ''} | `{drawn(one.mask)}` | {one.seeds} "
            f"| {one.quality:.2f} | {spread} | {chrf:.1f} "
            f"| {readable_bytes(one.cost.bytes_per_position)} "
            f"| {readable_count(one.cost.parameters)} "
            f"| {1000 * one.cost.seconds_per_token:.2f} ms |"
        )
    return "\n".join([*lines, "", "![](placement_translation.png)", ""])


if __name__ == "__main__":
    main()
