"""The rows that are decoded together: one state, one step for all, and a course for each request.

Axes: R rows, T tokens, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xattn.decoding.constraints import FEW_ALLOWED
from xattn.decoding.course import Move
from xattn.decoding.request import Hypothesis
from xattn.engine.job import Job
from xattn.ledger.workspace import CHUNK, FEW_TOKENS
from xattn.models.network import Network
from xattn.models.state import DecodeState
from xattn.spec import Form


@dataclass(eq=False)
class Seat:
    """A job in flight, and the tokens that its rows are fed next."""

    job: Job
    rows: int
    tokens: list[int]
    """One for each row; of a job whose prompt is being read, the rest of the prompt."""
    reading: bool = True
    """Its prompt is being read, by one row."""
    fault: BaseException | None = None
    """What its caller's own function raised; the job ends with it."""


@dataclass(frozen=True)
class Landing:
    """A job that is over, and what was found or went wrong."""

    job: Job
    found: list[Hypothesis] | None = None
    error: BaseException | None = None


class Flight:
    """Jobs whose rows share one decode state."""

    def __init__(self, network: Network, form: Form) -> None:
        self._network, self._form = network, form
        self.seats: list[Seat] = []
        self.state: DecodeState | None = None
        self.steps = 0
        """Steps that were run."""
        self.tokens = 0
        """Tokens that courses were asked to choose."""
        self._most = 0

    @property
    def rows(self) -> int:
        """Rows in flight."""
        return sum(seat.rows for seat in self.seats)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the self-attention cache."""
        state = self.state  # another thread may let it go meanwhile
        return 0 if state is None else state.size_bytes

    def limit(self, rows: int, tokens: int) -> None:
        """Let the cache hold no more than so many rows of so many tokens, now and later."""
        self._most = tokens
        if self.state is None:
            return
        cache = self.state.cache
        cache.most = tokens
        if cache.physical_rows > rows or cache.capacity > tokens:
            cache.fit(tokens)

    def board(self, jobs: Sequence[Job]) -> None:
        """Add jobs whose prompts were not read yet, a row each."""
        attended = [[shared.projection for shared in job.reads] for job in jobs]
        state = self._network.start(
            attended,
            form=self._form,
            parallel=[job.parallel for job in jobs],
            adapters=[job.adapter for job in jobs],
        )
        self._append(state, [Seat(job, 1, list(job.prompt)) for job in jobs])

    def absorb(self, other: "Flight") -> None:
        """Take over all rows of another flight, which is empty then."""
        assert other.state is not None
        self._append(other.state, other.seats)
        other.state, other.seats = None, []

    def _append(self, state: DecodeState, seats: list[Seat]) -> None:
        if self.state is None:
            self.state = state
            state.cache.most = self._most
        else:
            self.state.join(state)
        self.seats = self.seats + seats

    def clear(self) -> None:
        """Let everything go."""
        self.seats, self.state = [], None

    def drop(self, jobs: Iterable[Job]) -> None:
        """Let jobs go in the middle of it."""
        going = set(map(id, jobs))
        self._keep([seat for seat in self.seats if id(seat.job) not in going])

    def _keep(self, seats: list[Seat], moves: dict[int, Move] | None = None) -> None:
        """Only these go on, each as its course said."""
        first, at = {}, 0
        for seat in self.seats:
            first[id(seat)] = at
            at += seat.rows
        rows: list[int] = []
        for seat in seats:
            move = None if moves is None else moves.get(id(seat))
            within = range(seat.rows) if move is None else move.rows
            rows += [first[id(seat)] + row for row in within]
            if move is not None:
                seat.rows, seat.tokens = len(move.rows), move.tokens_R.tolist()
        self.seats = seats
        if not seats:
            self.state = None
        elif self.state is not None:
            self.state.reorder(rows)
            if 2 * len(rows) <= self.state.cache.physical_rows > HALF_EMPTY:
                self.state.cache.fit(self._most)

    def feed(self) -> Tensor | None:
        """One step for all rows: logits ``[R, V]`` after what each row was fed; None without rows.

        What a row is fed is taken from its seat's tokens.
        """
        if self.state is None:
            return None
        T, only = self._tokens_at_once(), self._allowed()
        fed = [tokens for seat in self.seats for tokens in self._take(seat, T)]
        tokens_RT = torch.from_numpy(np.array(fed, dtype=np.int64)).to(self._network.device)
        self.steps += 1
        return self._network.step(tokens_RT, self.state, only=only)

    def _allowed(self) -> list[int] | None:
        """The only tokens that any course will read the logits of; None where they are not few.

        The head's rows of them are copied, which is worth it, and has room, for few.
        """
        found: set[int] = set()
        for seat in self.seats:
            allowed = _allowed_of(seat)
            if allowed is None:
                return None
            found.update(allowed)
            if len(found) * FEW_ALLOWED > self._network.spec.decoder.vocab_size:
                return None
        return sorted(found)

    def _tokens_at_once(self) -> int:
        """As many as every row can be fed: one, where a row goes on from what was just chosen."""
        shortest = min(len(seat.tokens) if seat.reading else 1 for seat in self.seats)
        return min(shortest, max(1, FEW_TOKENS // self.rows) if self.rows > 1 else CHUNK)

    @staticmethod
    def _take(seat: Seat, count: int) -> list[list[int]]:
        if not seat.reading:
            return [[token] for token in seat.tokens]
        taken, seat.tokens = seat.tokens[:count], seat.tokens[count:]
        return [taken]

    def step(self) -> list[Landing]:
        """Feed all rows, and let each course choose; the jobs that are over after it."""
        logits_RV = self.feed()
        if logits_RV is None:
            return []
        landed, staying, moves, at = [], [], {}, 0
        for seat in self.seats:
            logits, at = logits_RV[at : at + seat.rows], at + seat.rows
            if seat.reading and seat.tokens:
                staying.append(seat)  # the rest of its prompt comes next
                continue
            seat.reading = False
            self.tokens += seat.rows
            move, landing = _chosen(seat, logits)
            if move is not None:
                moves[id(seat)] = move
                staying.append(seat)
            elif landing is not None:
                landed.append(landing)
        self._keep(staying, moves)
        return landed


HALF_EMPTY = 8
"""Physical rows below which spare ones are not given back one by one."""


def _allowed_of(seat: Seat) -> Sequence[int] | None:
    try:
        return seat.job.course.allowed()
    except BaseException as error:  # noqa: BLE001  (it ends this job, once the others are fed)
        seat.fault = error
        return None


def _chosen(seat: Seat, logits_RV: Tensor) -> tuple[Move | None, Landing | None]:
    """What the job's course says; what goes wrong in it is the job's alone."""
    job = seat.job
    if seat.fault is not None:
        return None, Landing(job, error=seat.fault)
    try:
        move = job.course.advance(logits_RV)
        if job.streams:
            job.ticket.push(job.course.partial())
        if move is not None:
            return move, None
        return None, Landing(job, found=job.course.hypotheses()[0])
    except BaseException as error:  # noqa: BLE001  (it ends this job, and is raised to its caller)
        return None, Landing(job, error=error)
