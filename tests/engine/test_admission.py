"""Bytes: foretold, held, bounded, and refused with the numbers."""

import random
import time

import numpy as np
import pytest
import tiny
import torch
from driven import Driven, source_of
from peak import Peak

import xattn
from xattn.decoding.batch import Plan
from xattn.decoding.beam import Beams
from xattn.decoding.request import Request
from xattn.decoding.settings import Settings
from xattn.decoding.warpers import draw
from xattn.engine.room import SAMPLED
from xattn.errors import CapacityError, PromptError, QueueFullError, UsageError
from xattn.spec import FORMS, is_absorbed

FULL = dict(eos_token_id=(), max_new_tokens=40)
"""Requests that run to the end of their length."""


@pytest.mark.parametrize("name", ["bart", "t5", "llama"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_foretold_is_what_is_held(model_of, name, form):
    """Never more, and of caches and memories nothing less once all are as long as they get."""
    model = model_of(name)
    if is_absorbed(form) and model.spec.encoder is None:
        return
    rng = random.Random(0)
    driven = Driven(model, form=form)
    for n in range(6):
        memory = model.encode(source_of(rng)) if n % 2 else source_of(rng)
        driven.submit(memory, [5] * (1 + 3 * n), num_beams=1 + n % 2, **FULL)
    closest = 0.0
    driven.worker.turn()
    predicted = driven.admission.predicted(driven.worker._running)
    for worker in driven.turns():
        held = worker.held
        assert held.cache <= predicted.cache
        assert held.memories <= predicted.memories
        if len(worker._running) == 6 and not worker._apart.seats:
            assert held.memories >= 0.98 * predicted.memories
            closest = max(closest, held.cache / predicted.cache)
    assert closest >= 0.97


def workspace_of(worker):
    """What the kernels asked for, and the logits."""
    session = None if worker._flight.state is None else worker._flight.state.native
    if session is None:
        return 0
    return session._workspace.nbytes + worker._flight.rows * tiny.VOCAB * 4


@pytest.mark.parametrize("threads", [1, 6])
@pytest.mark.parametrize("form", FORMS)
def test_the_kernels_have_room(bart, monkeypatch, form, threads):
    """Also with many memories to a row, and many threads, each of which has some of its own."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng, driven, seen = random.Random(0), Driven(bart, form=form), 0
    memory = bart.encode([5] * 60)
    driven.submit([memory] * 60, [5] * 3, **FULL | {"max_new_tokens": 6})
    for n in range(20):
        settings = FULL | {"max_new_tokens": 3 + n}
        driven.submit([memory] * 3, [5] * rng.randint(1, 30), **settings)
    for worker in driven.turns():
        seen = max(seen, workspace_of(worker))
        assert workspace_of(worker) <= worker.held.work
    assert seen > 200_000


@pytest.mark.parametrize(
    ("name", "form", "settings"),
    [
        ("t5", "materialized", dict(num_beams=5)),
        ("bart", "absorbed-int8", dict(num_beams=4, do_sample=True, top_k=0, typical_p=0.9)),
        ("bart", "materialized-int8", dict(num_beams=5)),
        ("llama", "materialized", dict(prefix_allowed_tokens_fn=lambda _, __: [20, 30])),
    ],
)
def test_all_that_is_made_was_foretold(model_of, name, form, settings):
    """Caches, projections, what is moved, steps and choices: all tensors of torch."""
    model, rng = model_of(name), random.Random(0)
    driven, peak = Driven(model, form=form), Peak()
    memories = [model.encode(source_of(rng, 60)) for _ in range(6)]
    for n, memory in enumerate(memories):
        own = {"max_new_tokens": 4 + 2 * n} | settings
        driven.submit(memory, [5] * (1 + 3 * n), **FULL | own)
    with peak:
        driven.worker.turn()
        predicted = driven.admission.predicted(driven.worker._running)
        driven.finish()
    assert predicted.total / 12 < peak.most <= predicted.total


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_weights_that_absorbed_memories_need_are_foretold(tmp_path, quantize):
    """Those of a model of narrow ones are made wide, for as long as somebody reads with them."""
    tiny.make("bart", tmp_path)
    model, peak = xattn.load(tmp_path, quantize=quantize), Peak()
    cross = model.spec.decoder.cross_attention
    wide = 2 * 2 * 4 * cross.heads * cross.head_width * model.spec.decoder.memory_width
    plain, absorbed = Driven(model), Driven(model, form="absorbed")
    memory = model.encode([5, 6, 7])
    rooms = [d.admission.predicted([d.job(memory, **FULL)]).work for d in (plain, absorbed)]
    assert rooms[1] >= rooms[0] + wide
    absorbed.submit(memory, **FULL)
    with peak:
        absorbed.worker.turn()
        predicted = absorbed.admission.predicted(absorbed.worker._running)
        absorbed.finish()
    assert wide < peak.most <= predicted.total


@pytest.mark.parametrize(
    "settings",
    [
        dict(top_k=0, top_p=0.9),
        dict(top_k=0, typical_p=0.9, top_p=0.9, min_p=0.1, temperature=0.5),
        dict(top_k=50),
    ],
)
def test_a_sampler_has_room(settings):
    logits_RV, peak = torch.randn(4, 30_000), Peak()
    with peak:
        draw(logits_RV, Settings(do_sample=True, **settings), torch.rand(4, dtype=torch.float64))
    assert peak.most <= (SAMPLED - 1) * logits_RV.nbytes


def test_beams_that_sample_have_room():
    V, batch = 30_000, Plan(requests=(Request((5,)),), limits=(5,), eos=(2,))
    settings = Settings(num_beams=4, do_sample=True, top_k=0, top_p=0.9, typical_p=0.9)
    beams, peak = Beams(batch, settings, None, (), V, torch.device("cpu")), Peak()
    logits_RV = torch.randn(1, V)
    with peak:
        beams.advance(logits_RV)
    assert peak.most <= SAMPLED * 4 * 4 * V


def test_few_tokens_that_are_many_together_are_not_looked_up_one_by_one(bart, monkeypatch):
    """The head's rows are copied where few are allowed; what all requests allow is not few."""
    plain, asked = bart.network.step, []

    def step(*arguments, only=None):
        asked.append(only)
        return plain(*arguments, only=only)

    monkeypatch.setattr(bart.network, "step", step)
    driven, tickets = Driven(bart), {}
    for n in range(4):
        few = dict(prefix_allowed_tokens_fn=lambda _, __, n=n: range(10 + 8 * n, 18 + 8 * n))
        few |= FULL | {"max_new_tokens": 3 + n}
        tickets[driven.submit([5, 6], **few)] = few
    driven.finish()
    assert asked[:3] == [None] * 3
    assert asked[-1] == list(range(34, 42))
    for ticket, few in tickets.items():
        assert ticket.result(0).tokens == bart.generate([5, 6], **few).tokens


@pytest.mark.parametrize("form", ["materialized", "absorbed"])
def test_no_turn_holds_more_than_the_capacity(model_of, form):
    """Random requests, of which now fewer, now more fit; all are answered."""
    model, rng = model_of("bart"), random.Random(4)
    one = Driven(model, form=form)
    largest = one.admission.predicted([one.job([5] * 60, [5] * 20, num_beams=4, **FULL)])
    capacity = largest.total + 60_000
    driven = Driven(model, form=form, capacity_bytes=capacity)
    sources, tickets, most, waited = [source_of(rng, 60) for _ in range(10)], [], 0, 0
    while len(tickets) < 60 or not driven.worker.idle:
        if len(tickets) < 60 and rng.random() < 0.7:
            settings = dict(max_new_tokens=rng.randint(1, 40), num_beams=rng.choice([1, 1, 4]))
            prompt = [5] * rng.choice([1, 3, 20])
            tickets.append(driven.submit(rng.choice(sources), prompt, **FULL | settings))
        driven.worker.turn()
        assert driven.worker.held.total <= capacity
        most = max(most, len(driven.worker._running))
        waited += bool(len(driven.worker.scheduler))
    assert all(ticket.error is None for ticket in tickets)
    assert most > 3
    assert waited > 10
    assert driven.worker.held.total == 0


def test_what_can_never_fit_is_refused_with_the_numbers(bart):
    driven = Driven(bart, capacity_bytes=1_500_000)
    driven.submit([5, 6, 7], max_new_tokens=5)
    with pytest.raises(CapacityError, match=r"needs \d+ bytes .* capacity_bytes is 1500000"):
        driven.submit([5] * 60, num_beams=20, max_new_tokens=60)
    driven.finish()
    stats = driven.worker.stats()
    assert (stats.submitted, stats.refused, stats.finished) == (1, 1, 1)


def test_more_rows_than_there_are_is_refused(bart):
    driven = Driven(bart, max_rows=4)
    with pytest.raises(CapacityError, match=r"5 rows .* max_rows=4"):
        driven.submit([5, 6], num_beams=5, max_new_tokens=3)
    tickets = [driven.submit([5, 6 + n], num_beams=2, **FULL) for n in range(5)]
    for worker in driven.turns():
        assert worker._flight.rows <= 4
    assert all(ticket.result(0) for ticket in tickets)


def test_a_full_queue_refuses(bart):
    driven = Driven(bart, max_rows=1, max_queue=3)
    tickets = [driven.submit([5, 6], max_new_tokens=3)]
    driven.worker.turn()
    tickets += [driven.submit([5, 6], max_new_tokens=3) for _ in range(3)]
    with pytest.raises(QueueFullError, match="3 requests wait, and max_queue is 3"):
        driven.submit([5, 6], max_new_tokens=3)
    driven.finish()
    assert len({ticket.result(0).tokens for ticket in tickets}) == 1


def test_numbers_of_numpy_count_as_python_s_own(load):
    """They wrap: what was foretold was less than nothing, and everything fitted."""
    driven = Driven(load("t5"), capacity_bytes=np.int32(2**31 - 1))
    settings = dict(max_new_tokens=np.int32(2_000_000), num_beams=np.int8(2), eos_token_id=())
    with pytest.raises(CapacityError, match="2 rows of 2000000 tokens"):
        driven.submit([5, 6], **settings)
    with xattn.Engine(load("t5"), max_rows=np.uint8(1)) as engine:
        few = dict(max_new_tokens=np.uint8(3), eos_token_id=np.int64(3))
        tickets = [engine.submit([5, 6], priority=np.uint8(n), **few) for n in range(4)]
        assert all(ticket.result(30) for ticket in tickets)
        assert type(tickets[0].settings.max_new_tokens) is int
        assert tickets[0].settings.eos_token_id == (3,)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (dict(memory=[5], prompt=[5] * 64), PromptError, "64"),
        (dict(memory=[5], prompt=[]), PromptError, "0 tokens"),
        (dict(memory=[5], prompt=[5] * 40, max_new_tokens=60), PromptError, "60"),
        (dict(memory=None), UsageError, "`memory` must be given"),
        (dict(memory=[5], num_beam=2), UsageError, "num_beams"),
        (dict(memory=[5], prompt_lookup_num_tokens=4), UsageError, "prompt_lookup_num_tokens"),
        (dict(memory=[5], suppress_tokens=(200,)), UsageError, "suppress_tokens"),
        (dict(memory=[5], stop_strings="x"), UsageError, "stop_strings"),
        (dict(memory=[5], tenant=3), UsageError, "tenant"),
        (dict(memory=[5], priority=0.5), UsageError, "priority"),
        (dict(memory=[5], deadline_seconds=0), UsageError, "deadline_seconds"),
        (dict(memory=[5], deadline_seconds=float("nan")), UsageError, "deadline_seconds"),
    ],
)
def test_what_is_wrong_is_said_at_once(bart, arguments, error, said):
    with xattn.Engine(bart) as engine:
        with pytest.raises(error, match=said):
            engine.submit(**arguments)
        assert engine.stats().submitted == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(capacity_bytes=0), "capacity_bytes"),
        (dict(capacity_bytes=1.5), "capacity_bytes"),
        (dict(max_rows=0), "max_rows"),
        (dict(max_queue=-1), "max_queue"),
        (dict(form="folded"), "form"),
    ],
)
def test_bounds_that_are_none(bart, arguments, said):
    with pytest.raises(UsageError, match=said):
        xattn.Engine(bart, **arguments)
    with pytest.raises(UsageError, match="model"):
        xattn.Engine("bart")


