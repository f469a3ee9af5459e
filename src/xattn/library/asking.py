"""From a question and its passages to an answer with citations."""

from collections.abc import Mapping, Sequence
from typing import Any

from xattn.errors import require
from xattn.library.answer import Answer
from xattn.library.calibration import Calibration, calibration_of
from xattn.library.citing import cite
from xattn.library.passage import Passage
from xattn.library.readers import Asked, Reader

NEW_TOKENS = 64
"""Tokens of an answer, where nobody says."""
SETTINGS: Mapping[str, Any] = {"max_new_tokens": NEW_TOKENS}


def answer(
    reader: Reader,
    question: str,
    passages: Sequence[Passage],
    *,
    calibration: Calibration | None = None,
    **settings: Any,
) -> Answer:
    """What the reader answers from these passages, the most relevant first, and why.

    ``settings`` are those of :meth:`Model.generate <xattn.Model.generate>`. Raises
    :class:`UsageError` for an empty question, and :class:`~xattn.PromptError` where question and
    passages together are longer than the model reads.
    """
    require_question(question)
    before = reader.model.counters.encoder_passes
    asked = reader.ask(question, passages)
    generation = reader.model.generate(
        asked.memories, asked.prompt, parallel=asked.parallel, **{**SETTINGS, **settings}
    )
    passes = reader.model.counters.encoder_passes - before
    return explained(reader, question, passages, asked, generation, passes, calibration)


def explained(
    reader: Reader,
    question: str,
    passages: Sequence[Passage],
    asked: Asked,
    generation: Any,
    encoder_passes: int,
    calibration: Calibration | None = None,
) -> Answer:
    """A generation as an answer, with what it rests on."""
    if calibration is None:
        calibration = calibration_of(reader.model, reader.name)
    grounds = cite(reader.model, asked, passages, generation, calibration)
    return Answer(
        question=question,
        text=generation.text,
        tokens=grounds.tokens,
        sentences=grounds.sentences,
        citations=grounds.citations,
        passages=tuple(passages),
        generation=generation,
        reader=reader.name,
        encoder_passes=encoder_passes,
    )


def require_question(question: object) -> None:
    """Raise :class:`UsageError` for a question that is none."""
    asks = isinstance(question, str) and bool(question.strip())
    require(asks, "question", "text that asks something", question)
