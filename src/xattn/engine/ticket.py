"""One request as its caller sees it: an answer to wait for, a text to follow, a way to call off."""

import logging
import threading
from collections.abc import Callable, Iterator

from xattn.decoding.settings import Settings
from xattn.decoding.stopping import StopFilter
from xattn.errors import (
    EngineClosedError,
    EngineError,
    RequestCancelledError,
    UsageError,
    is_number,
    require,
)
from xattn.generation import Generation
from xattn.inputs.text import TextStream, Tokenizer, Unit

LOG = logging.getLogger(__name__)
NO_BEAMS = "1 to stream: with beams or several samples, no token is certain before the end"


class Ticket:
    """A request that was submitted. Safe to use from any thread.

    Made by :meth:`Engine.submit <xattn.Engine.submit>`.
    """

    def __init__(self, settings: Settings, tokenizer: Tokenizer | None) -> None:
        self.settings = settings
        """Settings of the request, those of the checkpoint included."""
        self._tokenizer = tokenizer
        self._changed = threading.Condition()
        self._tokens: list[int] = []
        self._answer: Generation | None = None
        self._error: BaseException | None = None
        self._cancelled = False
        self._listeners: list[Callable[[], None]] = []
        self.is_answered_here: Callable[[], bool] = lambda: False
        """Whether this is the thread that answers it, and that must not wait for itself."""

    # What callers use

    @property
    def done(self) -> bool:
        """Whether there is an answer or an error."""
        return self._answer is not None or self._error is not None

    @property
    def tokens(self) -> tuple[int, ...]:
        """New tokens so far; of a search with beams or several samples, none before its end."""
        with self._changed:
            return tuple(self._tokens)

    @property
    def error(self) -> BaseException | None:
        """What it ended with, where that is no answer."""
        return self._error

    def cancel(self) -> bool:
        """Call the request off; False where it was done already.

        It ends with :class:`~xattn.RequestCancelledError` before the engine's next step.
        """
        with self._changed:
            if self.done:
                return False
            self._cancelled = True
        return True

    @property
    def is_cancelled(self) -> bool:
        """Whether it was called off."""
        return self._cancelled

    def result(self, timeout: float | None = None) -> Generation:
        """The answer, once there is one.

        Raises what the request ended with, and :class:`TimeoutError` where it is not over after
        ``timeout`` seconds (it goes on then).
        """
        self.wait(timeout)
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def wait(self, timeout: float | None = None) -> None:
        """Until the request is over; :class:`TimeoutError` after ``timeout`` seconds."""
        fits = timeout is None or (is_number(timeout) and timeout >= 0)
        require(fits, "timeout", "seconds, at least 0, or None", timeout)
        if not self._waited_for(lambda: self.done, timeout):
            raise TimeoutError(f"the request is not over after {timeout} s; it goes on.")

    def _waited_for(self, holds: Callable[[], bool], timeout: float | None) -> bool:
        with self._changed:
            if self.is_answered_here() and not holds():
                raise UsageError(
                    "a function that the engine calls cannot wait for a request of the same "
                    "engine: no step is done while it waits."
                )
            return self._changed.wait_for(holds, None if timeout is None else float(timeout))

    def stream(self, unit: Unit = "words") -> Iterator[str]:
        """The text as it is decoded, from its beginning; the pieces join to the answer's text.

        Raises what the request ends with. To stop reading does not stop the request.
        """
        reader = TextReader(self, unit)

        def pieces() -> Iterator[str]:
            while not reader.finished:
                self.wait_for_news(reader.read)
                if piece := reader.next():
                    yield piece

        return pieces()

    def __iter__(self) -> Iterator[str]:
        return self.stream()

    # What streams use

    def text_reader(self, unit: Unit) -> tuple[TextStream, StopFilter]:
        """What makes text of this request's tokens."""
        settings = self.settings
        require(settings.num_beams == 1, "num_beams", NO_BEAMS, settings.num_beams)
        samples = settings.num_return_sequences
        require(samples == 1, "num_return_sequences", NO_BEAMS, samples)
        require(self._tokenizer is not None, "stream", "of a model with a tokenizer", None)
        assert self._tokenizer is not None
        return TextStream(self._tokenizer, unit), StopFilter(settings.stop_strings)

    def wait_for_news(self, read: int, timeout: float | None = None) -> None:
        """Until there are more tokens than ``read``, or the end."""
        self._waited_for(lambda: self.done or len(self._tokens) > read, timeout)

    def news(self, read: int) -> tuple[list[int], bool]:
        """Tokens after the first ``read``, and whether no more will come."""
        with self._changed:
            return self._tokens[read:], self.done

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener``, on the engine's thread, at every token and at the end.

        Returns what ends that.
        """
        with self._changed:
            self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # What the engine uses

    def push(self, tokens: tuple[int, ...]) -> None:
        """New tokens so far."""
        with self._changed:
            self._tokens.extend(tokens[len(self._tokens) :])
            self._tell_all()

    def resolve(self, answer: Generation) -> BaseException | None:
        """The request is over, with this answer; or, where it was called off, with the error."""
        with self._changed:
            self._tokens.extend(answer.tokens[len(self._tokens) :])
            if self._cancelled:
                self._error = cancelled(answer.tokens)
            else:
                self._answer = answer
            self._tell_all()
            return self._error

    def fail(self, error: BaseException) -> None:
        """The request is over, with this error."""
        with self._changed:
            self._error = error
            self._tell_all()

    def orphan(self, error: EngineClosedError) -> None:
        """In a forked process nobody answers it, and a thread that is not there may hold it."""
        self._changed = threading.Condition()
        self._listeners = []
        self._error = error

    def _tell_all(self) -> None:
        self._changed.notify_all()
        for listener in list(self._listeners):
            try:
                listener()
            except Exception:
                LOG.exception("a listener of a request failed; the request goes on.")


def cancelled(tokens: tuple[int, ...], why: str = "the request was cancelled") -> EngineError:
    """What a request that was called off ends with."""
    return RequestCancelledError(f"{why} after {len(tokens)} new tokens.", tokens)


class TextReader:
    """The text of a ticket, piece by piece."""

    def __init__(self, ticket: Ticket, unit: Unit) -> None:
        self._ticket = ticket
        self._text, self._stop = ticket.text_reader(unit)
        self.read, self.finished = 0, False

    def next(self) -> str:
        """What there is since the last call, and then what the request ended with is raised."""
        tokens, over = self._ticket.news(self.read)
        self.read += len(tokens)
        piece = "".join(self._stop.push(self._text.push(token)) for token in tokens)
        if over and not (piece and self._ticket.error is not None):
            self.finished = True
            self._ticket.result()
            piece += self._stop.push(self._text.finish()) + self._stop.finish()
        return piece
