"""What an engine answers, against each request alone."""

import gc
import random
import threading
import time
import weakref
from functools import cache

import pytest
import tiny
from driven import Driven, source_of

import xattn
from xattn.engine import worker
from xattn.errors import DeadlineError, RequestCancelledError
from xattn.models.state import DecodeState, Projection

EOS = tuple(range(3, 12))
"""Enough end tokens that sequences end at all lengths."""


class Crowd:
    """Random requests on one model: memories of which some are shared, prompts, lengths."""

    def __init__(self, model, seed, sources=12):
        self.model, self.rng = model, random.Random(seed)
        self.decoder_only = model.spec.encoder is None
        self.sources = [source_of(self.rng) for _ in range(sources)]
        self.memories = [model.encode(source) for source in self.sources]
        self.alone = cache(self._alone)

    def request(self):
        """Which memories, which prompt, which settings."""
        rng = self.rng
        count = 1 if self.decoder_only else rng.choice([1, 1, 1, 2])
        which = tuple(rng.randrange(len(self.memories)) for _ in range(count))
        length = rng.choice([1, 1, 2, 4, 9, 17])
        prompt = tuple(rng.randrange(12, tiny.VOCAB) for _ in range(length))
        return which, prompt, rng.randint(1, 30)

    def attended(self, which):
        """Memories, and now and then the source of one instead."""
        if len(which) == 1 and self.rng.random() < 0.2:
            return self.sources[which[0]]
        return [self.memories[n] for n in which]

    def _alone(self, which, prompt, length):
        memories = [self.memories[n] for n in which]
        return self.model.generate(
            memories, list(prompt), max_new_tokens=length, eos_token_id=EOS
        ).tokens


@pytest.mark.parametrize(("name", "form"), [("bart", "materialized"), ("t5", "absorbed")])
def test_two_hundred_requests_over_time_are_as_each_alone(model_of, name, form):
    model = model_of(name)
    crowd = Crowd(model, seed=5)
    capacity = 1_900_000
    requests = [crowd.request() for _ in range(50)]
    engine = xattn.Engine(model, capacity_bytes=capacity, max_rows=24, form=form)
    handed_in, gone = [], []
    for _ in range(200):
        which, prompt, length = crowd.rng.choice(requests)
        deadline = crowd.rng.choice([None, None, None, None, 30.0, 0.002])
        ticket = engine.submit(
            crowd.attended(which),
            list(prompt),
            max_new_tokens=length,
            eos_token_id=EOS,
            priority=crowd.rng.randint(0, 2),
            tenant=crowd.rng.choice("abc"),
            deadline_seconds=deadline,
        )
        handed_in.append((ticket, (which, prompt, length)))
        if crowd.rng.random() < 0.15:
            gone.append(crowd.rng.choice(handed_in)[0].cancel())
        if crowd.rng.random() < 0.3:
            time.sleep(crowd.rng.random() * 0.01)
        assert engine.stats().held_bytes <= capacity
    engine.close()
    finished = 0
    for ticket, request in handed_in:
        assert ticket.done
        want = crowd.alone(*request)
        if ticket.error is None:
            finished += 1
            assert ticket.result().tokens == want
        else:
            assert isinstance(ticket.error, RequestCancelledError | DeadlineError)
            assert ticket.error.tokens == want[: len(ticket.error.tokens)]
    stats = engine.stats()
    assert stats.finished == finished > 100
    assert stats.finished + stats.cancelled + stats.expired == stats.submitted == 200
    assert (stats.failed, stats.refused) == (0, 0)
    assert 0 < stats.cancelled <= sum(gone)
    assert stats.expired > 0
    assert (stats.rows, stats.held_bytes, stats.queued, stats.running) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", ["bart", "t5", "mbart", "llama", "qwen3"])
def test_all_kinds_of_requests_are_as_each_alone(model_of, name):
    """Turn by turn, which is the same every time; decoder-only models go on from memories."""
    model = model_of(name)
    crowd = Crowd(model, seed=7, sources=5)
    driven, handed_in = Driven(model, max_rows=10), []
    while len(handed_in) < 40 or not driven.worker.idle:
        if len(handed_in) < 40 and crowd.rng.random() < 0.6:
            request = crowd.request()
            which, prompt, length = request
            ticket = driven.submit(
                crowd.attended(which), list(prompt), max_new_tokens=length, eos_token_id=EOS
            )
            handed_in.append((ticket, request))
        driven.worker.turn()
    for ticket, request in handed_in:
        assert ticket.result(0).tokens == crowd.alone(*request)


