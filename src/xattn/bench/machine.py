"""What figures were measured on: the processor, the packages, the commit."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path

from xattn.native.processor import processor

ROOT = Path(__file__).parents[3]
PACKAGES = ("torch", "ctranslate2", "transformers", "llama-cpp-python", "numpy")


def results(base: Path) -> Path:
    """Where today's figures of this machine go, under ``base``."""
    return base / f"{platform.machine()}-{date.today()}"


def record(
    threads: int, cores: Sequence[int] = (), packages: Sequence[str] = PACKAGES
) -> dict[str, str]:
    """One line per fact."""
    return {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "pinned to": ", ".join(map(str, cores)) or "no core",
        "threads": str(threads),
        "memory": memory(),
        "date": str(date.today()),
        "commit": commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def memory() -> str:
    """How much RAM there is."""
    if not hasattr(os, "sysconf"):
        return "unknown"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The last commit that changed the sources; where they were changed since, a digest of that."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )

    last = git("log", "-1", "--format=%h", "--", "src").stdout.strip()
    changed = git("diff", "HEAD", "--", "src").stdout
    new = git("ls-files", "--others", "--exclude-standard", "--", "src").stdout.splitlines()
    changed += "".join(name + (ROOT / name).read_text(errors="replace") for name in new)
    digest = hashlib.sha256(changed.encode()).hexdigest()[:8] if changed else ""
    return f"{last}+{digest}".removesuffix("+") if last else "unknown"
