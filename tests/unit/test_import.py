"""`import xattn` is quick, and leaves to later what only some calls need."""

import json
import subprocess
import sys

LATER = (
    "transformers", "huggingface_hub", "tokenizers", "typer", "rich", "jinja2", "sentencepiece",
    "soundfile", "av", "soxr", "gguf", "matplotlib",
)  # fmt: skip

MEASURE = f"""
import json, sys, time
import torch
start = time.process_time()
import xattn
xattn.load, xattn.Model
seconds = time.process_time() - start
print(json.dumps([seconds, [name for name in {LATER!r} if name in sys.modules]]))
"""


def test_import_costs_little_beyond_torch():
    printed = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, check=True, timeout=120
    ).stdout
    seconds, imported = json.loads(printed)
    assert imported == []
    assert seconds < 0.3


def test_the_bare_import_does_not_need_torch():
    code = "import sys, xattn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
