"""Watching a network decode: the states that are made, and how long each step takes."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from xattn.models.clock import Clock, Part
from xattn.models.network import Network
from xattn.models.state import DecodeState


@dataclass
class Watched:
    """What was seen while a network was watched."""

    states: list[DecodeState] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    """Of every pass of the decoder, the prompt's first."""
    parts: list[dict[Part, float]] = field(default_factory=list)
    """Of every pass, the seconds of its parts."""

    @property
    def cache_bytes(self) -> int:
        """Of the largest self-attention cache."""
        return max((state.size_bytes for state in self.states), default=0)

    @property
    def cross_bytes(self) -> int:
        """Of the projections that the same state reads."""
        return max((state.cross_bytes for state in self.states), default=0)


Around = Callable[[str], AbstractContextManager[None]]
"""What a phase of this name runs within."""


def alone(name: str) -> AbstractContextManager[None]:
    """Within nothing."""
    return nullcontext()


@contextmanager
def watched(network: Network, around: Around = alone) -> Iterator[Watched]:
    """Look at what ``network`` does until the end of the block. It is slowed by microseconds.

    Each pass runs within ``around("prefill")`` or, after the first, ``around("step")``.
    """
    seen, clock = Watched(), Clock()
    start, step = network.start, network.step

    def started(*args: Any, **named: Any) -> DecodeState:
        state = start(*args, **named)
        seen.states.append(state)
        return state

    def stepped(*args: Any, **named: Any) -> Any:
        before, begun = clock.seconds, time.perf_counter()
        with around("step" if seen.step_seconds else "prefill"):
            logits = step(*args, **named)
        seen.step_seconds.append(time.perf_counter() - begun)
        after = clock.seconds
        seen.parts.append({part: after[part] - before[part] for part in after})
        return logits

    # On the instance, so that whoever decodes calls these; its class is untouched.
    vars(network).update(start=started, step=stepped)
    network.decoder.clock = clock
    try:
        yield seen
    finally:
        network.decoder.clock = None
        for name in ("start", "step"):
            del vars(network)[name]