@pytest.mark.parametrize(
    "settings",
    [
        dict(num_beams=4, num_return_sequences=3),
        dict(num_beams=3, patience=1.0, early_stopping=True),
        dict(do_sample=True, seed=11, top_k=20, temperature=0.8),
        dict(do_sample=True, seed=3, num_return_sequences=4, top_p=0.9),
        dict(num_beams=2, do_sample=True, seed=2),
        dict(no_repeat_ngram_size=2, repetition_penalty=1.3, min_new_tokens=6, logprobs=3),
        dict(prefix_allowed_tokens_fn=lambda _, tokens: [20 + len(tokens), 3, 40, 50]),
        dict(suppress_tokens=(20, 21), forced_eos_token_id=5, bad_words_ids=((30,), (31, 32))),
    ],
    ids=lambda s: "-".join(s),
)
def test_settings_are_each_request_s_own(model_of, settings):
    """Every kind in one batch with all the others, so that each meets rows of unequal length."""
    model = model_of("bart")
    crowd = Crowd(model, seed=1, sources=3)
    driven, tickets = Driven(model), []
    for n in range(6):
        memory, prompt = crowd.memories[n % 3], [13 + n] * (1 + n)
        own = dict(max_new_tokens=10 + n, eos_token_id=EOS) | (settings if n % 2 else {})
        tickets.append((driven.submit(memory, prompt, **own), memory, prompt, own))
        driven.worker.turn()
    driven.finish()
    for ticket, memory, prompt, own in tickets:
        got, want = ticket.result(0), model.generate(memory, prompt, **own)
        answers = zip((got, *got.alternatives), (want, *want.alternatives), strict=True)
        for one, other in answers:
            assert one.tokens == other.tokens
            assert one.finish == other.finish
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert [[t for t, _ in step] for step in one.top_logprobs] == [
                [t for t, _ in step] for step in other.top_logprobs
            ]


def test_nothing_is_left_behind(model_of, monkeypatch):
    """No state, projection or thread outlives its requests, however they ended."""
    model = model_of("bart")
    made: list[weakref.ref] = []
    for kind in (DecodeState, Projection):
        plain = kind.__init__

        def noted(self, *args, plain=plain, **kwargs):
            made.append(weakref.ref(self))
            plain(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__init__", noted)
    rng = random.Random(3)
    engine = xattn.Engine(model, max_rows=8)
    tickets = [
        engine.submit(
            source_of(rng), max_new_tokens=20, num_beams=rng.choice([1, 3]), eos_token_id=()
        )
        for _ in range(20)
    ]
    tickets[3].cancel()
    tickets[-1].result(30)
    engine.close()
    assert made
    gc.collect()
    assert [ref() for ref in made if ref() is not None] == []
    assert not any(t.name == "xattn-engine" for t in threading.enumerate())


def test_an_engine_that_is_forgotten_ends(load):
    engine = xattn.Engine(load("bart"))
    ticket = engine.submit(source_of(random.Random(0)), max_new_tokens=30, eos_token_id=())
    [thread] = [t for t in threading.enumerate() if t.name == "xattn-engine"]
    del engine
    gc.collect()  # which waits for nobody
    thread.join(30)
    assert ticket.done
    assert not thread.is_alive()


def test_an_engine_is_forgotten_also_where_its_lock_is_held(load, monkeypatch):
    monkeypatch.setattr(worker, "LOOK_UP_SECONDS", 0.05)
    engine = xattn.Engine(load("bart"))
    [thread] = [t for t in threading.enumerate() if t.name == "xattn-engine"]
    lock, held, go_on = engine._worker.lock, threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            go_on.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    del engine
    gc.collect()
    assert not go_on.is_set()
    go_on.set()
    thread.join(30)
    holder.join()
    assert not thread.is_alive()
