"""Requests that end before they are done, and engines that do."""

import gc
import threading
import time
import weakref
from fractions import Fraction

import pytest
from driven import Driven

import xattn
from xattn.engine import worker
from xattn.errors import (
    CapacityError,
    DeadlineError,
    EngineClosedError,
    EngineError,
    RequestCancelledError,
    UsageError,
    XattnError,
)

LONG = dict(eos_token_id=(), max_new_tokens=60)
FOREVER = dict(eos_token_id=(), max_new_tokens=100_000)


def test_a_running_request_is_cancelled_with_what_it_has(bart):
    driven = Driven(bart)
    ticket, other = (driven.submit([5, 6, 7 + n], **LONG) for n in range(2))
    for _ in range(5):
        driven.worker.turn()
    assert ticket.cancel()
    driven.worker.turn()
    assert ticket.done
    with pytest.raises(RequestCancelledError, match="after 5 new tokens") as caught:
        ticket.result(0)
    assert caught.value.tokens == bart.generate([5, 6, 7], **LONG).tokens[:5]
    assert not ticket.cancel()  # it is over
    driven.finish()
    assert other.result(0).tokens == bart.generate([5, 6, 8], **LONG).tokens


def test_a_request_in_the_queue_is_cancelled_and_costs_nothing(bart):
    driven = Driven(bart, max_rows=1)
    first = driven.submit([5, 6], max_new_tokens=3)
    driven.worker.turn()
    passes = bart.counters.encoder_passes
    second = driven.submit([7, 8], **LONG)
    second.cancel()
    driven.finish()
    with pytest.raises(RequestCancelledError, match="after 0 new tokens"):
        second.result(0)
    assert first.result(0)
    assert bart.counters.encoder_passes == passes


def test_a_long_prompt_that_is_being_read_is_cancelled(load):
    model = load("llama")
    driven = Driven(model)
    running = driven.submit(None, [5, 6], **LONG)
    driven.worker.turn()
    long = driven.submit(None, [7] * 50, **LONG)
    other = driven.submit(None, [8] * 50, **LONG)
    driven.worker._let_in()
    driven.worker._board(driven.worker._arrived())
    driven.worker._apart.board([driven.worker._prompts.pop(0)])
    long.cancel()
    driven.finish()
    assert isinstance(long.error, RequestCancelledError)
    assert running.result(0).tokens == model.generate(None, [5, 6], **LONG).tokens
    assert other.result(0).tokens == model.generate(None, [8] * 50, **LONG).tokens


@pytest.mark.parametrize("num_beams", [1, 3])
def test_time_runs_out_while_decoding_and_while_waiting(bart, num_beams):
    driven = Driven(bart, max_rows=num_beams)
    running = driven.submit([5, 6], num_beams=num_beams, **LONG)
    waiting = driven.submit([5, 6], **LONG)
    for _ in range(4):
        driven.worker.turn()
    for job in (*driven.worker._running, *driven.worker.scheduler):
        job.deadline_seconds = 1e-9
    driven.worker.turn()
    with pytest.raises(DeadlineError, match="while it was decoded, after 4 new tokens") as caught:
        running.result(0)
    assert len(caught.value.tokens) == 4
    with pytest.raises(DeadlineError, match="while it waited, after 0 new tokens"):
        waiting.result(0)
    assert driven.worker.stats().expired == 2
    assert driven.worker.held.total == 0


def test_a_deadline_ends_a_request_of_a_real_engine(load):
    model = load("t5")  # has no limit of positions
    with xattn.Engine(model) as engine:
        ticket = engine.submit([5, 6], deadline_seconds=0.05, **FOREVER)
        with pytest.raises(DeadlineError, match=r"deadline_seconds \(0\.05\)"):
            ticket.result(30)
        assert engine.submit([5, 6], max_new_tokens=3).result(30)


