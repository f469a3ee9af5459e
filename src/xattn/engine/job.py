"""One request as the engine sees it, from its submission to its end."""

import math
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from xattn.decoding.asking import Question
from xattn.decoding.batch import Plan, plan_after
from xattn.decoding.course import Course
from xattn.decoding.request import Request
from xattn.decoding.search import course_of
from xattn.decoding.settings import Settings
from xattn.engine.memories import Memories, Shared
from xattn.engine.ticket import Ticket
from xattn.errors import require
from xattn.memory import Memory
from xattn.model import Model, Source, entry_items
from xattn.models.adapters import names_for, require_made_without, used_adapters
from xattn.models.parallel import Parallel, layout

NO_LOOKUP = "None in an engine, whose steps are shared by sequences that guess differently"

READ_AT_ONCE = 8
"""Tokens of a prompt, or positions of a source, that cost about what one row's step does."""


@dataclass(kw_only=True, eq=False)
class Job:
    """A request in an engine."""

    ticket: Ticket
    question: Question
    settings: Settings
    plan: Plan
    """Its prompt and how many tokens may follow; the memories are those of :attr:`reads`."""
    reads: list[Shared]
    detects: bool
    """The language of its prompt is not known before its memory is heard."""
    course: Course
    tenant: str = ""
    priority: int = 0
    deadline_seconds: float | None = None
    begun: bool = False
    used: float = 0.0
    """What its tenant has used for it so far, in steps of one row."""
    submitted: float = field(default_factory=time.monotonic)

    @property
    def prompt(self) -> tuple[int, ...]:
        """Decoder tokens that it continues."""
        return self.plan.requests[0].prompt

    @property
    def adapter(self) -> str | None:
        """What it is computed with."""
        return self.question.adapter

    @property
    def parallel(self) -> Parallel:
        """How it reads several memories of keys and values."""
        return self.plan.requests[0].parallel

    @property
    def rows(self) -> int:
        """Sequences that it has at most."""
        settings = self.settings
        return settings.num_beams if settings.num_beams > 1 else settings.num_return_sequences

    @property
    def tokens(self) -> int:
        """Tokens of each row that the decoder is fed at most: all but the last."""
        return len(self.prompt) + self.plan.limits[0] - 1

    @cached_property
    def cost(self) -> float:
        """Steps of one row that it takes at most; found once, since as much is given back."""
        encoded = sum(shared.positions for shared in self.reads if not shared.is_given)
        return self.rows * self.plan.limits[0] + steps_for(len(self.prompt) + encoded)

    @property
    def positions(self) -> int:
        """Positions of all its memories."""
        return sum(shared.positions for shared in self.reads)

    @property
    def deadline(self) -> float:
        """When its time is over, by :func:`time.monotonic`."""
        seconds = math.inf if self.deadline_seconds is None else self.deadline_seconds
        return self.submitted + seconds

    @property
    def streams(self) -> bool:
        """Whether its tokens are certain as soon as they are chosen."""
        return self.rows == 1


def steps_for(tokens: int) -> float:
    """What it costs to read a prompt or encode a source, of which many tokens are taken at once."""
    return tokens / READ_AT_ONCE


class Desk:
    """Takes requests for one model: what is wrong with them is said at once."""

    def __init__(self, model: Model, memories: Memories) -> None:
        self._model, self._memories = model, memories
        self._digests = model.sources.digests  # once: it costs a look at the weights

    def job(
        self,
        memory: Memory | list[Memory] | Source | None,
        question: Question,
        given: dict[str, Any],
    ) -> Job:
        """The request as a job, with nothing encoded. Raises as ``Model.generate`` does."""
        model = self._model
        settings = model.settings(given)
        require(settings.prompt_lookup_num_tokens is None, "prompt_lookup_num_tokens", NO_LOOKUP,
                settings.prompt_lookup_num_tokens)  # fmt: skip
        again = 0.0 if question.parallel is None else question.parallel.recompute
        require(not again, "recompute", "0 in an engine, whose steps are shared", again)
        names_for(model.network, [question.adapter])
        used = used_adapters(model.network)
        require(len(used) <= 1, "model", "set to one adapter at most, for an engine", used)
        items = [] if memory is None else entry_items(memory)
        detects = bool(items) and model.asker.detects(question)
        reads = self._read(items, question)
        # Every language has one token: any will do to count them.
        counted = replace(question, language="en") if detects else question
        prompt, settings = model.asker.prompt(len(reads), counted, settings, None)
        planned = self._planned(prompt, reads, counted, settings)
        return Job(
            ticket=Ticket(settings, model.asker.known_tokenizer),
            question=question,
            settings=settings,
            plan=planned,
            reads=reads,
            detects=detects,
            course=self._course(planned, settings),
        )

    def hear(self, job: Job) -> None:
        """Find out the language of a job whose memory is there."""
        [first, *_] = job.reads
        prompt, settings = self._model.asker.prompt(
            len(job.reads), job.question, job.settings, first.projection
        )
        assert len(prompt) == len(job.prompt)
        job.plan = self._planned(prompt, job.reads, job.question, settings)
        job.course, job.detects = self._course(job.plan, settings), False

    def _read(self, items: list[Any], question: Question) -> list[Shared]:
        model = self._model
        for item in items:
            if isinstance(item, Memory):
                model.require_own([item], self._digests)
        raw = [item for item in items if not isinstance(item, Memory)]
        if raw:
            require_made_without(model.sources.makers, [question.adapter])
        source_language = None if model.asker.reads_audio else question.language
        prepared = iter(model.prepare_batch(raw, language=source_language) if raw else ())
        return [
            self._memories.shared(
                item if isinstance(item, Memory) else next(prepared), question.adapter
            )
            for item in items
        ]

    def _planned(
        self, prompt: tuple[int, ...], reads: list[Shared], question: Question, settings: Settings
    ) -> Plan:
        parallel = question.parallel or Parallel()
        before = [shared.stand for shared in reads if shared.holds_kv]
        _, offset = layout(before, parallel)
        request = Request(prompt, parallel=parallel)
        return plan_after(self._model.spec, [request], [offset], settings)

    def _course(self, planned: Plan, settings: Settings) -> Course:
        tokenizer = self._model.asker.known_tokenizer
        return course_of(self._model.network, planned, settings, tokenizer)
