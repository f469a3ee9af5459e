"""Taking turns: A B C, A B C, … so that what slows the machine for a while slows all of them."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple, Protocol

TURN_SECONDS = 0.3
"""Short calls are repeated until a turn has lasted about so long; its median counts."""
MOST_REPEATS = 30
SHORT_SECONDS = 0.1
"""A call below this is run once uncounted first: the engine before it has emptied the caches."""
SETTLED_SECONDS = 1.0
"""A call that takes longer is as long the second time."""
REST_SECONDS = 0.05
"""Between turns; longer than threads of libgomp spin after their work."""


class Turn(NamedTuple):
    """Whose turn it is, and at what."""

    engine: str
    measure: str


class Asks(Protocol):
    """As much of a worker as a turn needs."""

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        """One question, one answer."""

    def cpu_seconds(self) -> float:
        """Processor time that it has used so far."""


@dataclass(kw_only=True)
class Taken:
    """What came of one engine's turns at one measure."""

    seconds: list[float] = field(default_factory=list)
    """One per round: the median of its repeats."""
    repeats: int = 1
    outputs: list[Any] = field(default_factory=list)
    """The distinct outputs; more than one means that it does not answer the same each time."""


@dataclass(kw_only=True)
class Rounds:
    """What came of all turns, and how quiet those were whose turn it was not."""

    taken: dict[Turn, Taken]
    idle_seconds: float = 0.0
    """Processor time that workers used while another had its turn."""
    turn_seconds: float = 0.0
    """Time that turns took."""


def schedule(turns: Sequence[Turn], rounds: int) -> Iterator[tuple[int, Turn]]:
    """Every turn once in each round, always in the same order."""
    for number in range(rounds):
        for turn in turns:
            yield number, turn


def repeats_for(seconds: float) -> int:
    """How often a call that takes so long is repeated in a turn."""
    return max(1, min(MOST_REPEATS, math.ceil(TURN_SECONDS / max(seconds, 1e-6))))


def take_turns(
    workers: Mapping[str, Asks],
    turns: Sequence[Turn],
    rounds: int,
    *,
    rest: Callable[[float], None] = time.sleep,
) -> Rounds:
    """Run all turns in all rounds, after a first one that warms up and is not counted."""
    found = Rounds(taken={turn: _warm_up(workers[turn.engine], turn) for turn in turns})
    for _, turn in schedule(turns, rounds):
        rest(REST_SECONDS)
        one, others = found.taken[turn], [w for name, w in workers.items() if name != turn.engine]
        used, begun = sum(w.cpu_seconds() for w in others), time.perf_counter()
        answer = workers[turn.engine].ask(
            "turn",
            measure=turn.measure,
            repeats=one.repeats,
            discard=int(one.repeats * SHORT_SECONDS > TURN_SECONDS),
        )
        found.turn_seconds += time.perf_counter() - begun
        found.idle_seconds += sum(w.cpu_seconds() for w in others) - used
        one.seconds.append(median(answer["seconds"]))
        if answer["outputs"] not in one.outputs:
            one.outputs.append(answer["outputs"])
    return found


def _warm_up(worker: Asks, turn: Turn) -> Taken:
    """Run it once, or twice where it is short: what is allocated first takes longer."""
    first = worker.ask("turn", measure=turn.measure, repeats=1, discard=0)
    seconds = first["seconds"][0]
    if seconds < SETTLED_SECONDS:
        again = worker.ask("turn", measure=turn.measure, repeats=1, discard=0)
        seconds = again["seconds"][0]
    return Taken(repeats=repeats_for(seconds), outputs=[first["outputs"]])