def test_waiting_has_an_end_and_the_request_goes_on(load):
    with xattn.Engine(load("t5")) as engine:
        ticket = engine.submit([5, 6], **FOREVER)
        with pytest.raises(TimeoutError, match=r"not over after 0\.02 s"):
            ticket.result(timeout=0.02)
        assert not ticket.done
        with pytest.raises(UsageError, match="timeout"):
            ticket.result(timeout=-1)
        ticket.cancel()
        with pytest.raises(RequestCancelledError):
            ticket.result(30)


def test_time_that_runs_out_while_a_source_is_encoded_is_noticed_before_a_step(bart, monkeypatch):
    """A source at a time is encoded between two steps, and not one for a request that is over."""
    monkeypatch.setattr(worker, "ENCODED_AT_ONCE", 4)
    driven, encoded = Driven(bart), []
    running = driven.submit(bart.encode([5, 6]), **LONG)
    driven.worker.turn()
    plain = bart.remembered

    def remembered(sources):
        encoded.append(len(sources))
        for job in driven.worker._running:
            if job.deadline_seconds is not None:
                job.deadline_seconds = 1e-9
        return plain(sources)

    monkeypatch.setattr(bart, "remembered", remembered)
    late = driven.submit([5, 6, 7], deadline_seconds=100, **LONG)
    others = [driven.submit([5, 6, 8 + n], **LONG) for n in range(3)]
    driven.worker.turn()
    assert isinstance(late.error, DeadlineError)
    assert encoded == [1]
    others[0].cancel()
    for turn in range(3):
        driven.worker.turn()
        assert len(running.tokens) == 3 + turn
    assert encoded == [1, 1, 1]
    driven.finish()
    assert all(len(ticket.result(0).tokens) == 60 for ticket in others[1:])


def test_what_does_not_fit_though_nothing_runs_is_not_waited_for(bart, monkeypatch):
    driven = Driven(bart)
    ticket = driven.submit([5, 6], **LONG)
    monkeypatch.setattr(driven.admission, "fits", lambda *_: False)
    assert driven.finish() == 1
    with pytest.raises(CapacityError, match="does not fit"):
        ticket.result(0)


def test_closing_answers_what_was_taken(bart):
    engine = xattn.Engine(bart, max_rows=2)
    tickets = [engine.submit([5, 6, 7 + n], **LONG) for n in range(9)]
    engine.close()
    assert all(len(ticket.result(0).tokens) == 60 for ticket in tickets)
    with pytest.raises(EngineClosedError, match="closed"):
        engine.submit([5])
    engine.close()  # a second time is no harm
    engine.abort()


def test_aborting_cancels_what_was_taken(load):
    engine = xattn.Engine(load("t5"), max_rows=2)
    tickets = [engine.submit([5, 6, 7 + n], **FOREVER) for n in range(5)]
    time.sleep(0.02)
    engine.abort()
    for ticket in tickets:
        with pytest.raises(RequestCancelledError, match="aborted"):
            ticket.result(0)
    with pytest.raises(EngineClosedError, match="aborted"):
        engine.submit([5])


def test_an_error_in_the_block_does_not_wait_for_answers(load):
    tickets = []

    def leave_early():
        with xattn.Engine(load("t5")) as engine:
            tickets.append(engine.submit([5, 6], **FOREVER))
            raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        leave_early()
    [ticket] = tickets
    assert isinstance(ticket.error, RequestCancelledError)


def test_what_goes_wrong_in_one_request_is_its_own(bart):
    driven = Driven(bart)
    every = tuple(range(99))
    bad = driven.submit([5, 6], suppress_tokens=every, **LONG)
    good = driven.submit([5, 6], **LONG)
    driven.finish()
    with pytest.raises(UsageError):
        bad.result(0)
    assert good.result(0).tokens == bart.generate([5, 6], **LONG).tokens
    assert driven.worker.stats().failed == 1


def test_a_function_that_fails_ends_its_own_request(bart):
    def allowed(_, tokens):
        if len(tokens) > 3:
            raise LookupError("the caller's own")
        return [20, 21]

    driven = Driven(bart)
    bad = driven.submit([5, 6], prefix_allowed_tokens_fn=allowed, **LONG)
    few = dict(prefix_allowed_tokens_fn=lambda _, tokens: [30, 31], **LONG)
    good = driven.submit([5, 6], **few)
    driven.finish()
    with pytest.raises(LookupError, match="the caller's own"):
        bad.result(0)
    assert good.result(0).tokens == bart.generate([5, 6], **few).tokens


