"""Readers side by side on questions whose answers are known."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

from xattn.library.asking import answer
from xattn.library.passage import Passage
from xattn.library.readers import Reader, Search
from xattn.library.squad import Question, auc, contains, exact_match, f1

FIRST_TOKENS = 16
"""Questions on which the time to the first token is taken."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One reader on all questions. Rates are shares of 1; times are medians, in seconds."""

    reader: str
    k: int
    questions: int
    contains_answer: float
    exact_match: float
    f1: float
    citation_precision: float
    """Of the answers that are right and cite, those whose first citation has the answer in it."""
    cited: float
    """Of the answers that are right, those that cite anything."""
    support_auc: float | None
    """Chance that a right answer is better supported than a wrong one."""
    cold_first_token_seconds: float
    """From the question to the first token, no passage being encoded yet."""
    warm_first_token_seconds: float
    """The same with all passages in memory."""
    answer_seconds: float
    encoder_passes: int
    """When questions were asked, passages and prefixes that had to be encoded."""
    memory_bytes: int
    """What one question attends to: a median."""

    def to_dict(self) -> dict[str, Any]:
        """Names and numbers."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Found:
    """How retrieval did: the share of questions whose paragraph is among the first k."""

    recall: dict[int, float]


def recall_of(
    search: Search, questions: Sequence[Question], texts: Sequence[str], ks: Sequence[int]
) -> Found:
    """Recall at each k; ``texts`` are those of the paragraphs."""
    most, hits = max(ks), dict.fromkeys(ks, 0)
    for question in questions:
        wanted = texts[question.paragraph]
        places = [n for n, p in enumerate(search(question.text, most)) if holds(p, wanted)]
        for k in ks:
            hits[k] += bool(places) and places[0] < k
    return Found(recall={k: hits[k] / len(questions) for k in ks})


def holds(passage: Passage, text: str) -> bool:
    """Whether a passage is of a paragraph, or the paragraph of it."""
    mine, theirs = " ".join(passage.text.split()), " ".join(text.split())
    return mine in theirs or theirs in mine


def evaluate(
    reader: Reader,
    search: Search,
    questions: Sequence[Question],
    *,
    k: int,
    forget: Callable[[], None],
    progress: Callable[[int], None] = lambda done: None,
    **settings: Any,
) -> Scores:
    """Ask everything. ``forget`` empties the store, so that the cold time can be taken."""
    cold = list(_first_tokens(reader, search, questions[:FIRST_TOKENS], k, before=forget))
    warm = list(_first_tokens(reader, search, questions[:FIRST_TOKENS], k))
    before = reader.model.counters.encoder_passes
    rows = []
    for done, question in enumerate(questions):
        rows.append(_scored(reader, question, search(question.text, k), settings))
        progress(done + 1)
    passes = reader.model.counters.encoder_passes - before
    good = [row for row in rows if row.right]
    citing = [row for row in good if row.precise is not None]
    return Scores(
        reader=reader.name,
        k=k,
        questions=len(rows),
        contains_answer=_rate([row.right for row in rows]),
        exact_match=_rate([row.exact for row in rows]),
        f1=mean(row.f1 for row in rows),
        citation_precision=_rate([bool(row.precise) for row in citing]),
        cited=len(citing) / max(1, len(good)),
        support_auc=auc([row.support for row in rows], [row.right for row in rows]),
        cold_first_token_seconds=median(cold),
        warm_first_token_seconds=median(warm),
        answer_seconds=median(row.seconds for row in rows),
        encoder_passes=passes,
        memory_bytes=int(median(_bytes(reader, search, q, k) for q in questions[:FIRST_TOKENS])),
    )


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """One answer."""

    right: bool
    exact: bool
    f1: float
    precise: bool | None
    """Whether the first citation has the answer in it; None without one."""
    support: float
    seconds: float


def _scored(
    reader: Reader, question: Question, passages: Sequence[Passage], settings: Mapping[str, Any]
) -> _Scored:
    started = time.perf_counter()
    found = answer(reader, question.text, passages, **settings)
    seconds, answers = time.perf_counter() - started, question.answers
    quote = found.citations[0].quote if found.citations else None
    return _Scored(
        right=contains(found.text, answers),
        exact=exact_match(found.text, answers),
        f1=f1(found.text, answers),
        precise=None if quote is None else contains(quote, answers),
        support=max((sentence.support for sentence in found.sentences), default=0.0),
        seconds=seconds,
    )


def _rate(found: Sequence[bool]) -> float:
    return sum(found) / max(1, len(found))


def _first_tokens(
    reader: Reader,
    search: Search,
    questions: Sequence[Question],
    k: int,
    before: Callable[[], None] = lambda: None,
) -> Iterator[float]:
    """Seconds from having the passages to the first token, for each question."""
    for question in questions:
        passages = search(question.text, k)
        before()
        started = time.perf_counter()
        asked = reader.ask(question.text, passages)
        reader.model.generate(
            asked.memories, asked.prompt, parallel=asked.parallel, max_new_tokens=1
        )
        yield time.perf_counter() - started


def _bytes(reader: Reader, search: Search, question: Question, k: int) -> int:
    asked = reader.ask(question.text, search(question.text, k))
    return sum(memory.size_bytes for memory in asked.memories)
