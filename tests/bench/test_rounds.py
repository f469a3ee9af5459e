"""Who is asked what, and in which order."""

from itertools import count

import pytest

from xattn.bench.rounds import (
    MOST_REPEATS,
    TURN_SECONDS,
    Turn,
    repeats_for,
    schedule,
    take_turns,
)

A, B = Turn("a", "warm"), Turn("b", "cold")


class Told:
    """A worker that notes what it was asked, and takes as long as it is told."""

    def __init__(self, name, log, seconds, outputs=((1,),), busy=0.0):
        self.name, self.log, self.seconds, self.busy = name, log, seconds, busy
        self.outputs, self.asked = outputs, count()

    def ask(self, do, *, measure, repeats, discard):
        self.log.append((self.name, measure, repeats, discard))
        output = self.outputs[min(next(self.asked), len(self.outputs) - 1)]
        return {"seconds": [self.seconds] * repeats, "outputs": list(output)}

    def cpu_seconds(self):
        self.busy *= 2
        return self.busy


def run(rounds=3, **workers):
    log, rests = [], []
    made = {name: Told(name, log, **how) for name, how in workers.items()}
    turns = [turn for turn in (A, B) if turn.engine in made]
    return take_turns(made, turns, rounds, rest=rests.append), log, rests


def test_turns_alternate():
    assert [turn.engine for _, turn in schedule([A, B], 3)] == list("ababab")


def test_workers_are_asked_alternately_and_rest_before_each_turn():
    found, log, rests = run(a={"seconds": 2.0}, b={"seconds": 2.0})
    assert [name for name, *_ in log] == ["a", "b", *"ababab"]
    assert len(rests) == 6
    assert [len(taken.seconds) for taken in found.taken.values()] == [3, 3]


def test_short_calls_are_repeated_and_warmed_up_and_the_warming_does_not_count():
    found, log, _ = run(rounds=1, a={"seconds": 0.05}, b={"seconds": 2.0})
    assert log == [
        ("a", "warm", 1, 0),
        ("a", "warm", 1, 0),  # the first one allocates
        ("b", "cold", 1, 0),
        ("a", "warm", 6, 1),
        ("b", "cold", 1, 0),
    ]
    assert found.taken[A].seconds == [0.05]


def test_repeats_fill_a_turn_within_bounds():
    assert repeats_for(10 * TURN_SECONDS) == 1
    assert repeats_for(TURN_SECONDS / 2) == 2
    assert repeats_for(0.0) == MOST_REPEATS


def test_outputs_of_all_rounds_are_kept_where_they_differ():
    found, _, _ = run(a={"seconds": 2.0, "outputs": [[[1]], [[1]], [[2]]]})
    assert found.taken[A].outputs == [[[1]], [[2]]]


def test_processor_time_of_those_who_wait_is_counted():
    found, _, _ = run(rounds=1, a={"seconds": 2.0}, b={"seconds": 2.0, "busy": 1.0})
    # b used 2 s before and 4 s after the turn of a; a uses nothing.
    assert found.idle_seconds == pytest.approx(2.0)
