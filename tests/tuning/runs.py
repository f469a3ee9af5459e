"""Small runs: data, recipes, and processes that are killed."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from xattn.tuning.recipe import Recipe, checked

WORDS = "one two three four five six seven eight nine ten red green blue".split()
RUN = """
import json, sys
from xattn.tuning.recipe import checked
from xattn.tuning.train import train
train(checked(json.loads(sys.argv[1])), say=lambda text: print(text, flush=True))
"""


def write_examples(path: Path, count: int, seed: int, *, prompt: bool = False) -> None:
    """Sources of words, whose targets are the same words the other way round."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(2, 7))
        held = {"source": " ".join(words), "target": " ".join(reversed(words))}
        if prompt:
            held["prompt"] = "Backwards:"
        lines.append(json.dumps(held))
    path.write_text("\n".join(lines) + "\n")


def scratch_recipe(directory: Path, data: Path, **training: Any) -> Recipe:
    """An encoder-decoder that begins from nothing."""
    given = {"method": "full", "batch_tokens": 128, "warmup": 5, "learning_rate": 2e-3, **training}
    if "epochs" not in given:
        given.setdefault("steps", 12)
    return checked(
        {
            "directory": str(directory),
            "model": {
                "placement": "every:2",
                "scratch": {
                    "vocabulary": 120,
                    "width": 32,
                    "heads": 4,
                    "feed_forward": 48,
                    "encoder_layers": 1,
                    "decoder_layers": 2,
                },
            },
            "data": {"train": str(data / "train.jsonl"), "validation": str(data / "valid.jsonl")},
            "training": given,
        }
    )


def graft_recipe(directory: Path, data: Path, lm: Path, encoder: str, **training: Any) -> Recipe:
    """A graft on a language model with a tokenizer."""
    given = {"batch_tokens": 256, "warmup": 2, "learning_rate": 3e-3, **training}
    if "epochs" not in given:
        given.setdefault("steps", 6)
    return checked(
        {
            "directory": str(directory),
            "model": {"lm": str(lm), "encoder": encoder, "placement": "every:2"},
            "data": {"train": str(data / "train.jsonl"), "validation": str(data / "valid.jsonl")},
            "training": given,
        }
    )


def in_a_process(recipe: Recipe) -> subprocess.Popen[str]:
    """The run in a process of its own, which says a line at each evaluation."""
    given = json.dumps(recipe.model_dump(mode="json"))
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", RUN, given],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
