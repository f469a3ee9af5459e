"""Who is next, without an engine."""

import random
from collections import Counter

import pytest

from xattn.engine.scheduler import REMEMBERED, Scheduler


def everything(_):
    return True


def order(scheduler):
    found = []
    while (item := scheduler.next(everything)) is not None:
        found.append(item)
    return found


def test_first_come_first_served_within_a_tenant():
    scheduler = Scheduler()
    for n in range(10):
        scheduler.push(n)
    assert order(scheduler) == list(range(10))


def test_higher_priorities_go_first():
    scheduler = Scheduler()
    for n in range(30):
        scheduler.push((n % 3, n), priority=n % 3)
    assert order(scheduler) == sorted(order_of(30), key=lambda item: (-item[0], item[1]))


def order_of(count):
    return [(n % 3, n) for n in range(count)]


def test_tenants_take_turns_whatever_they_handed_in():
    scheduler = Scheduler()
    for n in range(90):
        scheduler.push("many", tenant="many")
        if n % 9 == 0:
            scheduler.push("few", tenant="few")
    first = [scheduler.next(everything) for _ in range(20)]
    assert Counter(first) == {"many": 10, "few": 10}


def test_tenants_get_equal_shares_of_what_is_used():
    """One tenant's requests take four times as long."""
    scheduler, rng, used = Scheduler(), random.Random(0), Counter()
    steps = {"long": 40, "short": 10}
    for _ in range(400):
        for tenant, expected in steps.items():
            scheduler.push(tenant, tenant=tenant, cost=2 * expected)
    running = []
    for _ in range(1200):
        while len(running) < 6 and (item := scheduler.next(everything)) is not None:
            length = rng.randint(1, 2 * steps[item])
            running.append([item, length, 2 * steps[item] - length])
        for slot in running:
            used[slot[0]] += 1
            slot[1] -= 1
        for slot in [slot for slot in running if slot[1] == 0]:
            running.remove(slot)
            scheduler.end(slot[0], cost=2 * steps[slot[0]], used=slot[2])
    assert used["long"] == pytest.approx(used["short"], rel=0.1)


def test_nobody_saves_up_by_being_away():
    scheduler = Scheduler()
    scheduler.push("b", tenant="b", cost=300)
    scheduler.next(everything)
    scheduler.end("b", cost=300, used=300)
    for _ in range(30):
        scheduler.push("a", tenant="a", cost=300)
    for _ in range(10):
        scheduler.next(everything)
        scheduler.end("a", cost=300, used=300)
    for _ in range(50):
        scheduler.push("b", tenant="b", cost=300)
    first = [scheduler.next(everything) for _ in range(10)]
    assert first.count("a") in (4, 5)


@pytest.mark.parametrize("late", ["new", "low"])
def test_who_comes_later_gets_its_share_though_others_use_little_of_what_they_reserve(late):
    """Also where one waits at a low priority that has used nothing, or has one small item run."""
    scheduler, cost, used = Scheduler(), 444, 30
    if late == "low":
        scheduler.push("c", tenant="c", cost=10**6)
        scheduler.next(everything)
        scheduler.push("c", tenant="c", priority=-1)
    for _ in range(1000):
        scheduler.push("a", tenant="a", cost=cost)
    for _ in range(300):
        scheduler.next(everything)
        scheduler.end("a", cost=cost, used=used)
    running = [scheduler.next(everything) for _ in range(64)]
    for _ in range(1000):
        scheduler.push("b", tenant="b", cost=cost)
    begun = []
    for _ in range(256):
        scheduler.end(running.pop(0), cost=cost, used=used)
        begun.append(scheduler.next(everything))
        running.append(begun[-1])
    first, then = Counter(begun[:128]), Counter(begun[128:])
    assert 44 <= first["a"] <= 64 <= first["b"]
    assert 60 <= then["a"] <= 68


def test_nobody_gets_rid_of_what_it_used_by_leaving():
    scheduler = Scheduler()
    for tenant in "ab":
        scheduler.push(tenant, tenant=tenant, cost=100 if tenant == "a" else 1)
    assert order(scheduler) == ["a", "b"]
    scheduler.end("a", cost=100, used=100)
    for _ in range(20):
        scheduler.push("a", tenant="a")
        scheduler.push("b", tenant="b")
    assert [scheduler.next(everything) for _ in range(15)] == ["b"] * 15


def test_a_large_one_is_overtaken_so_often_and_no_more():
    scheduler = Scheduler(patience=5)
    scheduler.push("large")
    for n in range(20):
        scheduler.push(n)
    small = [scheduler.next(lambda item: item != "large") for _ in range(8)]
    assert small == [0, 1, 2, 3, 4, None, None, None]  # the place is kept for it
    assert scheduler.next(everything) == "large"
    assert scheduler.next(everything) == 5


def test_a_low_priority_does_not_wait_for_ever():
    scheduler = Scheduler(patience=10)
    scheduler.push("low", priority=-1)
    begun = []
    for n in range(15):
        scheduler.push(n, priority=9)
        begun.append(scheduler.next(everything))
    assert begun == [*range(10), "low", *range(10, 14)]


def test_many_that_wait_long_do_not_displace_a_higher_priority():
    """One of them begins now and then; the stream of urgent ones has the rest."""
    scheduler, begun = Scheduler(patience=10), []
    for n in range(300):
        scheduler.push("low", tenant=f"low {n}")
    for _ in range(330):
        scheduler.push("live", tenant="live", priority=10)
        begun.append(scheduler.next(everything))
    assert Counter(begun) == {"live": 300, "low": 30}


def test_of_those_that_wait_long_the_tenant_goes_first_that_used_least():
    scheduler, begun = Scheduler(patience=5), []
    scheduler.push("greedy", tenant="greedy", cost=50)
    scheduler.next(everything)
    for tenant in ("greedy", "modest"):
        scheduler.push(tenant, tenant=tenant)
    for _ in range(12):
        scheduler.push("live", tenant="live", priority=1)
        begun.append(scheduler.next(everything))
    assert [one for one in begun if one != "live"] == ["modest", "greedy"]


def test_what_is_taken_out_does_not_begin():
    scheduler = Scheduler()
    for n in range(6):
        scheduler.push(n, tenant=str(n))
    assert scheduler.remove(lambda n: n % 2 == 0) == [0, 2, 4]
    assert len(scheduler) == 3
    assert order(scheduler) == [1, 3, 5]


def test_tenants_that_are_gone_are_forgotten():
    scheduler = Scheduler()
    for n in range(1000):
        scheduler.push(n, tenant=str(n), cost=n)
        assert scheduler.next(everything) == n
        scheduler.end(str(n), cost=n)
    assert not scheduler._lines


def test_tenants_that_come_once_are_forgotten_also_where_others_stay():
    scheduler = Scheduler()
    scheduler.push("stays", tenant="stays")
    scheduler.next(everything)
    for n in range(3000):
        scheduler.push(n, tenant=str(n))
        scheduler.next(everything)
        scheduler.end(str(n))
    assert len(scheduler._lines) <= 1 + REMEMBERED
