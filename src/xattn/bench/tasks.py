"""What an engine is asked to do, as it travels to a worker and back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from xattn.spec import Form

Precision = Literal["fp32", "int8"]
Kind = Literal["text", "speech", "prefixes", "requests", "language", "cross", "read"]
"""``text``: one source, one answer. ``speech``: the same from recordings. ``prefixes``: one source,
many beginnings of an answer. ``requests``: many sources, each with several. ``language``: a prompt
to go on from. ``cross``: the cross-attention of one step. ``read``: the machine's memory."""

Tokens = list[list[int]]
"""New tokens of each answer, without the end-of-sequence token."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One cell's work, the same for every engine."""

    kind: Kind
    sources: tuple[tuple[int, ...], ...] = ()
    recordings: tuple[str, ...] = ()
    """Files of samples (``.npy``, 16 kHz); beside each lies its log-mel, ``.mel.npy``."""
    prefixes: tuple[tuple[int, ...], ...] = ()
    """What each request's answer begins with."""
    reads: tuple[int, ...] = ()
    """The source that each request reads."""
    beams: int = 1
    new_tokens: int = 64
    setting: tuple[Any, ...] = ()
    """How an engine found that it runs this best; empty: it has yet to try."""
    positions: int = 0
    form: Form = "materialized"

    def requests(self) -> list[tuple[int, tuple[int, ...]]]:
        """The number of the source that each request reads, and what its answer begins with."""
        if not self.reads:
            return [(0, ())]
        return list(zip(self.reads, self.prefixes, strict=True))

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Task":
        """From what JSON made of it."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: _frozen(value) for name, value in given.items() if name in known})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class Call:
    """Something to be timed."""

    run: Callable[[], Tokens]
    before: Callable[[], object] = lambda: None
    """Done untimed before each run."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What an engine can do with a task, by measure, and what it says about it."""

    calls: Mapping[str, Call]
    notes: dict[str, Any] = field(default_factory=dict)


class NotRun(Exception):
    """This engine, or this tree, cannot run a cell; the message says why."""


def without_end(tokens: Sequence[int], eos: int) -> list[int]:
    """The tokens, and not the one that ends them."""
    listed = [int(token) for token in tokens]
    return listed[:-1] if listed and listed[-1] == eos else listed
