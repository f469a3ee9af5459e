"""How much of what a passage in the prompt gives does a passage in memory give?

    python benchmarks/placement_passages.py --text FILE

SmolLM2-135M-Instruct, grafted, learns to go on with a text of which it has read the part before as
a memory, encoded once by itself. Measured on held-out text: the loss of the continuation with the
right memory, with another's, with none, and with the passage in the prompt, which is the ceiling.
Of what the passage in the prompt gains, reported are the share that a graft gains with the right
memory, and the share that is the passage's own: what the right memory gains over another's, which
has taught the graft the text's manner as well. And at what share of the bytes.

FILE is plain text, such as a book of Debian's `sword-text-web`. Writes a record, a page and a
picture to benchmarks/results/MACHINE-DATE/.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from real_weights import RESULTS

import xattn
from xattn.bench.machine import record
from xattn.placing import drawn, layers_of
from xattn.readable import readable_bytes, readable_count
from xattn.tuning.charts import ACCENT, INK, figure, write
from xattn.tuning.examples import Example
from xattn.tuning.recipe import checked
from xattn.tuning.teacher import Teacher
from xattn.tuning.train import train

LM = "smollm2-135m-instruct"
PASSAGE_WORDS, CONTINUATION_WORDS = 120, 40
CASES = (
    ("every:3", "gated", "new"),
    ("every:5", "gated", "new"),
    ("every:10", "gated", "new"),
    ("every:3", "merged", "new"),
    ("every:5", "merged", "new"),
    ("every:10", "merged", "new"),
    ("every:5", "gated", "gates"),
)
"""Placement, kind, and what of the graft is trained."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/placement-passages"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--examples", type=int, default=2400)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    held_out = write_data(arguments)
    found: dict[str, Any] = {
        "machine": record(arguments.threads),
        "steps": arguments.steps,
        "held_out": len(held_out),
        "baseline": baseline(held_out),
        "cases": {},
    }
    print(found["baseline"], flush=True)
    for placement, kind, method in CASES:
        name = f"{placement}, {kind}" + (", gates alone" if method == "gates" else "")
        outcome = train(checked(recipe(arguments, placement, kind, method)), say=print)
        model = xattn.load(outcome.directory)
        found["cases"][name] = measured(model, held_out) | {
            "placement": placement,
            "kind": kind,
            "trained": outcome.trained,
            "seconds": outcome.seconds,
            "encoder_passes": outcome.encoder_passes,
        }
        print(name, found["cases"][name], flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "placement_passages.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(found, RESULTS / "placement_passages.png")
    text = page(found)
    (RESULTS / "placement_passages.md").write_text(text)
    print(text)


def write_data(arguments: argparse.Namespace) -> list[Example]:
    """Passages and what follows them: training data as files, and those held out."""
    words = arguments.text.read_text(encoding="utf-8").split()
    size = PASSAGE_WORDS + CONTINUATION_WORDS
    pieces = [words[start : start + size] for start in range(0, len(words) - size, size)]
    examples = [
        {
            "source": " ".join(piece[:PASSAGE_WORDS]),
            "prompt": piece[PASSAGE_WORDS],
            "target": " " + " ".join(piece[PASSAGE_WORDS + 1 :]),
        }
        for piece in pieces
    ]
    if len(examples) < arguments.examples + 2 * arguments.held_out:
        raise SystemExit(f"{arguments.text} has {len(examples)} pieces only; give more text.")
    # From the end: what is held out was not read by its neighbours, and chooses no checkpoint.
    count = arguments.held_out
    learnt, valid, held_out = (
        examples[: -2 * count],
        examples[-2 * count : -count],
        examples[-count:],
    )
    chosen = learnt[:: max(1, len(learnt) // arguments.examples)][: arguments.examples]
    for name, some in (("train", chosen), ("valid", valid[::2])):
        lines = "\n".join(json.dumps(one) for one in some)
        (arguments.work / f"{name}.jsonl").write_text(lines + "\n")
    return [
        Example(sources=(e["source"],), prompt=e["prompt"], target=e["target"]) for e in held_out
    ]


def recipe(arguments: argparse.Namespace, placement: str, kind: str, method: str) -> dict[str, Any]:
    name = f"{placement.replace(':', '-')}-{kind}-{method}"
    return {
        "directory": str(arguments.work / name),
        "model": {
            "lm": LM,
            "encoder": "itself",
            "placement": placement,
            "kind": kind,
            "projector": "mlp" if kind == "merged" else "linear",
        },
        "data": {
            "train": str(arguments.work / "train.jsonl"),
            "validation": str(arguments.work / "valid.jsonl"),
        },
        "training": {
            "method": method,
            "steps": arguments.steps,
            "batch_tokens": 2000,
            "learning_rate": 1e-3,
            "warmup": 30,
            "precision": "bfloat16",
            "evaluate_every": 100,
            "save_every": 100,
        },
    }


@torch.no_grad()
def baseline(held_out: list[Example]) -> dict[str, float]:
    """The model itself: without the passage, and with it in the prompt."""
    lm = xattn.load(LM, offline=True)
    teacher = Teacher(lm.network).eval()
    alone, prompted, learnt, positions = 0.0, 0.0, 0, 0
    for example in held_out:
        target = lm.tokenizer.encode_plain(example.target).ids
        passage = lm.tokenizer.encode(example.sources[0]).ids
        prompt = lm.tokenizer.encode(example.prompt or "").ids
        after = lm.tokenizer.encode_plain(" " + (example.prompt or "")).ids
        alone += loss(teacher, prompt, target)
        prompted += loss(teacher, [*passage, *after], target)
        learnt, positions = learnt + len(target), positions + len(passage)
    decoder = lm.spec.decoder
    return {
        "none": alone / learnt,
        "prompt": prompted / learnt,
        "prompt_bytes": decoder.self_cache_bytes(positions) / len(held_out),
        "positions": positions / len(held_out),
    }


def loss(teacher: Teacher, before: list[int], target: list[int], memories: Any = ()) -> float:
    """Of the target's tokens, summed; its end is not among them."""
    fed = torch.tensor([[*before, *target[:-1]]])
    after = [-100] * (len(before) - 1) + target
    return float(teacher([list(memories)], fed, torch.tensor([after])))


@torch.no_grad()
def measured(model: xattn.Model, held_out: list[Example]) -> dict[str, float]:
    """With the right memory, another's, and none."""
    teacher = Teacher(model.network).eval()
    memories = [model.encode(example.sources[0]) for example in held_out]
    totals, learnt = {"right": 0.0, "wrong": 0.0, "none": 0.0}, 0
    for n, example in enumerate(held_out):
        target = model.tokenizer.encode_plain(example.target).ids
        prompt = model.tokenizer.encode(example.prompt or "").ids
        wrong = memories[(n + len(held_out) // 2) % len(held_out)]
        totals["right"] += loss(teacher, prompt, target, [memories[n]])
        totals["wrong"] += loss(teacher, prompt, target, [wrong])
        totals["none"] += loss(teacher, prompt, target)
        learnt += len(target)
    decoder = model.spec.decoder
    held = sum(decoder.cross_bytes(len(memory)) for memory in memories) / len(memories)
    return {name: total / learnt for name, total in totals.items()} | {"bytes": held}


def recovered(found: dict[str, Any], case: dict[str, Any]) -> float:
    """Of what the passage in the prompt gains, the share that the right memory gains."""
    base = found["baseline"]
    return (base["none"] - case["right"]) / (base["none"] - base["prompt"])


def read(found: dict[str, Any], case: dict[str, Any]) -> float:
    """The share of that gain which is the passage's own: another's memory gains the rest."""
    base = found["baseline"]
    return (case["wrong"] - case["right"]) / (base["none"] - base["prompt"])


def draw(found: dict[str, Any], path: Path) -> None:
    drawing = figure(7, 4.2)
    axes: Any = drawing.subplots()
    for name, case in found["cases"].items():
        colour = INK if case["kind"] == "gated" else ACCENT
        share = 100 * case["bytes"] / found["baseline"]["prompt_bytes"]
        axes.plot(share, 100 * read(found, case), "o", color=colour)
        axes.annotate(name, (share, 100 * read(found, case)), fontsize=8,
                      textcoords="offset points", xytext=(6, 4))  # fmt: skip
    axes.plot(100, 100, "k*", markersize=12)
    axes.annotate("passage in the prompt", (100, 100), fontsize=8, ha="right",
                  textcoords="offset points", xytext=(-8, -4))  # fmt: skip
    axes.set(
        xlabel="keys and values, % of the passage's in the prompt",
        ylabel="in-context gain read from the memory (%)",
    )
    axes.grid(alpha=0.3)
    write(drawing, path)


def page(found: dict[str, Any]) -> str:
    base = found["baseline"]
    lines = ["# A passage as a memory, beside a passage in the prompt", ""]
    lines += [", ".join(f"{k} {v}" for k, v in found["machine"].items()), ""]
    lines += [
        f"SmolLM2-135M-Instruct, {found['steps']} updates, {found['held_out']} held-out passages "
        f"of {base['positions']:.0f} tokens; nats a token of the continuation. The model itself: "
        f"{base['none']:.3f} without the passage, {base['prompt']:.3f} with it in the prompt "
        f"({readable_bytes(round(base['prompt_bytes']))} of keys and values).",
        "",
        "| graft | right memory | another's | none | gain in all | of it the passage's | bytes "
        "| trained |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in found["cases"].items():
        share = case["bytes"] / base["prompt_bytes"]
        lines.append(
            f"| {name} | {case['right']:.3f} | {case['wrong']:.3f} | {case['none']:.3f} "
            f"| {recovered(found, case):.0%} | {read(found, case):.0%} | {share:.0%} "
            f"| {readable_count(case['trained'])} |"
        )
    masks = {case["placement"] for case in found["cases"].values()}
    lines += ["", *(f"`{drawn(layers_of(one, 30))}` {one}  " for one in sorted(masks))]
    return "\n".join([*lines, "", "![](placement_passages.png)", ""])


if __name__ == "__main__":
    main()
