"""What requests have in common is made once, and let go with the last of them."""

import random

import numpy as np
import pytest
import torch
from driven import Driven, source_of

import xattn
from xattn.errors import CapacityError, InvalidSourceError, UsageError
from xattn.store import MemoryStore

FULL = dict(eos_token_id=(), max_new_tokens=12)


def counted(model):
    return model.counters.encoder_passes, model.counters.projections


@pytest.mark.parametrize("form", ["materialized", "absorbed"])
def test_a_source_of_sixteen_requests_is_encoded_and_projected_once(bart, form):
    source, before = [5, 9, 12, 7, 2], counted(bart)
    driven = Driven(bart, form=form, max_rows=5)
    tickets = [driven.submit(source, [9] * (1 + n), **FULL) for n in range(16)]
    for worker in driven.turns():
        if worker._flight.state is not None and worker._flight.rows > 1:
            assert len(worker._flight.state.projections) == 1
    assert tuple(b - a for a, b in zip(before, counted(bart), strict=True)) == (1, 1)
    assert all(len(ticket.result(0).tokens) == 12 for ticket in tickets)
    assert len(driven.worker._memories) == 0


def test_a_memory_is_projected_once_and_never_encoded(bart):
    memory = bart.encode([5, 9, 12])
    before = counted(bart)
    driven = Driven(bart)
    for n in range(16):
        driven.submit([memory, memory] if n % 4 == 0 else memory, [9] * (1 + n), **FULL)
    driven.finish()
    assert tuple(b - a for a, b in zip(before, counted(bart), strict=True)) == (0, 1)


def test_rows_that_share_a_memory_are_folded(bart):
    """One group of rows for each memory, whenever they came."""
    memories, driven = [bart.encode([5, 6, n]) for n in range(3, 6)], Driven(bart)
    for n in range(9):
        driven.submit(memories[n % 3], **FULL)
        driven.worker.turn()
    [slot] = driven.worker._flight.state.slots
    assert sorted(len(group.rows) for group in slot) == [3, 3, 3]
    driven.finish()


def test_a_pinned_projection_is_used(bart):
    memory = bart.encode([5, 9, 12, 30])
    bart.pin_projection(memory)
    before = counted(bart)
    try:
        driven = Driven(bart)
        driven.submit(memory, **FULL)
        driven.worker.turn()
        assert driven.worker.held.memories == memory.size_bytes  # keys and values are the model's
        driven.finish()
    finally:
        bart.unpin_projection(memory)
    assert counted(bart) == before


def test_a_pin_that_is_taken_out_leaves_nothing_uncounted(bart):
    memory = bart.encode([5, 9, 12, 31])
    bart.pin_projection(memory)
    driven = Driven(bart)
    driven.submit(memory, **FULL)
    driven.worker.turn()
    bart.unpin_projection(memory)
    assert 0 < driven.worker.held.memories
    assert (
        driven.worker.held.memories <= driven.admission.predicted(driven.worker._running).memories
    )
    driven.finish()


def test_what_a_source_is_made_of_is_let_go_once_it_is_made(bart):
    """Samples of a recording, say; not where it may have to be made again."""
    driven = Driven(bart, max_rows=1)
    driven.submit([5, 9, 12, 7], **FULL)
    driven.worker.turn()
    [entry] = driven.worker._memories._held.values()
    assert entry.source is None
    later = driven.submit([5, 9, 12, 7], **FULL)
    assert entry.source is not None
    driven.finish()
    assert later.result(0)


def test_what_is_pinned_is_foretold_in_full(bart):
    """Else it is begun, unpinned, and more than was bounded."""
    memory = bart.encode([5, 9, 12, 32] * 10)
    plain = Driven(bart)
    needed = plain.admission.predicted([plain.job(memory, **FULL)]).total
    bart.pin_projection(memory)
    try:
        with pytest.raises(CapacityError, match=f"needs {needed} bytes"):
            Driven(bart, capacity_bytes=needed - 1).submit(memory, **FULL)
    finally:
        bart.unpin_projection(memory)


