"""The engine as its users see it: threads on one side, asyncio on the other."""

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch

from xattn.decoding.asking import Question
from xattn.decoding.prompts import Prompt
from xattn.engine.admission import Admission, Bounds
from xattn.engine.stats import EngineStats
from xattn.engine.ticket import TextReader, Ticket
from xattn.engine.worker import Worker
from xattn.errors import EngineClosedError, UsageError, is_number, is_whole, require
from xattn.generation import Generation
from xattn.inputs.text import Unit
from xattn.ledger.account import Account
from xattn.memory import Memory
from xattn.model import Model, Source
from xattn.models.parallel import Parallel
from xattn.native.process import available_bytes
from xattn.spec import FORMS, Form, is_absorbed

MOST_ROWS = 64
MOST_WAITING = 1024


class Engine:
    """Continuous batching: many requests in flight on one model.

    Requests join and leave between any two steps of the decoder. Those that name the same memory
    share it: it is encoded once and projected once. The tokens of a greedy request in float32 are
    those of :meth:`Model.generate <xattn.Model.generate>`.

    ``capacity_bytes`` bounds what requests in flight may take before they end, foretold from
    shapes: self-attention caches, memories with their projections, and room for a step or an
    encoding. Weights are not counted. None: four fifths of the memory that is left on the model's
    device when the engine is made, where the system says (Linux, CUDA). ``max_rows`` bounds the
    sequences in flight (beams and samples count each), ``max_queue`` the requests that wait.
    ``form`` is how memories are read.

    A thread of its own runs the model, which nobody may change meanwhile. Close the engine, or use
    it in a ``with`` or ``async with`` block: its end waits for all requests, or cancels them where
    the block was left by an error.
    """

    def __init__(
        self,
        model: Model,
        *,
        capacity_bytes: int | None = None,
        max_rows: int = MOST_ROWS,
        max_queue: int = MOST_WAITING,
        form: Form = "materialized",
    ) -> None:
        require(isinstance(model, Model), "model", "what xattn.load returned", model)
        require(form in FORMS, "form", f"one of {', '.join(FORMS)}", form)
        if is_absorbed(form):
            model.spec.decoder.require_absorbable()
        if capacity_bytes is None:
            capacity_bytes = _left_on(model.network.device)
        bounds = Bounds(capacity_bytes=capacity_bytes, max_rows=max_rows, max_queue=max_queue)
        self._worker = Worker(model, form, Admission(model.network, form, bounds))
        self._thread = threading.Thread(
            target=_work, args=(self._worker,), name="xattn-engine", daemon=True
        )
        self._worker.thread = self._thread
        self._thread.start()
        _running[self._worker] = self._thread
        # An engine that is forgotten leaves no thread behind.
        self._forgotten = weakref.finalize(self, self._worker.forget)
        self._forgotten.atexit = False  # it is waited for then

    # Requests

    def submit(
        self,
        memory: Memory | list[Memory] | Source | None = None,
        prompt: Prompt | None = None,
        *,
        language: str | None = None,
        target_language: str | None = None,
        task: str = "transcribe",
        parallel: Parallel | None = None,
        adapter: str | None = None,
        tenant: str = "",
        priority: int = 0,
        deadline_seconds: float | None = None,
        wait: bool = True,
        **settings: Any,
    ) -> Ticket:
        """Hand in a request; its ticket gives the answer, the text as it comes, or an error.

        ``memory``, ``prompt``, the languages, ``task``, ``parallel``, ``adapter`` and ``settings``
        are those of
        :meth:`Model.generate <xattn.Model.generate>`; prompt lookup is not for engines. A raw
        source is encoded between steps. Higher ``priority`` goes first; tenants of the same
        priority get equal shares. After ``deadline_seconds`` the request ends with a
        :class:`~xattn.DeadlineError`, wherever it is.

        Raises what :meth:`Model.generate <xattn.Model.generate>` does for arguments out of their
        bounds, :class:`~xattn.CapacityError` for a request that can never fit, or that would have
        to ``wait`` and must not, :class:`~xattn.QueueFullError` and
        :class:`~xattn.EngineClosedError`.
        """
        require(isinstance(tenant, str), "tenant", "text", tenant)
        require(is_whole(priority), "priority", "a whole number", priority)
        fits = deadline_seconds is None or (is_number(deadline_seconds) and deadline_seconds > 0)
        require(fits, "deadline_seconds", "above 0, or None", deadline_seconds)
        question = Question(
            prompt=prompt,
            language=language,
            target_language=target_language,
            task=task,
            parallel=parallel,
            adapter=adapter,
        )
        job = self._worker.desk.job(memory, question, settings)
        seconds = None if deadline_seconds is None else float(deadline_seconds)
        self._worker.submit(
            job, tenant=tenant, priority=int(priority), deadline_seconds=seconds, wait=wait
        )
        return job.ticket

    async def generate(
        self,
        memory: Memory | list[Memory] | Source | None = None,
        prompt: Prompt | None = None,
        **options: Any,
    ) -> Generation:
        """The answer to a request; to cancel the task is to cancel the request.

        Arguments and errors are those of :meth:`submit`.
        """
        ticket = await self._submitted(memory, prompt, options)
        with _Followed(ticket) as followed:
            while not ticket.done:
                await followed.news()
        return ticket.result()

    async def stream(
        self,
        memory: Memory | list[Memory] | Source | None = None,
        prompt: Prompt | None = None,
        *,
        unit: Unit = "words",
        **options: Any,
    ) -> AsyncIterator[str]:
        """The text as it is decoded; a reader that stops cancels the request.

        Arguments and errors are those of :meth:`submit`, without beams.
        """
        options = {"num_beams": 1, "num_return_sequences": 1} | options
        ticket = await self._submitted(memory, prompt, options)
        with _Followed(ticket) as followed:
            reader = TextReader(ticket, unit)
            while not reader.finished:
                if piece := reader.next():
                    yield piece
                elif not reader.finished:
                    await followed.news()

    async def _submitted(self, memory: Any, prompt: Any, options: dict[str, Any]) -> Ticket:
        """Off the event loop: tokenizers and readers of sources take their time."""
        handing = _HandingIn()
        try:
            return await asyncio.to_thread(
                handing.do, lambda: self.submit(memory, prompt, **options)
            )
        except asyncio.CancelledError:
            handing.abandon()
            raise

    def ledger(self) -> Account:
        """What is held now, by owner: memories, caches, room to work in, weights."""
        return self._worker.ledger()

    def stats(self) -> EngineStats:
        """Counts, and bytes held and foretold."""
        return self._worker.stats()

    # The end

    def close(self) -> None:
        """Take no more requests, answer all that were taken, and end."""
        self._require_other_thread()
        with self._worker.lock:
            self._worker.closed = self._worker.closed or EngineClosedError("it was closed.")
            self._worker.news.notify_all()
        self._join()

    def abort(self) -> None:
        """Take no more requests, cancel all that were taken, and end."""
        self._require_other_thread()
        self._worker.abort()
        self._join()

    def _join(self) -> None:
        self._thread.join()
        self._forgotten.detach()
        _running.pop(self._worker, None)

    def _require_other_thread(self) -> None:
        if self._worker.runs_here():
            raise UsageError("an engine cannot be closed by a function that it calls itself.")

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    async def __aenter__(self) -> "Engine":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await asyncio.to_thread(self.__exit__, kind, error, trace)
        except asyncio.CancelledError:  # nobody waits for the answers any more
            self._worker.abort()
            raise


