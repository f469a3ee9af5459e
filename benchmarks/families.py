"""Every family on small random weights, against live transformers.

    python benchmarks/families.py

For each: the largest difference of logits (teacher-forced and step by step, materialised and
absorbed), and how many of 50 random prompts give the same tokens, greedy and with 4 beams. The
tests assert the same; this prints the figures. Writes to benchmarks/results/MACHINE-DATE/.
"""

import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import tiny  # noqa: E402
from generations import EOS, groups_of, requests_of, theirs  # noqa: E402
from pairs import Pair, random_tokens  # noqa: E402

from xattn.bench.machine import record, results  # noqa: E402
from xattn.decoding import Settings, decode  # noqa: E402
from xattn.models.build import build  # noqa: E402
from xattn.models.formats import huggingface  # noqa: E402

RESULTS = results(Path(__file__).parent / "results")
PACKAGES = ("torch", "transformers")


def main() -> None:
    rows, threads = [], torch.get_num_threads()
    for name in tiny.TINY:
        with tempfile.TemporaryDirectory() as directory:
            model = tiny.make(name, Path(directory))
            ours = build(huggingface.read(Path(directory), name))
            rows.append(figures(Pair(name, model, ours, Path(directory))))
        print(rows[-1], flush=True)
    lines = [
        "# Families, against transformers on small random weights",
        "",
        *[f"- {name}: {value}" for name, value in record(threads, packages=PACKAGES).items()],
        "",
        "| family | max abs difference of logits | greedy, same tokens | 4 beams, same tokens "
        "| absorbed, same greedy tokens |",
        "|---|---|---|---|---|",
        *rows,
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "families.md").write_text("\n".join(lines) + "\n")


def figures(pair: Pair) -> str:
    groups = list(groups_of(pair, 10))
    requests = requests_of(pair, groups)
    equal = {}
    for beams in (1, 4):
        arguments = {"num_beams": beams, "no_repeat_ngram_size": 1, "max_new_tokens": 12}
        found = decode(pair.ours, requests, Settings(**arguments, eos_token_id=EOS))
        want = theirs(pair, groups, **arguments)
        equal[beams] = sum(a[0].tokens == b[0][0] for a, b in zip(found, want, strict=True))
    absorbed = "-"
    if not pair.decoder_only:
        settings = Settings(no_repeat_ngram_size=1, max_new_tokens=12, eos_token_id=EOS)
        one, other = (
            decode(pair.ours, requests, settings, form=form)
            for form in ("materialized", "absorbed")
        )
        same = sum(a[0].tokens == b[0].tokens for a, b in zip(one, other, strict=True))
        absorbed = f"{same} of {len(requests)}"
    difference = logits_difference(pair)
    of = f"of {len(requests)}"
    return f"| {pair.name} | {difference:.1e} | {equal[1]} {of} | {equal[4]} {of} | {absorbed} |"


@torch.no_grad()
def logits_difference(pair: Pair) -> float:
    tokens = random_tokens(3, 12)
    if pair.decoder_only:
        want, attended = pair.theirs(input_ids=tokens).logits, [[]] * 3
    else:
        values, named = pair.inputs(3, 11)
        want = pair.theirs(**named, decoder_input_ids=tokens).logits
        attended = [[memory] for memory in pair.memories(values)]
    worst = 0.0
    for form in ("materialized",) if pair.decoder_only else ("materialized", "absorbed"):
        forced = pair.ours.score(tokens, pair.ours.start(attended, form=form))
        state = pair.ours.start(attended, form=form)
        steps = [pair.ours.step(tokens[:, i : i + 1], state) for i in range(tokens.shape[1])]
        for got in (forced, torch.stack(steps, dim=1)):
            worst = max(worst, float((got - want).abs().max()))
    return worst


if __name__ == "__main__":
    main()
