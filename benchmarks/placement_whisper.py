"""Which of Whisper tiny.en's layers need cross-attention: word error rate against layers kept.

    python benchmarks/placement_whisper.py

Real telephone prompts and their transcripts (Debian: apt install asterisk-core-sounds-en-wav
asterisk-core-sounds-en), through `xattn placement probe`. Writes a record, a page and a picture to
benchmarks/results/MACHINE-DATE/.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from real_weights import RESULTS, recordings

from xattn.bench.machine import record
from xattn.placing import drawn
from xattn.readable import readable_bytes

LEAST_WORDS = 4
"""Of a prompt: single words tell little."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, default=150, help="recordings at most")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    pairs = [(file, said) for file, said in recordings(10_000) if len(said.split()) >= LEAST_WORDS]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "prompts.jsonl"
        data.write_text(
            "\n".join(
                json.dumps({"source": {"audio": str(file)}, "target": said})
                for file, said in pairs[: arguments.limit]
            )
        )
        command = [sys.executable, "-W", "ignore", "-m", "xattn", "placement", "probe"]
        command += ["whisper-tiny.en", "--data", str(data), "--metric", "wer", "--offline"]
        command += ["--plot", str(RESULTS / "placement_whisper.png"), "--json"]
        done = subprocess.run(
            [*command, "--threads", str(arguments.threads)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found = {"machine": record(arguments.threads), "probe": json.loads(done.stdout)}
    (RESULTS / "placement_whisper.json").write_text(json.dumps(found, indent=2) + "\n")
    text = page(found)
    (RESULTS / "placement_whisper.md").write_text(text)
    print(text)


def page(found: dict[str, Any]) -> str:
    probe = found["probe"]
    layers = len(probe["curve"][0]["layers"])
    lines = ["# Whisper tiny.en, with fewer layers that hear", ""]
    lines += [", ".join(f"{k} {v}" for k, v in found["machine"].items()), ""]
    lines += [
        f"{probe['examples']} recorded prompts; layers are left out one by one, each time the",
        "",
    ]
    lines[-2] += " one whose absence costs least."
    lines += ["| layers kept | word error rate | keys and values, a window |", "|---|---|---|"]
    for kept in probe["curve"]:
        mask = [layer in kept["layers"] for layer in range(layers)]
        held = readable_bytes(1500 * kept["bytes_per_position"])
        lines.append(f"| `{drawn(mask)}` | {kept['score']:.2f} % | {held} |")
    lines += ["", "| layer | error rate without it alone | entropy | size |", "|---|---|---|---|"]
    for one in probe["layers"]:
        lines.append(
            f"| {one['layer']} | {one['alone']:.2f} % | {one['entropy']:.0%} | {one['size']:.0%} |"
        )
    return "\n".join([*lines, "", "![](placement_whisper.png)", ""])


if __name__ == "__main__":
    main()
