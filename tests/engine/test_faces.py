"""Text as it comes, in threads and on event loops; a real small model with a tokenizer."""

import asyncio
import time

import pytest
from driven import Driven

import xattn
from xattn.errors import DeadlineError, RequestCancelledError, UsageError

WORDS = ["attention", "memory", "encoder", "decode", "anywhere", "once"]


@pytest.fixture(scope="module")
def speaker():
    return xattn.load("g2p-en", offline=True)


@pytest.fixture
def engine(speaker):
    with xattn.Engine(speaker) as engine:
        yield engine


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_pieces_join_to_the_answer(speaker, engine, unit):
    tickets = [engine.submit(word) for word in WORDS]
    for word, ticket in zip(WORDS, tickets, strict=True):
        want = speaker.generate(word)
        assert "".join(ticket.stream(unit)) == want.text
        assert "".join(ticket) == want.text  # again, from its beginning
        assert ticket.tokens == ticket.result().tokens == want.tokens


def test_a_stop_string_ends_a_stream(speaker, engine):
    whole = speaker.generate("attention").text
    stop = whole[len(whole) // 2 :][:2]
    ticket = engine.submit("attention", stop_strings=stop)
    assert "".join(ticket.stream("characters")) == ticket.result().text == whole[: whole.find(stop)]
    assert ticket.result().finish == "stop"


def test_a_stream_that_nobody_reads_to_the_end_does_not_hold_up(speaker, engine):
    ticket = engine.submit("attention")
    next(iter(ticket.stream("characters")))
    assert ticket.result(30).text == speaker.generate("attention").text


@pytest.mark.parametrize("settings", [dict(num_beams=2), dict(num_beams=2, num_return_sequences=2)])
def test_beams_are_not_streamed(speaker, engine, settings):
    ticket = engine.submit("attention", **settings)
    with pytest.raises(UsageError, match="num_beams"):
        ticket.stream()
    assert ticket.result(30).text == speaker.generate("attention", **settings).text


def test_a_stream_ends_with_what_its_request_ends_with(load):
    with xattn.Engine(load("t5")) as engine:
        ticket = engine.submit([5], eos_token_id=(), max_new_tokens=10**5, deadline_seconds=0.05)
        with pytest.raises(UsageError, match="tokenizer"):
            ticket.stream()
        with pytest.raises(DeadlineError):
            ticket.result(30)


def test_a_stream_gives_its_last_text_before_its_error(speaker):
    driven = Driven(speaker)
    ticket = driven.submit("attention")
    stream = ticket.stream("characters")
    for _ in range(4):
        driven.worker.turn()
    ticket.cancel()
    driven.finish()
    read = []

    def follow():
        for piece in stream:
            read.append(piece)

    with pytest.raises(RequestCancelledError):
        follow()
    assert "".join(read) == speaker.tokenizer.decode(list(ticket.tokens))


def test_many_coroutines_share_an_engine(speaker):
    async def all_of_them():
        async with xattn.Engine(speaker, max_rows=3) as engine:
            answers = await asyncio.gather(*(engine.generate(word) for word in WORDS))
            return [answer.text for answer in answers]

    assert asyncio.run(all_of_them()) == [speaker.generate(word).text for word in WORDS]


def test_pieces_come_to_an_event_loop(speaker):
    async def listen():
        async with xattn.Engine(speaker) as engine:
            return [piece async for piece in engine.stream("attention", unit="characters")]

    assert "".join(asyncio.run(listen())) == speaker.generate("attention").text


def test_arguments_out_of_bounds_are_raised_to_the_task(speaker):
    async def ask():
        async with xattn.Engine(speaker) as engine:
            with pytest.raises(UsageError, match="num_beams"):
                await engine.generate("attention", num_beams=0)
            with pytest.raises(UsageError, match="num_beams"):
                async for _ in engine.stream("attention", num_beams=3):
                    pass
            with pytest.raises(DeadlineError):
                await engine.generate("attention", deadline_seconds=1e-9)

    asyncio.run(ask())


def test_to_cancel_a_task_is_to_cancel_its_request(load):
    model = load("t5")

    async def give_up():
        async with xattn.Engine(model) as engine:
            forever = engine.generate([5, 6], eos_token_id=(), max_new_tokens=10**5)
            task = asyncio.create_task(forever)
            while engine.stats().tokens < 3:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await engine.generate([5, 6], eos_token_id=(), max_new_tokens=10**5)
            await until(lambda: engine.stats().running == 0)
            return engine.stats()

    stats = asyncio.run(give_up())
    assert (stats.cancelled, stats.running, stats.held_bytes) == (2, 0, 0)


def test_a_task_that_is_cancelled_while_it_hands_in_leaves_nothing(load, monkeypatch):
    model = load("t5")

    async def give_up():
        async with xattn.Engine(model) as engine:
            plain = engine.submit

            def slow(*arguments, **settings):
                time.sleep(0.05)
                return plain(*arguments, **settings)

            monkeypatch.setattr(engine, "submit", slow)
            forever = engine.generate([5, 6], eos_token_id=(), max_new_tokens=10**5)
            task = asyncio.create_task(forever)
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: engine.stats().cancelled == 1)
            return engine.stats()

    assert asyncio.run(give_up()).running == 0