def test_a_decoder_that_fails_ends_everything_and_nobody_waits(bart, monkeypatch):
    handed_in = threading.Event()

    def step(*_, **__):
        handed_in.wait(30)
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr(bart.network, "step", step)
    engine = xattn.Engine(bart, max_rows=2)
    tickets = [engine.submit([5, 6, 7 + n], **LONG) for n in range(5)]
    handed_in.set()
    for ticket in tickets:
        with pytest.raises(RuntimeError, match="on fire"):
            ticket.result(30)
    with pytest.raises(EngineClosedError, match="on fire"):
        engine.submit([5])
    engine.close()
    assert engine.stats().held_bytes == 0
    assert not any(thread.name == "xattn-engine" for thread in threading.enumerate())


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_function_that_leaves_python_ends_its_own_request(bart, error):
    def allowed(_, __):
        raise error

    driven = Driven(bart)
    bad = driven.submit([5, 6], prefix_allowed_tokens_fn=allowed, **LONG)
    good = driven.submit([5, 6], **LONG)
    driven.finish()
    assert bad.error is error
    assert good.result(0).tokens == bart.generate([5, 6], **LONG).tokens


def test_errors_that_are_their_own_causes_end(bart):
    def itself(_, __):
        error = LookupError("its own cause")
        raise error from error

    def each_other(_, __):
        first, second = LookupError("one"), LookupError("the other")
        first.__cause__, second.__cause__ = second, first
        raise first

    with xattn.Engine(bart) as engine:
        for allowed in (itself, each_other):
            bad = engine.submit([5, 6], prefix_allowed_tokens_fn=allowed, **LONG)
            good = engine.submit([5, 6], **LONG)
            with pytest.raises(LookupError):
                bad.result(30)
            assert good.result(30)


def test_a_function_that_fails_once_is_not_asked_again(bart):
    calls = []

    def allowed(_, tokens):
        calls.append(len(tokens))
        if len(calls) == 3:
            raise LookupError("once")
        return [20, 21]

    driven = Driven(bart)
    bad = driven.submit([5, 6], prefix_allowed_tokens_fn=allowed, **LONG)
    driven.finish()
    with pytest.raises(LookupError, match="once"):
        bad.result(0)
    assert len(calls) == 3


def test_what_leaves_python_in_the_engine_is_an_error_to_all(bart, monkeypatch):
    def step(*_, **__):
        raise SystemExit(3)

    monkeypatch.setattr(bart.network, "step", step)
    engine = xattn.Engine(bart)
    with pytest.raises(EngineError, match=r"SystemExit\(3\)"):
        engine.submit([5, 6], **LONG).result(30)
    engine.close()


def test_a_function_cannot_wait_for_its_own_engine(bart):
    """No step would be done meanwhile; what it tries instead is an error of its own request."""
    with xattn.Engine(bart) as engine:
        tries = [
            lambda: engine.submit([5, 6], **LONG).result(),
            lambda: engine.close(),
            lambda: engine.abort(),
        ]
        for attempt in tries:

            def allowed(_, __, attempt=attempt):
                attempt()
                return [20]

            bad = engine.submit([5, 6], prefix_allowed_tokens_fn=allowed, **LONG)
            with pytest.raises(UsageError, match="engine"):
                bad.result(30)
        assert engine.submit([5, 6], **LONG).result(30)


def test_a_listener_that_fails_is_nobody_s_error(bart, caplog):
    driven = Driven(bart)
    ticket = driven.submit([5, 6], **LONG)
    ticket.listen(lambda: [][0])
    driven.finish()
    assert len(ticket.result(0).tokens) == 60
    assert "listener" in caplog.text


