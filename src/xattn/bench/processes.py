"""Workers from the outside: start them, ask them, and notice when they die."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xattn.bench.tasks import NotRun
from xattn.errors import XattnError

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
)
"""What decides how many threads an engine's libraries use, and how those wait."""


class WorkerFailed(XattnError):
    """A worker answered with an error, died, or did not answer in time."""

    def __init__(self, engine: str, message: str) -> None:
        super().__init__(f"{engine}: {message}")
        self.engine = engine


def environment(threads: int) -> dict[str, str]:
    """What every worker is started with: the same number of threads under every library's name.

    How threads wait is left as each engine ships: while it computes, spinning is part of its speed.
    libgomp, which torch and CTranslate2 both bring, gives it up after milliseconds, and the rest
    between turns is longer; what the idle workers used is measured and reported.
    """
    kept = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    counts = dict.fromkeys(THREAD_VARIABLES[:3], str(threads))
    return kept | counts | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def command(engine: str, threads: int, cores: Sequence[int]) -> list[str]:
    """How a worker is started."""
    pinned = ["--cores", ",".join(map(str, cores))] if cores else []
    module = ["-W", "ignore", "-m", "xattn.bench.worker"]
    return [sys.executable, *module, engine, "--threads", str(threads), *pinned]


class Process:
    """One running worker. Use it as a context manager."""

    def __init__(self, engine: str, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        self.engine = engine
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            list(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=dict(variables),
            bufsize=0,
        )
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, do: str, *, timeout_seconds: float = 900.0, **given: Any) -> dict[str, Any]:
        """One line out, one line in.

        Raises :class:`NotRun` where the engine says so, and :class:`WorkerFailed` for an error, a
        worker that is gone, or one that takes longer than ``timeout_seconds``.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps({"do": do, **given}) + "\n").encode())
        except BrokenPipeError as error:
            raise WorkerFailed(self.engine, self._died(do)) from error
        answer = json.loads(self._line(do, timeout_seconds))
        if "not_run" in answer:
            raise NotRun(answer["not_run"])
        if "ok" not in answer:
            said = answer.get("error", f"no answer but {answer!r}")
            trace = answer.get("trace", "")
            raise WorkerFailed(self.engine, f"{do!r} failed: {said}\n{trace}")
        found: dict[str, Any] = answer["ok"]
        return found

    def _line(self, do: str, timeout_seconds: float) -> bytes:
        assert self._process.stdout is not None
        until = time.monotonic() + timeout_seconds
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                self._process.kill()
                raise WorkerFailed(
                    self.engine, f"{do!r} took more than {timeout_seconds:.0f} s; it was ended."
                )
            piece = os.read(self._process.stdout.fileno(), 2**20)
            if not piece:
                raise WorkerFailed(self.engine, self._died(do))
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _died(self, do: str) -> str:
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read()[-2000:]
        return f"its process ended (exit code {code}) when asked to {do!r}.\n{said}"

    def cpu_seconds(self) -> float:
        """Processor time that it has used; NaN where the system does not say."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("nan")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it; what it still does is of no use."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()