def test_sources_come_from_the_store(bart, tmp_path, monkeypatch):
    monkeypatch.setattr(bart, "store", MemoryStore(tmp_path / "store"))
    sources = [source_of(random.Random(n)) for n in range(4)]
    before = counted(bart)
    for _ in range(2):
        driven = Driven(bart)
        tickets = [driven.submit(source, **FULL) for source in sources]
        driven.finish()
        assert all(ticket.error is None for ticket in tickets)
    assert counted(bart)[0] - before[0] == 4
    for source in sources:  # and are as good as any: gradients may go through them
        assert not bart.store.get_or_encode(bart, source).states_SD.is_inference()


def test_a_memory_of_another_model_is_refused(bart, load):
    with pytest.raises(UsageError, match="another encoder"):
        Driven(bart).submit(load("t5").encode([5, 6]))


@pytest.mark.parametrize("given", [False, True])
def test_what_only_the_queue_wants_gives_way(bart, given):
    """A source that a request in the queue wants too is let go for one that can begin."""
    sources = [[5] * 40, [6] * 40]
    same = bart.encode(sources[0]) if given else sources[0]
    alone = Driven(bart)
    need = alone.admission.predicted([alone.job(sources[0], num_beams=2, **FULL)])
    driven = Driven(bart, capacity_bytes=need.total + 3000, max_rows=2)
    first = driven.submit(sources[0], **FULL | {"max_new_tokens": 2})
    driven.worker.turn()
    last = driven.submit(same, num_beams=2, priority=-1, **FULL)
    between = driven.submit(sources[1], num_beams=2, **FULL)
    for worker in driven.turns():
        assert worker.held.total <= need.total + 3000
    assert all(ticket.error is None for ticket in (first, last, between))


def test_one_bad_source_is_its_own_request_s(bart, monkeypatch):
    plain = bart.network.encode_tokens

    def encode_tokens(ids):
        if any(66 in row for row in ids):
            raise InvalidSourceError("this one is bad")
        return plain(ids)

    monkeypatch.setattr(bart.network, "encode_tokens", encode_tokens)
    driven = Driven(bart)
    tickets = [driven.submit([5, n], **FULL) for n in range(64, 69)]
    driven.finish()
    for n, ticket in enumerate(tickets):
        if n == 2:
            with pytest.raises(InvalidSourceError, match="this one is bad"):
                ticket.result(0)
        else:
            assert len(ticket.result(0).tokens) == 12
    assert driven.worker.stats().failed == 1
    assert driven.worker.held.total == 0


def test_recordings_share_their_window_and_are_heard_once():
    """A multilingual Whisper asks its memory for the language; here a real English one."""
    model = xattn.load("whisper-tiny.en")
    samples = np.sin(np.arange(16000) * 0.05).astype(np.float32)
    want = model.generate(samples, max_new_tokens=8)
    before = counted(model)
    with xattn.Engine(model) as engine:
        tickets = [engine.submit(samples, max_new_tokens=8) for _ in range(4)]
        assert {ticket.result(60).tokens for ticket in tickets} == {want.tokens}
    assert tuple(b - a for a, b in zip(before, counted(model), strict=True)) == (1, 1)


def test_a_model_of_bfloat16_answers_too(load, tmp_path):
    import tiny

    tiny.make("bart", tmp_path)
    model = xattn.load(tmp_path, dtype="bfloat16")
    driven = Driven(model)
    tickets = [driven.submit([5, 6, 7 + n], [9] * (1 + 5 * n), **FULL) for n in range(3)]
    for worker in driven.turns():
        assert worker.held.total <= driven.admission.predicted(worker._running).total or (
            len(worker._running) < 3
        )
    assert all(len(ticket.result(0).tokens) == 12 for ticket in tickets)
    assert model.network.dtype == torch.bfloat16
