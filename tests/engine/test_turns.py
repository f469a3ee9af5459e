"""Who gets the turns of an engine, driven one by one."""

from collections import Counter

from driven import Driven

from xattn.engine import flight, worker

LONG = dict(eos_token_id=(), max_new_tokens=50)
SHORT = dict(eos_token_id=(), max_new_tokens=5)


def test_higher_priorities_begin_first(bart):
    driven = Driven(bart, max_rows=1)
    tickets = {n: driven.submit([5, 6, 7 + n], priority=n % 3, **SHORT) for n in range(9)}
    order = []
    for _ in driven.turns():
        order += [n for n, ticket in tickets.items() if ticket.done and n not in order]
    assert order == [2, 5, 8, 1, 4, 7, 0, 3, 6]


def test_tenants_get_equal_shares_of_the_steps(bart):
    """One hands in five times as much, in requests that are ten times as long."""
    driven, tickets = Driven(bart, max_rows=4), []
    for n in range(100):
        if n % 2 == 0:
            tickets.append(("greedy", driven.submit([5, 6, 7], tenant="greedy", **LONG)))
        tickets.append(("modest", driven.submit([5, 6, 7], tenant="modest", **SHORT)))
    shares = []
    for _ in driven.turns():
        chosen = Counter()
        for tenant, ticket in tickets:
            chosen[tenant] += len(ticket.tokens)
        if 300 < chosen["greedy"] < 450:
            shares.append(chosen["modest"] / chosen["greedy"])
    assert all(0.7 < share < 1.4 for share in shares)
    assert 0.85 < sum(shares) / len(shares) < 1.15


def test_a_large_request_begins_although_small_ones_keep_coming(bart):
    driven = Driven(bart, max_rows=4)
    for n in range(4):
        driven.submit([5, 6, 7 + n], **SHORT | {"max_new_tokens": 2 + n})
    driven.worker.turn()
    large, begun_before = driven.submit([5, 6], num_beams=4, **SHORT), 0
    for n in range(1000):
        driven.submit([5, 6, 7 + n % 50], **SHORT | {"max_new_tokens": 1 + n % 7})
        driven.worker.turn()
        if large.done:
            break
        begun_before = driven.worker.stats().finished
    assert large.done
    assert begun_before < driven.worker.scheduler.patience + 20
    driven.finish()


def test_a_long_prompt_holds_nobody_up(load, monkeypatch):
    """Others get a token in every turn while it is read, a piece at a time."""
    monkeypatch.setattr(worker, "CHUNK", 8)
    monkeypatch.setattr(flight, "CHUNK", 8)
    model = load("llama")
    driven = Driven(model)
    running = driven.submit(None, [5, 6], **LONG)
    driven.worker.turn()
    prompt = [7 + n % 80 for n in range(60)]
    long, turns = driven.submit(None, prompt, **SHORT), 0
    while not long.tokens:
        driven.worker.turn()
        turns += 1
        assert len(running.tokens) == 1 + turns
    assert turns >= 60 // 8
    driven.finish()
    assert long.result(0).tokens == model.generate(None, prompt, **SHORT).tokens
    assert running.result(0).tokens == model.generate(None, [5, 6], **LONG).tokens


def test_long_prompts_are_read_in_the_order_of_priority_and_use(load):
    driven = Driven(load("llama"))
    read = dict(eos_token_id=(), max_new_tokens=1)
    tickets = {
        name: driven.submit(None, [5 + n] * 90, tenant=name.rstrip("0123"), priority=p, **read)
        for n, (name, p) in enumerate({"a1": 0, "a2": 0, "a3": 0, "urgent": 2}.items())
    }
    driven.worker._let_in()
    driven.worker._board(driven.worker._arrived())
    tickets["b"] = driven.submit(None, [20] * 90, tenant="b", **read)
    order = []
    for _ in driven.turns():
        order += [name for name, ticket in tickets.items() if ticket.done and name not in order]
    assert order.index("urgent") < order.index("a2")
    assert order.index("b") < order.index("a3")


def test_prompts_and_sources_count_for_a_share(bart):
    """A tenant that has everything encoded, and long prompts read, has fewer turns for it."""
    driven, begun = Driven(bart, max_rows=1), []
    few = dict(eos_token_id=(), max_new_tokens=4)
    memory = bart.encode([5, 6])
    for n in range(12):
        large = driven.submit([5 + n] * 60, [6] * 36, tenant="large", **few)
        small = driven.submit(memory, tenant="small", **few)
        begun += [("large", large), ("small", small)]
    while sum(ticket.done for _, ticket in begun) < 12:
        driven.worker.turn()
    done = Counter(name for name, ticket in begun if ticket.done)
    assert done["small"] >= 3 * done["large"]


def test_requests_that_come_together_take_their_steps_together(bart):
    before = bart.counters.steps
    driven = Driven(bart)
    for n in range(12):
        driven.submit([5, 6, 7 + n], [9, 8], **SHORT)
    driven.finish()
    assert bart.counters.steps - before == driven.worker.stats().steps == 5
    assert driven.worker.stats().tokens == 12 * 5


def test_one_that_comes_later_costs_no_step_of_its_own(bart):
    driven = Driven(bart)
    driven.submit([5, 6, 7], **LONG)
    for _ in range(3):
        driven.worker.turn()
    late = driven.submit([5, 6, 8], [9, 8, 7], **SHORT)
    driven.finish()
    assert driven.worker.stats().steps == 50
    assert late.result(0).tokens == bart.generate([5, 6, 8], [9, 8, 7], **SHORT).tokens
