"""What an engine does, turn by turn: it lets jobs go, lets jobs in, reads prompts, and steps."""

import threading
import time
import traceback
from collections.abc import Callable

import torch

from xattn.engine.admission import Admission, Bytes
from xattn.engine.flight import Flight, Landing
from xattn.engine.job import Desk, Job, steps_for
from xattn.engine.memories import Memories, Shared
from xattn.engine.scheduler import Scheduler
from xattn.engine.stats import EngineStats
from xattn.engine.ticket import cancelled
from xattn.errors import (
    CapacityError,
    DeadlineError,
    EngineClosedError,
    EngineError,
    QueueFullError,
    RequestCancelledError,
)
from xattn.ledger.account import Account, Row
from xattn.ledger.workspace import CHUNK, ENCODED_AT_ONCE, SHORT_PROMPT
from xattn.model import Model
from xattn.spec import Form


class Worker:
    """The engine without threads: whoever calls :meth:`turn` runs it."""

    def __init__(self, model: Model, form: Form, admission: Admission) -> None:
        self._model, self._form, self._admission = model, form, admission
        self.lock = threading.RLock()
        """Guards the queue, the memories' counts and the sums below."""
        self.news = threading.Condition(self.lock)
        """Told when there may be something to do."""
        self._memories = Memories(model, form)
        self.desk = Desk(model, self._memories)
        self.scheduler: Scheduler[Job] = Scheduler()
        self._running: list[Job] = []
        self._unanswered: dict[Job, None] = {}
        """All that were taken, in their order, until their callers are told."""
        self._flight = Flight(model.network, form)
        self._arriving: list[Job] = []
        """Jobs that have begun, and whose memories are not all there."""
        self._prompts: list[Job] = []
        """Jobs whose prompts are read apart from the others, one after the other."""
        self._apart = Flight(model.network, form)
        self._counts = dict.fromkeys(COUNTS, 0)
        self._look = True
        """Something has come or gone, so that a job of the queue may begin."""
        self.aborted = False
        """Everything is to be cancelled."""
        self.closed: Exception | None = None
        """Why no more requests are taken."""
        self.thread: threading.Thread | None = None
        """The one that takes the turns."""

    # Callers' threads

    def submit(
        self, job: Job, *, tenant: str, priority: int, deadline_seconds: float | None, wait: bool
    ) -> None:
        """Put a job into the queue, or refuse it; one that may not ``wait``, if it had to."""
        job.tenant, job.priority, job.deadline_seconds = tenant, priority, deadline_seconds
        with self.lock:
            if self.closed is not None:
                why = self.closed
                raise EngineClosedError(f"the engine takes no requests: {why}") from why
            try:
                brought, job.reads = job.reads, self._memories.found(job.reads)
                self._admission.require_possible(job)
                if not wait:
                    self._admission.require_beside(self._unanswered, job)
                most = self._admission.bounds.max_queue
                if len(self.scheduler) >= most:
                    raise QueueFullError(
                        f"{len(self.scheduler)} requests wait, and max_queue is {most}; "
                        "wait for one to end, or give the engine a longer queue."
                    )
            except (CapacityError, QueueFullError):
                self._counts["refused"] += 1
                raise
            job.reads = self._memories.want(brought)
            self._unanswered[job] = None
            job.ticket.is_answered_here = self.runs_here
            self.scheduler.push(job, tenant=tenant, priority=priority, cost=job.cost)
            self._counts["submitted"] += 1
            self._look = True
            self.news.notify_all()

    def stats(self) -> EngineStats:
        """What was done, and what is held."""
        with self.lock:
            return EngineStats(
                running=len(self._running),
                queued=len(self.scheduler),
                rows=sum(job.rows for job in self._running),
                held_bytes=self.held.total,
                predicted_bytes=self._admission.predicted(self._running).total,
                capacity_bytes=self._admission.bounds.capacity_bytes,
                steps=self._flight.steps + self._apart.steps,
                tokens=self._flight.tokens,
                **self._counts,
            )

    def ledger(self) -> Account:
        """What is held, by owner; the model's weights and pins with it."""
        with self.lock:
            held = self.held
            cache = Row(input="answer", what="self-attention cache", bytes=held.cache)
            work = Row(input="model", what="workspace", bytes=held.work)
            rows, places = (*self._memories.rows(), cache, work), self._memories.places()
        model = self._model.ledger_beside(places)
        return Account(model=model.model, rows=(*rows, *model.rows))

    @property
    def held(self) -> Bytes:
        """What is held now; room for steps as foretold, since it comes and goes."""
        work = self._admission.predicted(self._running).work  # a prompt read apart is in it
        return Bytes(self._flight.cache_bytes, self._memories.held_bytes, work)

    @property
    def idle(self) -> bool:
        """Nothing runs or waits."""
        return not self._running and not len(self.scheduler)

    def runs_here(self) -> bool:
        """Whether this is the thread that takes the turns."""
        return self.thread is threading.current_thread()

    # The engine's thread

    @torch.inference_mode()
    def turn(self) -> None:
        """One step of all that is in flight, and what comes before it."""
        self._let_go()
        self._let_in()
        if self._arriving:
            self._make_memories()
            self._let_go()  # it may have taken long
            self._board(self._arrived())
        self._read_prompts()
        for seat in self._flight.seats:
            seat.job.used += seat.rows
        for landing in self._flight.step():
            self._end(landing.job, landing)

    def _let_go(self) -> None:
        """End what was cancelled, or whose time has run out."""
        now = time.monotonic()
        with self.lock:
            gone = self.scheduler.remove(lambda job: _is_over(job, now))
            gone += [job for job in self._running if _is_over(job, now)]
        if not gone:
            return
        for flight in (self._flight, self._apart):
            if any(seat.job in gone for seat in flight.seats):
                flight.drop(gone)
        self._prompts = [job for job in self._prompts if job not in gone]
        self._arriving = [job for job in self._arriving if job not in gone]
        for job in gone:
            self._end(job, Landing(job, error=_ending(job)))

    def _let_in(self) -> None:
        """Begin what fits, as long as there is not much to encode before it."""
        while self._look and self._to_encode() < ENCODED_AT_ONCE:
            with self.lock:
                job = self.scheduler.next(self._fits)
                if job is None:
                    self._look = False
                    break
                job.begun = True
                self._running.append(job)
                self._memories.begin(job.reads)
                rows = sum(one.rows for one in self._running)
                self._flight.limit(rows, max(one.tokens for one in self._running))
            self._arriving.append(job)
        if not self._running:
            self._refuse_what_never_fits()

    def _to_encode(self) -> int:
        """Positions that those who have begun wait for."""
        awaited = {shared for job in self._arriving for shared in job.reads if not shared.ready}
        return sum(shared.positions for shared in awaited)

    def _refuse_what_never_fits(self) -> None:
        """What does not fit though nothing runs never will, whatever was foretold at first."""
        with self.lock:
            refused = {job for job in self.scheduler if not self._fits(job)}
            self.scheduler.remove(refused.__contains__)
        for job in refused:
            error = CapacityError("the request does not fit any more, though nothing else runs.")
            self._end(job, Landing(job, error=error))

    def _fits(self, job: Job) -> bool:
        if not self._admission.fits(self._running, job):
            return False
        capacity = self._admission.bounds.capacity_bytes
        if capacity is not None:
            needed = self._admission.predicted([*self._running, job]).total
            if needed + self._memories.unread_bytes(job.reads) > capacity:
                self._memories.drop_unread(job.reads)
        return True

    def _make_memories(self) -> None:
        """Encode and project some of what is awaited: one source, or several short ones."""
        piece: dict[Shared, Job] = {}
        for job in self._arriving:
            for shared in job.reads:
                if not shared.ready and shared not in piece:
                    total = sum(one.positions for one in piece) + shared.positions
                    if piece and total > ENCODED_AT_ONCE:
                        break
                    piece[shared] = job
        for shared, job in piece.items():
            if not shared.is_given:
                job.used += steps_for(shared.positions)
        failures = self._made(list(piece))
        for job in [job for job in self._arriving if not failures.keys().isdisjoint(job.reads)]:
            error = next(failures[shared] for shared in job.reads if shared in failures)
            self._fail_arriving(job, error)

    def _made(self, piece: list[Shared]) -> dict[Shared, Exception]:
        """Make these; what went wrong, and with which."""
        try:
            self._memories.make(piece)
        except Exception as error:  # noqa: BLE001  (it is raised to the callers)
            if len(piece) == 1:
                return {piece[0]: error}
            # Whose it was shows when each is alone.
            return {entry: failure for one in piece for entry, failure in self._made([one]).items()}
        return {}

    def _arrived(self) -> list[Job]:
        """Those whose memories are all there, and whose prompts are known."""
        ready = [job for job in self._arriving if all(shared.ready for shared in job.reads)]
        for job in [job for job in ready if job.detects]:
            try:
                self.desk.hear(job)
            except Exception as error:  # noqa: BLE001  (it is raised to the caller)
                ready.remove(job)
                self._fail_arriving(job, error)
        self._arriving = [job for job in self._arriving if job not in ready]
        return ready

    def _fail_arriving(self, job: Job, error: Exception) -> None:
        self._arriving.remove(job)
        self._end(job, Landing(job, error=error))

    def _board(self, jobs: list[Job]) -> None:
        """Short prompts are read along with the steps of others, long ones apart from them."""
        together = [job for job in jobs if len(job.prompt) <= SHORT_PROMPT]
        if together:
            self._flight.board(together)
        self._prompts += [job for job in jobs if len(job.prompt) > SHORT_PROMPT]

    def _read_prompts(self) -> None:
        """Some tokens of long prompts, one prompt after the other: whose it is to go first."""
        read = 0
        while read < CHUNK and (self._apart.seats or self._prompts):
            if not self._apart.seats:
                job = min(self._prompts, key=self._rank)
                self._prompts.remove(job)
                self._apart.limit(1, len(job.prompt))
                self._apart.board([job])
            read += self._read_on()

    def _rank(self, job: Job) -> tuple[int, float]:
        return -job.priority, self.scheduler.charged(job.tenant, job.priority)

    def _read_on(self) -> int:
        """Some tokens of the prompt that is being read, how many; its last is left to the step of
        all, which it joins."""
        [seat] = self._apart.seats
        before, last = len(seat.tokens), seat.tokens.pop()
        self._apart.feed()
        seat.tokens.append(last)
        left = len(seat.tokens)
        seat.job.used += steps_for(before - left)
        if left == 1:
            self._flight.absorb(self._apart)
        return before - left

    def _end(self, job: Job, landing: Landing) -> None:
        """The job is over: nothing of it is kept, and its caller is told."""
        error, answer = landing.error, None
        if landing.found is not None:
            try:
                answer = self._model.answer(job.plan.requests[0], landing.found)
            except Exception as failure:  # noqa: BLE001  (it is raised to the caller)
                error = failure
        if error is not None:
            let_go_of_frames(error)
        with self.lock:
            self._memories.end(job.reads, begun=job.begun)
            if job.begun:
                self._running.remove(job)
                self.scheduler.end(job.tenant, job.priority, cost=job.cost, used=job.used)
            self._look = True
            if answer is not None:
                error = job.ticket.resolve(answer)
            else:
                assert error is not None
                job.ticket.fail(error)
            self._counts[_count_of(error)] += 1
            self._unanswered.pop(job, None)

    def fail_all(self, error: BaseException) -> None:
        """The engine is over: so is everything in it, and nobody is left to wait."""
        let_go_of_frames(error)
        if not isinstance(error, Exception):  # as an exit of the interpreter is nobody's answer
            failed = EngineError(f"the engine failed: {error!r}")
            failed.__cause__ = error
            error = failed
        self._end_all(error, lambda _: error)

    def abort_all(self) -> None:
        """Everything is called off."""
        closed = EngineClosedError("it was aborted.")
        self._end_all(closed, lambda job: _ending(job, "the engine was aborted"))

    def _end_all(self, closed: Exception, ending: Callable[[Job], BaseException]) -> None:
        with self.lock:
            self.closed = self.closed or closed
            self.scheduler.remove(lambda _: True)
            gone = list(self._unanswered)
        self._flight.clear()
        self._apart.clear()
        self._prompts, self._arriving = [], []
        for job in gone:
            try:
                self._end(job, Landing(job, error=ending(job)))
            except Exception as error:  # noqa: BLE001  (what is half done must not hide the others)
                if not job.ticket.done:
                    job.ticket.fail(error)
        with self.lock:
            self._running.clear()
            self._unanswered.clear()
            self._memories.clear()

    def wait(self) -> None:
        """Until there is something to do, or the engine is closed."""
        with self.lock:
            while self.idle and self.closed is None:
                self.news.wait(LOOK_UP_SECONDS)

    def abort(self) -> None:
        """Let everything be cancelled, by the thread that takes the turns."""
        with self.lock:
            self.forget()

    def forget(self) -> None:
        """The same from within a garbage collection, where nobody may wait, not even for a lock."""
        self.closed = self.closed or EngineClosedError("it was aborted.")
        self.aborted = True
        if self.lock.acquire(blocking=False):  # else its thread sees it when it looks up
            self.news.notify_all()
            self.lock.release()

    def orphan(self) -> None:
        """In a forked process: nothing is answered here, and locks may be held for ever."""
        self.closed = EngineClosedError("it runs in the process that this one was forked from.")
        self.lock = threading.RLock()
        self.news = threading.Condition(self.lock)
        for job in self._unanswered:
            job.ticket.orphan(self.closed)