def test_an_error_that_is_kept_keeps_no_caches(bart, monkeypatch):
    plain, states, handed_in = bart.network.step, [], threading.Event()

    def step(tokens_RT, state, **only):
        handed_in.wait(30)
        states.append(weakref.ref(state))
        own = plain(tokens_RT, state, **only)
        raise RuntimeError(f"the machine is on fire after {len(own)}")

    monkeypatch.setattr(bart.network, "step", step)
    engine = xattn.Engine(bart)
    tickets = [engine.submit([5, 6, 7 + n], **LONG) for n in range(3)]
    handed_in.set()
    for ticket in tickets:
        with pytest.raises(RuntimeError, match="on fire"):
            ticket.result(30)
    engine.close()
    gc.collect()
    assert [ref() for ref in states] == [None]


def test_what_was_cancelled_in_time_has_no_answer(bart):
    """Also where its last token was chosen in the same turn."""
    driven = Driven(bart)
    ticket = driven.submit([5, 6], eos_token_id=(), max_new_tokens=3)
    went_off = []
    ticket.listen(lambda: went_off.append(ticket.cancel()) if len(ticket.tokens) == 3 else None)
    driven.finish()
    assert went_off[0]
    with pytest.raises(RequestCancelledError, match="after 3 new tokens") as caught:
        ticket.result(0)
    assert len(caught.value.tokens) == 3
    assert driven.worker.stats().cancelled == 1


def test_what_was_chosen_before_an_abort_is_told(load):
    engine = xattn.Engine(load("t5"), max_rows=2)
    tickets = [engine.submit([5, 6, 7 + n], **FOREVER) for n in range(3)]
    while not tickets[1].tokens:
        time.sleep(0.001)
    engine.abort()
    for ticket in tickets:
        with pytest.raises(RequestCancelledError, match=r"aborted after \d+ new") as caught:
            ticket.result(0)
        assert caught.value.tokens == ticket.tokens
    assert tickets[0].tokens
    assert not tickets[2].tokens


def test_an_error_between_two_steps_leaves_nobody_waiting(load, monkeypatch):
    """Also those that were out of the queue already when it was raised."""

    def ending(*_):
        raise RuntimeError("between two steps")

    monkeypatch.setattr(worker, "_ending", ending)
    engine = xattn.Engine(load("t5"), max_rows=1)
    tickets = [engine.submit([5, 6, 7 + n], **FOREVER) for n in range(4)]
    tickets[2].cancel()
    tickets[1].cancel()
    for ticket in tickets:
        with pytest.raises(RuntimeError, match="between two steps"):
            ticket.result(30)
    engine.close()
    stats = engine.stats()
    assert (stats.running, stats.queued, stats.held_bytes) == (0, 0, 0)


def test_a_deadline_is_any_number_of_seconds(load):
    with xattn.Engine(load("t5")) as engine:
        ticket = engine.submit([5, 6], deadline_seconds=Fraction(1, 100), **FOREVER)
        with pytest.raises(DeadlineError, match=r"0\.01"):
            ticket.result(30)


def test_logits_that_are_no_numbers_end_one_request(bart, monkeypatch):
    plain = bart.network.step

    def step(*arguments, **only):
        logits = plain(*arguments, **only)
        logits[0] = float("nan")
        return logits

    monkeypatch.setattr(bart.network, "step", step)
    driven = Driven(bart)
    bad, good = (driven.submit([5, 6], [9 + n], **LONG) for n in range(2))
    driven.worker.turn()
    monkeypatch.setattr(bart.network, "step", plain)
    driven.finish()
    with pytest.raises(XattnError, match="not finite"):
        bad.result(0)
    assert len(good.result(0).tokens) == 60


def test_many_threads_hand_in_at_once(bart):
    want = {n: bart.generate([5, 6, n], max_new_tokens=8).tokens for n in range(10, 18)}
    found = {n: set() for n in want}
    with xattn.Engine(bart, max_rows=4) as engine:

        def ask(n):
            for _ in range(5):
                found[n].add(engine.submit([5, 6, n], max_new_tokens=8).result(60).tokens)

        threads = [threading.Thread(target=ask, args=(n,)) for n in want]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {n: {tokens} for n, tokens in want.items()}
