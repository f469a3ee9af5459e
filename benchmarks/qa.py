"""Questions about passages: parallel memories beside the plain prompt.

    python benchmarks/qa.py --data FILE [-k 3 -k 8:120]

Runs `xattn eval qa` for each number of passages (of k:N the first N questions only: the plain
prompt reads a thousand tokens for each answer), on every other question, none of which anything was
tuned on. FILE is in SQuAD's format, such as XQuAD's English questions (CC BY-SA 4.0). Writes a
record and a page to benchmarks/results/MACHINE-DATE/.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from real_weights import RESULTS

from xattn.bench.machine import record
from xattn.readable import readable_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-k", action="append", help="passages, or passages:questions")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": record(arguments.threads), "data": arguments.data.name}
    found["runs"] = [run(arguments, one) for one in arguments.k or ["3", "8:120"]]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "qa.json").write_text(json.dumps(found, indent=2) + "\n")
    text = page(found)
    (RESULTS / "qa.md").write_text(text)
    print(text)


def run(arguments: argparse.Namespace, passages: str) -> dict[str, Any]:
    k, _, questions = passages.partition(":")
    command = [sys.executable, "-W", "ignore", "-m", "xattn", "eval", "qa", "--offline", "--json"]
    command += ["--data", str(arguments.data), "-k", k, "--threads", str(arguments.threads)]
    command += ["--questions", questions] if questions else []
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def page(found: dict[str, Any]) -> str:
    lines = ["# Questions about passages", ""]
    lines += [", ".join(f"{k} {v}" for k, v in found["machine"].items()), ""]
    recall = found["runs"][0]["recall"]
    lines += [
        f"SmolLM2-135M-Instruct, {found['data']}; retrieval: "
        + ", ".join(f"recall@{n} {value:.3f}" for n, value in recall.items())
        + " of whole paragraphs. Cited rightly: of the right answers, those whose first citation "
        "has the answer in it; in brackets, the same of those that cite at all. An answer: until "
        "its last token, citations included.",
        "",
        "| reader | k | questions | contains the answer | exact match | F1 | cited rightly "
        "| support AUC | first token, warm | cold | an answer | encoder passes | memories |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in (row for run in found["runs"] for row in run["readers"]):
        lines.append(
            f"| {one['reader']} | {one['k']} | {one['questions']} | {one['contains_answer']:.3f} "
            f"| {one['exact_match']:.3f} | {one['f1']:.3f} "
            f"| {one['citation_precision'] * one['cited']:.2f} ({one['citation_precision']:.2f}) "
            f"| {one['support_auc']:.2f} | {one['warm_first_token_seconds']:.2f} s "
            f"| {one['cold_first_token_seconds']:.2f} s | {one['answer_seconds']:.2f} s "
            f"| {one['encoder_passes']} "
            f"| {readable_bytes(one['memory_bytes'])} |"
        )
    lines.append("")
    for run in found["runs"]:
        rows = {row["reader"]: row for row in run["readers"]}
        if rows.keys() >= {"parallel", "plain"}:
            parallel, plain = rows["parallel"], rows["plain"]
            kept = parallel["contains_answer"] / plain["contains_answer"]
            sooner = plain["warm_first_token_seconds"] / parallel["warm_first_token_seconds"]
            lines.append(
                f"At k={parallel['k']} parallel memories contain the answer {kept:.2f} times as "
                f"often as the plain prompt, and reach the first token {sooner:.1f} times sooner."
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