LOOK_UP_SECONDS = 5.0
"""After so long an idle engine looks whether it was forgotten without being told."""
COUNTS = ("submitted", "finished", "cancelled", "expired", "failed", "refused")


def _count_of(error: BaseException | None) -> str:
    if error is None:
        return "finished"
    if isinstance(error, RequestCancelledError):
        return "cancelled"
    return "expired" if isinstance(error, DeadlineError) else "failed"


def _is_over(job: Job, now: float) -> bool:
    """Whether a job ends before it is done."""
    return job.ticket.is_cancelled or now >= job.deadline


def _ending(job: Job, why: str | None = None) -> EngineError:
    """What such a job ends with; ``why``, where that is not its own doing."""
    ticket = job.ticket
    tokens = job.course.partial() if job.begun and not job.streams else ticket.tokens
    if why is not None:
        return cancelled(tokens, why)
    if ticket.is_cancelled:
        return cancelled(tokens)
    where = "while it was decoded" if job.begun else "while it waited"
    return DeadlineError(
        f"the request's deadline_seconds ({job.deadline_seconds:g}) ran out {where}, "
        f"after {len(tokens)} new tokens.",
        tokens,
    )


def let_go_of_frames(error: BaseException) -> None:
    """Who keeps an error keeps no caches, projections or logits of those who raised it."""
    raised, seen = [error], set[int]()
    while raised:
        one = raised.pop()
        if id(one) in seen:  # errors may be each other's cause, and their own
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        raised += [other for other in (one.__cause__, one.__context__) if other is not None]
