"""`import xattn` leaves to later what only some calls need."""

import json
import subprocess
import sys

LATER = (
    *("transformers", "huggingface_hub", "tokenizers", "typer", "rich", "jinja2"),
    *("sentencepiece", "soundfile", "av", "soxr", "gguf", "matplotlib", "torch._dynamo"),
    *("markdown_it", "selectolax", "pypdf", "docx", "pyarrow", "lancedb"),
)


def imported_by(code: str) -> list[str]:
    """Which of those the code leaves in ``sys.modules``."""
    look = f"print(json.dumps([m for m in {LATER!r} if m in sys.modules]))"
    look = f"import json, sys\n{code}\n{look}"
    ran = subprocess.run([sys.executable, "-c", look], capture_output=True, check=True, timeout=120)
    return json.loads(ran.stdout)


def test_the_public_surface_brings_in_nothing_optional():
    assert imported_by("import xattn; [getattr(xattn, name) for name in xattn.__all__]") == []


def test_loading_and_decoding_do_without_transformers():
    code = (
        "import xattn\n"
        "model = xattn.load('g2p-en', offline=True)\n"
        "assert model.generate('memory').text"
    )
    assert not {"transformers", "torch._dynamo"} & set(imported_by(code))


def test_the_bare_import_does_not_need_torch():
    code = "import sys, xattn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