class _Followed:
    """A ticket whose news reach an event loop; cancelled where nobody follows it any more."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket, self._event = ticket, asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> "_Followed":
        self._unlisten = self._ticket.listen(self._tell)
        return self

    def __exit__(self, *_: object) -> None:
        self._unlisten()
        self._ticket.cancel()

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the loop was closed, and nobody follows any more
            self._loop.call_soon_threadsafe(self._event.set)

    async def news(self) -> None:
        await self._event.wait()
        self._event.clear()


class _HandingIn:
    """A request on its way into an engine, on another thread; abandoned, it is cancelled there."""

    def __init__(self) -> None:
        self._lock, self._abandoned = threading.Lock(), False
        self._ticket: Ticket | None = None

    def do(self, submit: Callable[[], Ticket]) -> Ticket:
        ticket = submit()
        with self._lock:
            self._ticket = ticket
            if self._abandoned:
                ticket.cancel()
        return ticket

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True
            if self._ticket is not None:
                self._ticket.cancel()


def _left_on(device: torch.device) -> int | None:
    """What an engine may take of what nobody has yet; None where the system does not say."""
    left = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    left = available_bytes() if device.type == "cpu" else left
    return None if left is None else max(1, left * 4 // 5)


def _work(worker: Worker) -> None:
    """The engine's thread: turns, until it is closed and nothing is left."""
    try:
        while True:
            worker.wait()
            if worker.aborted:
                worker.abort_all()
            if worker.idle:
                return
            worker.turn()
    except BaseException as error:  # noqa: BLE001  (every caller is told, and none waits for ever)
        worker.fail_all(error)
    finally:
        _running.pop(worker, None)


_running: dict[Worker, threading.Thread] = {}
"""Engines of this process that were not closed, and the threads to wait for when Python ends."""


@atexit.register
def _abort_all() -> None:
    """A thread in the middle of a step when Python ends would take the process down."""
    for worker, thread in list(_running.items()):
        worker.abort()
        thread.join()


def _orphan_all() -> None:
    """A forked process has the engines of its parent, and none of their threads."""
    for worker in list(_running):
        worker.orphan()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_orphan_all)
