"""What adapting costs and gains: LoRA beside full training, preferences, a frozen encoder's store.

    python benchmarks/adapting.py --data DIR [--base MODEL]

DIR holds Multi30k as for placement_translation.py, of whose first trial the base model is. It is
adapted to a text of another kind (captions with their words the other way round, which the base
cannot say), each way in a process of its own; measured are quality, trained numbers, seconds and
memory. Then direct preference optimisation over pairs of the base model's own answers, ranked by
sentence BLEU, and how often it answers better than the base on sources that chose nothing; and the
epochs of a graft whose encoder is frozen, with a store and without. Writes a record and a page to
benchmarks/results/MACHINE-DATE/.
"""

import argparse
import gzip
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from real_weights import RESULTS

import xattn
from xattn.bench.machine import record
from xattn.readable import readable_bytes, readable_count
from xattn.tuning import journal
from xattn.tuning.recipe import Evaluation, Recipe, checked
from xattn.tuning.train import Outcome, evaluate, train, trained

METHODS = {
    "LoRA, cross": {"method": "lora", "lora": {"preset": "cross", "rank": 8}},
    "LoRA, all": {"method": "lora", "lora": {"preset": "all", "rank": 8}},
    "full": {"method": "full"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--base",
        type=Path,
        default=Path("runs/placement-translation/trials/every-1-seed-0/best"),
    )
    parser.add_argument("--work", type=Path, default=Path("runs/adapting"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", default=["adapters", "preferences", "store"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": record(arguments.threads), "steps": arguments.steps}
    for part in arguments.parts:
        found[part] = PARTS[part](arguments)
        print(json.dumps({part: found[part]}, indent=2), flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "adapting.json").write_text(json.dumps(found, indent=2) + "\n")
    text = page(found)
    (RESULTS / "adapting.md").write_text(text)
    print(text)


def lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.strip() for line in file]


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


# Adapters


def adapters(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same captions backwards: a new task, on words that the base knows."""

    def backwards(name: str, count: int) -> str:
        pairs = zip(lines(arguments.data / f"{name}.en.gz"),
                    lines(arguments.data / f"{name}.de.gz"), strict=True)  # fmt: skip
        rows = [
            {"source": en, "target": " ".join(reversed(de.split()))}
            for en, de in list(pairs)[:count]
        ]
        return write_jsonl(arguments.work / f"backwards-{name}.jsonl", rows)

    train_file, valid = backwards("train", 6000), backwards("val", 500)
    test = backwards("test_2016_flickr", 500)
    evaluation = {"data": test, "metrics": ["bleu"], "num_beams": 1, "most_tokens": 64,
                  "tokenize": "none"}  # fmt: skip
    found: dict[str, Any] = {}
    for name, method in METHODS.items():
        directory = arguments.work / name.replace(", ", "-").lower()
        shutil.rmtree(directory, ignore_errors=True)
        recipe = checked(
            {
                "directory": str(directory),
                "model": {"path": str(arguments.base)},
                "data": {"train": train_file, "validation": valid},
                "training": {
                    "steps": arguments.steps,
                    "batch_tokens": 4000,
                    "learning_rate": 3e-3 if "lora" in method else 5e-4,
                    "warmup": 20,
                    "evaluate_every": 50,
                    "save_every": arguments.steps,
                    **method,
                },
            }
        )
        outcome = in_a_process(recipe, arguments.threads)
        model = trained(recipe, outcome.directory)
        found[name] = {
            "trained": outcome.trained,
            "seconds": outcome.seconds,
            "peak_bytes": outcome.peak_bytes,
            "loss": outcome.best_loss,
            "encoder_passes": outcome.encoder_passes,
            "bleu": evaluate(model, Evaluation(**evaluation))["bleu"],
        }
        print(name, found[name], flush=True)
    base = xattn.load(arguments.base)
    found["base"] = {"bleu": evaluate(base, Evaluation(**evaluation))["bleu"], "trained": 0}
    return found


def in_a_process(recipe: Recipe, threads: int) -> Outcome:
    """A run whose peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as one:
        return one.submit(run, recipe.model_dump(mode="json"), threads).result()


def run(given: dict[str, Any], threads: int) -> Outcome:
    torch.set_num_threads(threads)
    return train(checked(given))


# Preferences


def preferences(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pairs of the base model's own answers, the better by sentence BLEU chosen."""
    import sacrebleu

    base = xattn.load(arguments.base)
    pairs = list(zip(lines(arguments.data / "val.en.gz"), lines(arguments.data / "val.de.gz"),
                     strict=True))  # fmt: skip

    def ranked(some: list[tuple[str, str]], name: str) -> str:
        rows = []
        for source, target in some:
            answers = base.generate(source, num_beams=6, num_return_sequences=6, max_new_tokens=48)
            texts = {answers.text, *(other.text for other in answers.alternatives)}
            scored = sorted(texts, key=lambda text: sacrebleu.sentence_bleu(
                text, [target], tokenize="none").score)  # fmt: skip
            if len(scored) > 1 and all(scored):
                rows.append({"source": source, "chosen": scored[-1], "rejected": scored[0]})
        return write_jsonl(arguments.work / f"pairs-{name}.jsonl", rows)

    train_file, valid = ranked(pairs[:600], "train"), ranked(pairs[600:800], "valid")
    directory = arguments.work / "dpo"
    shutil.rmtree(directory, ignore_errors=True)
    recipe = checked(
        {
            "directory": str(directory),
            "model": {"path": str(arguments.base)},
            "data": {"train": train_file, "validation": valid},
            "training": {
                "method": "decoder",
                "steps": 60,
                "batch_tokens": 3000,
                "learning_rate": 3e-5,
                "warmup": 5,
                "evaluate_every": 10,
                "save_every": 60,
            },
            "preference": {"loss": "sigmoid", "beta": 0.1},
        }
    )
    outcome = train(recipe)
    rows = journal.read(directory / "log.csv")
    sources = len(Path(train_file).read_text().splitlines())
    sources += len(Path(valid).read_text().splitlines())
    tuned = xattn.load(outcome.directory)
    return {
        "pairs": sources,
        "margin": [rows[0].seen["margin"], rows[-1].seen["margin"]],
        "accuracy": [rows[0].seen["accuracy"], rows[-1].seen["accuracy"]],
        "validation_loss": [row.validation_loss for row in rows if row.validation_loss],
        "kl": rows[-1].seen["kl"],
        **answered_better(base, tuned, pairs[800:]),
        "encoder_passes": outcome.encoder_passes,
        "seconds": outcome.seconds,
    }


def answered_better(
    base: xattn.Model, tuned: xattn.Model, pairs: list[tuple[str, str]]
) -> dict[str, Any]:
    """How often the tuned model's answer is the better one by sentence BLEU, and how often not."""
    import sacrebleu

    sources = [source for source, _ in pairs]
    answers = [
        [one.text for one in model.generate_batch(model.encode_batch(sources), max_new_tokens=48)]
        for model in (base, tuned)
    ]
    won = lost = 0
    for before, after, (_, target) in zip(*answers, pairs, strict=True):
        a, b = (
            sacrebleu.sentence_bleu(text, [target], tokenize="none").score
            for text in (before, after)
        )
        won, lost = won + (b > a), lost + (b < a)
    corpus = [
        sacrebleu.corpus_bleu(texts, [[target for _, target in pairs]], tokenize="none").score
        for texts in answers
    ]
    return {"answers": len(pairs), "won": won, "lost": lost, "bleu": corpus}


# The store


def store(arguments: argparse.Namespace) -> dict[str, Any]:
    """Epochs of a graft on SmolLM2 that reads passages by itself."""
    words = " ".join(lines(arguments.data / "train.en.gz")[:2400]).split()
    rows = [
        {"source": " ".join(words[n : n + 120]), "target": " " + " ".join(words[n + 120 : n + 160])}
        for n in range(0, len(words) - 160, 160)
    ][:120]
    data = write_jsonl(arguments.work / "passages.jsonl", rows)
    found: dict[str, Any] = {}
    for remember in (True, False):
        directory = arguments.work / f"store-{remember}"
        shutil.rmtree(directory, ignore_errors=True)
        recipe = checked(
            {
                "directory": str(directory),
                "model": {
                    "lm": "smollm2-135m-instruct",
                    "encoder": "itself",
                    "placement": "every:5",
                },
                "data": {"train": data},
                "training": {
                    "epochs": 3,
                    "batch_tokens": 2000,
                    "remember": remember,
                    "save_every": 1000,
                },
            }
        )
        outcome = train(recipe)
        table = journal.read(directory / "log.csv")
        epochs = [[row for row in table if row.epoch == n] for n in range(3)]
        ends = [some[-1].seconds for some in epochs]
        found["kept" if remember else "anew"] = {
            "epoch_seconds": [b - a for a, b in zip([0.0, *ends[:-1]], ends, strict=True)],
            "encoder_passes": outcome.encoder_passes,
            "losses": [row.loss for row in table],
        }
    kept, anew = found["kept"], found["anew"]
    found["times_faster"] = median(anew["epoch_seconds"][1:]) / median(kept["epoch_seconds"][1:])
    found["largest_difference"] = max(
        abs(a - b) for a, b in zip(kept["losses"], anew["losses"], strict=True)
    )
    return found


PARTS = {"adapters": adapters, "preferences": preferences, "store": store}


def page(found: dict[str, Any]) -> str:
    text = ["# What adapting costs and gains", ""]
    text += [", ".join(f"{k} {v}" for k, v in found["machine"].items()), ""]
    if "adapters" in found:
        text += [
            f"A translator that is to say its sentences backwards, {found['steps']} updates.",
            "",
            "| | BLEU | trained | seconds | peak in RAM | encoder passes |",
            "|---|---|---|---|---|---|",
        ]
        for name, one in found["adapters"].items():
            if name == "base":
                text.append(f"| as it was | {one['bleu']:.1f} | | | | |")
                continue
            text.append(
                f"| {name} | {one['bleu']:.1f} | {readable_count(one['trained'])} "
                f"| {one['seconds']:.0f} | {readable_bytes(one['peak_bytes'])} "
                f"| {one['encoder_passes']} |"
            )
        text.append("")
    if "preferences" in found:
        one = found["preferences"]
        text += [
            f"DPO over {one['pairs']} pairs of its own answers, ranked by sentence BLEU: margin "
            f"{one['margin'][0]:.3f} to {one['margin'][1]:.3f}, the chosen answer likelier in "
            f"{one['accuracy'][0]:.0%} and then {one['accuracy'][1]:.0%} of a batch. Of "
            f"{one['answers']} other sources it answers {one['won']} better and {one['lost']} "
            f"worse than before, BLEU {one['bleu'][0]:.1f} and {one['bleu'][1]:.1f}; "
            f"{one['encoder_passes']} encoder passes.",
            "",
        ]
    if "store" in found:
        one = found["store"]
        text += [
            f"A graft whose encoder is frozen: epochs after the first {one['times_faster']:.2f} "
            f"times as fast from the store ({one['kept']['encoder_passes']} encoder passes against "
            f"{one['anew']['encoder_passes']}), losses within {one['largest_difference']:.1e}.",
            "",
        ]
    return "\n".join(text)


if __name__ == "__main__":
    main()
