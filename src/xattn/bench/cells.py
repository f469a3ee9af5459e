"""One figure of the comparison: a model, a precision, a task, and who runs it."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from xattn.bench.equality import Rule
from xattn.bench.tasks import Precision, Task

PEERS = ("xattn", "ctranslate2", "transformers")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured once."""

    workload: str
    axes: dict[str, Any]
    """What tells it apart within its workload; joined, its name."""
    model: str
    task: Task
    precision: Precision = "fp32"
    engines: tuple[str, ...] = PEERS
    rule: Rule = "same tokens"
    loose: tuple[str, ...] = ()
    """Engines of another precision than the rest: compared, and not held to the rule."""
    memory: str = ""
    """The measure whose peak memory is taken, in a fresh process each; empty: none."""

    @property
    def name(self) -> str:
        """``W2/t5-small/512/beam4/fp32``."""
        return "/".join([self.workload, *map(str, self.axes.values())])

    def matches(self, pattern: str) -> bool:
        """Whether ``pattern`` is its workload, its name, or a glob of it."""
        return self.workload == pattern or fnmatchcase(self.name, pattern)
