"""Several memories of a decoder-only model, none of which was made with the others in sight.

Each is keys and values that the model made of one text, alone or behind a prefix that all share, at
positions that begin where the prefix ends. A prompt that goes on from them reads them in one
softmax, wherever it takes them to stand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

from xattn.errors import UsageError, is_number, require
from xattn.memory import MemoryKey, Span

Positions = Literal["sequence", "shared"]
POSITIONS: tuple[Positions, ...] = ("sequence", "shared")


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How a prompt reads several memories of keys and values.

    ``positions="sequence"`` takes them to stand one after the other in the order given, as if they
    had been one text (the position re-encoding of block-attention, Ma et al. 2025, arXiv
    2409.15355); ``"shared"`` leaves them side by side where they were made, the prompt beginning
    after the longest. Scores of memories that were made behind a prefix are divided by
    ``temperature``, and their common log-sum-exp is multiplied by ``scale`` (adaptive parallel
    encoding, Yang et al. 2025, arXiv 2502.05431); below 1 they sharpen what is read of them, and
    give it less weight. With 1 for both, and one memory, this is what the model would have read had
    all been one prompt. ``recompute`` is the share of the positions behind the first such memory,
    those that the prompt reads most, that are put through the model again with all before them in
    sight (after CacheBlend, Yao et al. 2025, arXiv 2405.16444); it takes ``"sequence"``.
    """

    positions: Positions = "sequence"
    temperature: float = 1.0
    scale: float = 1.0
    recompute: float = 0.0

    def __post_init__(self) -> None:
        one_of = f"one of {', '.join(POSITIONS)}"
        require(self.positions in POSITIONS, "positions", one_of, self.positions)
        for name in ("temperature", "scale"):
            value = getattr(self, name)
            fits = is_number(value) and 0 < value <= 10
            require(fits, name, "a number above 0, at most 10", value)
        share = self.recompute
        require(is_number(share) and 0 <= share <= 1, "recompute", "from 0 to 1", share)
        fits = not share or self.positions == "sequence"
        require(fits, "recompute", "0 where positions are shared: nothing is before another", share)


class Named(Protocol):
    """A memory, or a source that will be one."""

    @property
    def key(self) -> MemoryKey:
        """The key of the memory."""
        ...

    @property
    def spans(self) -> Sequence[Span]:
        """One for each position."""
        ...

    @property
    def details(self) -> dict[str, Any]:
        """What is said of it, the prefix that it is behind among it."""
        ...


class Stand(NamedTuple):
    """Where a memory of keys and values was made."""

    name: str
    """What those that were made behind it know it by: its content, in whichever store it lies."""
    positions: int
    start: int
    """Position of its first."""
    behind: str | None
    """Name of the prefix, if any."""

    @classmethod
    def of(cls, item: Named) -> "Stand":
        """Where ``item`` was made, or will be."""
        name = replace(item.key, tenant="").digest
        details = item.details
        return cls(name, len(item.spans), details.get("start", 0), details.get("behind"))


class Place(NamedTuple):
    """Where a memory stands, for one that reads it."""

    turn: int
    """Positions between where its keys were made and where they are taken to be."""
    weighed: bool
    """It was made behind a prefix, and so is one of those that may be weighed."""


def layout(stands: Sequence[Stand], how: Parallel) -> tuple[list[Place], int]:
    """Where each stands, and the position that a prompt begins at.

    Raises :class:`UsageError` where one was made behind a memory that does not come before it.
    """
    places, end, seen = [], 0, set()
    for at, stand in enumerate(stands):
        if stand.behind is not None and stand.behind not in seen:
            raise UsageError(
                f"memory {at} of {len(stands)} was made behind another, which is not before it; "
                "give that prefix first."
            )
        seen.add(stand.name)
        turn = end - stand.start if how.positions == "sequence" else 0
        places.append(Place(turn, stand.behind is not None))
        end = max(end, stand.start + turn + stand.positions)
    return places, end
