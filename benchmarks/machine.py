"""What figures were measured on: the processor, the packages, the commit."""

import platform
import re
import subprocess
from datetime import date
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / f"{platform.machine()}-{date.today()}"
"""Where today's figures of this machine go."""


def record(threads: int, packages: tuple[str, ...]) -> dict[str, str]:
    """One line per fact."""
    return {
        "processor": processor(),
        "threads": str(threads),
        "date": str(date.today()),
        "commit": commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def processor() -> str:
    """Its name, where the system gives one."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return model.group(1) if model else platform.processor()


def commit() -> str:
    """The last commit that changed the sources, with a plus where they were changed since."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )

    last = git("log", "-1", "--format=%h", "--", "src").stdout.strip()
    changed = git("diff", "--quiet", "HEAD", "--", "src").returncode != 0
    return f"{last}{'+' if changed else ''}"