def slow(turn):
    def later():
        time.sleep(0.01)
        turn()

    return later


def test_a_stream_that_is_left_cancels_its_request(speaker, monkeypatch):
    async def leave():
        async with xattn.Engine(speaker) as engine:
            monkeypatch.setattr(engine._worker, "turn", slow(engine._worker.turn))
            stream = engine.stream("attention", unit="characters", min_new_tokens=60)
            async for _ in stream:
                break
            await stream.aclose()
            await until(lambda: engine.stats().running == 0)
            return engine.stats()

    assert asyncio.run(leave()).cancelled == 1


def test_a_loop_that_is_gone_does_not_stop_the_engine(speaker):
    engine = xattn.Engine(speaker)

    async def begin():
        asyncio.get_running_loop().create_task(engine.generate("attention"))
        await asyncio.sleep(0.01)

    asyncio.run(begin())
    assert engine.submit("memory").result(30).text == speaker.generate("memory").text
    engine.close()


def test_an_aborted_engine_tells_its_tasks(load):
    async def ask():
        engine = xattn.Engine(load("t5"))
        forever = engine.generate([5, 6], eos_token_id=(), max_new_tokens=10**5)
        task = asyncio.create_task(forever)
        while engine.stats().tokens < 3:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(engine.abort)
        with pytest.raises(RequestCancelledError, match="aborted"):
            await task

    asyncio.run(ask())


def test_to_cancel_the_end_of_a_block_is_to_abort(load):
    tickets = []

    async def leave():
        async with xattn.Engine(load("t5")) as engine:
            tickets.append(engine.submit([5, 6], eos_token_id=(), max_new_tokens=10**5))

    async def give_up():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(leave(), 0.1)

    asyncio.run(give_up())
    [ticket] = tickets
    with pytest.raises(RequestCancelledError, match="aborted"):
        ticket.result(30)


def test_a_loop_that_ends_while_a_request_is_handed_in_leaves_nothing(load, monkeypatch):
    engine = xattn.Engine(load("t5"))
    plain = engine.submit

    def slow(*arguments, **settings):
        time.sleep(0.2)
        return plain(*arguments, **settings)

    monkeypatch.setattr(engine, "submit", slow)

    async def begin():
        forever = engine.generate([5, 6], eos_token_id=(), max_new_tokens=10**5)
        asyncio.get_running_loop().create_task(forever)
        await asyncio.sleep(0.05)

    asyncio.run(begin())
    engine.close()
    assert engine.stats().cancelled == 1


async def until(holds):
    """Let the engine get there; half a minute is for ever."""
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")