def test_what_must_not_wait_is_refused_with_the_numbers(model_of):
    model = model_of("bart")
    driven = Driven(model)
    both = [driven.job([5 + n, 6, 7], **FULL) for n in range(2)]
    needed = driven.admission.predicted(both).total
    slow = dict(prefix_allowed_tokens_fn=lambda *_: time.sleep(0.01) or list(range(90)))
    with xattn.Engine(model, capacity_bytes=needed - 1) as engine:
        first = engine.submit([5, 6, 7], **FULL, **slow)
        with pytest.raises(CapacityError, match=r"1 requests are there, .* 2 rows and \d+ bytes"):
            engine.submit([8, 9, 10], wait=False, **FULL)
        assert engine.stats().refused == 1
        second = engine.submit([8, 9, 10], **FULL)
        assert len(first.result().tokens) == len(second.result().tokens) == 40
        assert len(engine.submit([8, 9, 10], wait=False, **FULL).result().tokens) == 40


def test_the_account_is_of_what_is_held(model_of):
    model = model_of("bart")
    memory = model.encode([5, 6, 7, 8])
    driven = Driven(model)
    driven.submit(memory, **FULL)
    driven.submit([9, 10, 11], **FULL)
    driven.worker.turn()
    account, held = driven.worker.ledger(), driven.worker.held
    by_what = {what: account.of(what) for what in ("keys and values", "states")}
    assert sum(by_what.values()) == held.memories
    assert by_what["states"] == (4 + 3) * model.spec.decoder.memory_width * 4
    assert account.of("self-attention cache") == held.cache > 0
    assert account.of("workspace") == held.work
    weights = {p.data_ptr(): p.nbytes for p in model.network.parameters()}
    assert account.of("weights") == sum(weights.values())
