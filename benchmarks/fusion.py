"""Fusion-in-Decoder at question time: memories that are there, against encoding every passage.

    python benchmarks/fusion.py [--shape t5-small] [--passages 100] [--tokens 250] [--rounds 7]

Random weights of a T5 shape. Each side answers the same question over the same passages: xattn
attends to memories from its store, transformers encodes all passages in batches and generates with
the concatenation as `encoder_outputs`, as the paper's code does. Tokens must be equal; where
passages are kept pinned as int8 keys and values, which is lossy, how many are is told. Interleaved,
medians; writes JSON and a Markdown page to benchmarks/results/MACHINE-DATE/.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

from real_weights import RESULTS

from xattn.bench.machine import record
from xattn.spec import Form

NEW_TOKENS, BATCH = 16, 10
PINNED: Form = "materialized-int8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="t5-small", choices=["t5-small", "t5-base"])
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "xattn.bench.making",
                arguments.shape,
                directory,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        found = measured(f"{directory}/{arguments.shape}/transformers", arguments)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "fusion.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "fusion.md").write_text(page(found))
    print(page(found))


def measured(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers
    from transformers.modeling_outputs import BaseModelOutput

    import xattn

    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(path).eval()
    model = xattn.load(path, offline=True)
    rng = random.Random(0)
    passages = [[rng.randrange(5, 30000) for _ in range(arguments.tokens)]
                for _ in range(arguments.passages)]  # fmt: skip
    question = [0, *(rng.randrange(5, 30000) for _ in range(12))]
    ids = torch.tensor(passages)

    with (
        tempfile.TemporaryDirectory() as directory,
        xattn.MemoryStore(directory, ram_bytes=4 << 30) as store,
    ):
        model.store = store
        model.remembered(model.prepare_batch(passages))
        passes = model.counters.encoder_passes

        def ours(form: Form = "absorbed") -> tuple[int, ...]:
            memories = model.remembered(model.prepare_batch(passages))
            return model.generate(
                memories, question, form=form, max_new_tokens=NEW_TOKENS, eos_token_id=()
            ).tokens

        for memory in model.remembered(model.prepare_batch(passages)):
            model.pin_projection(memory, form=PINNED)

        @torch.inference_mode()
        def plain() -> tuple[int, ...]:
            encoder = theirs.get_encoder()
            states = torch.cat([encoder(batch).last_hidden_state for batch in ids.split(BATCH)])
            out = theirs.generate(
                encoder_outputs=BaseModelOutput(states.flatten(0, 1).unsqueeze(0)),
                decoder_input_ids=torch.tensor([question]),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                num_beams=1,
            )
            return tuple(out[0, len(question) :].tolist())

        sides = {
            "xattn": ours,
            "xattn, pinned in int8": lambda: ours(PINNED),
            "transformers": plain,
        }
        tokens = {name: side() for name, side in sides.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                started = time.perf_counter()
                side()
                seconds[name].append(time.perf_counter() - started)
        encoded = model.counters.encoder_passes - passes
    if tokens["xattn"] != tokens["transformers"]:
        sys.exit(f"the answers differ: {tokens}")
    return {
        "machine": record(2),
        "shape": arguments.shape,
        "passages": arguments.passages,
        "tokens": arguments.tokens,
        "new_tokens": NEW_TOKENS,
        "seconds": seconds,
        "ratios": {
            name: median(b / a for a, b in zip(taken, seconds["transformers"], strict=True))
            for name, taken in seconds.items()
        },
        "same_tokens": {
            name: sum(a == b for a, b in zip(one, tokens["transformers"], strict=True))
            for name, one in tokens.items()
        },
        "encoder_passes_at_question_time": encoded,
    }


def page(found: dict[str, Any]) -> str:
    lines = [
        "# Fusion-in-Decoder at question time",
        "",
        ", ".join(f"{k} {v}" for k, v in found["machine"].items()),
        "",
        f"{found['shape']}, random weights, {found['passages']} passages of {found['tokens']} "
        f"tokens, {found['new_tokens']} new tokens, weights in float32. xattn makes "
        f"{found['encoder_passes_at_question_time']} encoder passes.",
        "",
        "| engine | seconds (median) | from | to | times as fast | the same tokens |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds in found["seconds"].items():
        low, high = min(seconds), max(seconds)
        lines.append(
            f"| {name} | {median(seconds):.3f} | {low:.3f} | {high:.3f} "
            f"| {found['ratios'][name]:.1f} | {found['same_tokens'][name]} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
