"""An engine that is driven turn by turn, without a thread."""

import random
from dataclasses import dataclass, field

import tiny

import xattn
from xattn.decoding.asking import Question
from xattn.engine.admission import Admission, Bounds
from xattn.engine.worker import Worker


@dataclass
class Driven:
    """An engine without a thread, which does one turn at a time."""

    model: xattn.Model
    form: str = "materialized"
    capacity_bytes: int | None = None
    max_rows: int = 64
    max_queue: int = 1024
    worker: Worker = field(init=False)

    def __post_init__(self):
        bounds = Bounds(
            capacity_bytes=self.capacity_bytes, max_rows=self.max_rows, max_queue=self.max_queue
        )
        admission = Admission(self.model.network, self.form, bounds)
        self.admission, self.worker = admission, Worker(self.model, self.form, admission)

    def submit(
        self, memory=None, prompt=None, *, tenant="", priority=0, deadline_seconds=None, **settings
    ):
        job = self.job(memory, prompt, **settings)
        self.worker.submit(
            job, tenant=tenant, priority=priority, deadline_seconds=deadline_seconds, wait=True
        )
        return job.ticket

    def job(self, memory=None, prompt=None, **settings):
        return self.worker.desk.job(memory, Question(prompt=prompt), settings)

    def turns(self, most=10_000):
        """Turns until nothing is left; yields after each."""
        for _ in range(most):
            if self.worker.idle:
                return
            self.worker.turn()
            yield self.worker
        raise AssertionError(f"not done after {most} turns")

    def finish(self):
        return sum(1 for _ in self.turns())


def source_of(rng: random.Random, most: int = 30) -> list[int]:
    return [rng.randrange(3, tiny.VOCAB) for _ in range(rng.randint(2, most))]
