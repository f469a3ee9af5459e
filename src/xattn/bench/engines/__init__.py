"""The engines that are compared; each is imported only in the process that runs it."""

from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from xattn.bench.making import ModelFiles
from xattn.bench.tasks import Precision, Ready, Task, Tokens
from xattn.errors import require

MODULES = {
    "xattn": "xattn.bench.engines.ours",
    "ctranslate2": "xattn.bench.engines.ctranslate2",
    "transformers": "xattn.bench.engines.transformers",
    "llama.cpp": "xattn.bench.engines.llama_cpp",
    "machine": "xattn.bench.engines.reading",
}
"""Engine -> the module that runs it. ``machine`` reads memory and does nothing with it."""


class Engine(Protocol):
    """One engine, in one process."""

    def facts(self) -> dict[str, Any]:
        """Versions and threads, for the report."""

    def load(self, files: ModelFiles, precision: Precision) -> None:
        """Take these weights, and let go of earlier ones; :class:`NotRun` if it cannot."""

    def set_up(self, task: Task) -> Ready:
        """What can be timed of ``task``; :class:`NotRun` if nothing can."""


@runtime_checkable
class Scorer(Protocol):
    """An engine that says how likely answers are, which may be another's."""

    def likelihood(self, task: Task, answers: Tokens) -> list[float]:
        """Of each answer: mean log-probability a token. :class:`NotRun` if it cannot say."""


def engine_of(name: str, threads: int) -> Engine:
    """Import and start the engine ``name``, to compute with ``threads`` threads."""
    require(name in MODULES, "engine", f"one of {', '.join(MODULES)}", name)
    engine: Engine = import_module(MODULES[name]).Engine(threads)
    return engine
