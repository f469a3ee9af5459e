"""Every snippet of the README and the guides is run, in the order a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LONG = ("command-line.md", "ledger.md", "store.md", "library.md")
"""Pages whose commands take a minute each; what they show is tested command by command."""
SNIPPET = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)")


def snippets(page: Path, language: str) -> str:
    found = SNIPPET.findall(page.read_text(encoding="utf-8"))
    return "\n".join(code for kind, code in found if kind == language)


def with_snippets(language: str) -> list[Path]:
    return [page for page in PAGES if snippets(page, language)]


@pytest.fixture
def environment(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "XDG_CONFIG_HOME": str(tmp_path)} | {
        "XATTN_CACHE_DIR": str(tmp_path / "cache")
    }


@pytest.mark.parametrize("page", with_snippets("python"), ids=lambda page: page.name)
def test_python_snippets_run(page, environment):
    code = f"import os\nos.chdir({str(ROOT)!r})\n{snippets(page, 'python')}"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip(), "a guide shows something"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name in LONG))
        for page in with_snippets("sh")
    ],
)
def test_shell_snippets_run(page, environment):
    lines = snippets(page, "sh").splitlines()
    # The make targets are what runs this test.
    script = "\n".join(line for line in lines if not line.startswith(("make ", "pip ")))
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
