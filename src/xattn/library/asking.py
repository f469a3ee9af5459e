"""From a question and its passages to an answer with citations."""

from collections.abc import Mapping, Sequence
from typing import Any

from xattn.engine import Engine, Ticket
from xattn.errors import PromptError, require
from xattn.generation import Generation
from xattn.library.answer import Answer
from xattn.library.calibration import Calibration, calibration_of
from xattn.library.citing import cite
from xattn.library.passage import Passage
from xattn.library.readers import Asked, Reader
from xattn.models.network import positions_before
from xattn.models.parallel import Parallel

NEW_TOKENS = 64
"""Tokens of an answer, where nobody says."""
SETTINGS: Mapping[str, Any] = {
    "max_new_tokens": NEW_TOKENS,
    "stop_strings": ["\n\n"],
    "no_repeat_ngram_size": 8,
}
"""One paragraph, in which small models do not go round in circles."""


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
    asked = _asked(reader, question, passages)
    generation = reader.model.generate(
        asked.memories, asked.prompt, parallel=asked.parallel, **{**SETTINGS, **settings}
    )
    passes = reader.model.counters.encoder_passes - before
    return explained(reader, question, passages, asked, generation, passes, calibration)


def answers(
    reader: Reader,
    questions: Sequence[tuple[str, Sequence[Passage]]],
    *,
    calibration: Calibration | None = None,
    capacity_bytes: int | None = None,
    **settings: Any,
) -> list[Answer]:
    """Many questions, each with its passages, decoded at once; a passage in several is one tensor.

    ``capacity_bytes`` bounds what those in flight may take (:class:`~xattn.Engine`). Raises as
    :func:`answer`, before anything is decoded.
    """
    for question, _ in questions:
        require_question(question)
    counters = reader.model.counters
    handed_in: list[tuple[Asked, Ticket, int]] = []
    with Engine(reader.model, capacity_bytes=capacity_bytes) as engine:
        for question, passages in questions:
            before = counters.encoder_passes
            asked = _asked(reader, question, passages)
            passes = counters.encoder_passes - before
            ticket = engine.submit(
                list(asked.memories),
                asked.prompt,
                parallel=asked.parallel,
                **{**SETTINGS, **settings},
            )
            handed_in.append((asked, ticket, passes))
        found = [ticket.result() for _, ticket, _ in handed_in]
    return [
        explained(reader, question, passages, asked, generation, passes, calibration)
        for (question, passages), (asked, _, passes), generation in zip(
            questions, handed_in, found, strict=True
        )
    ]


def explained(
    reader: Reader,
    question: str,
    passages: Sequence[Passage],
    asked: Asked,
    generation: Generation,
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


def _asked(reader: Reader, question: str, passages: Sequence[Passage]) -> Asked:
    """The request, if the model has room for it and an answer."""
    asked = reader.ask(question, passages)
    limit, prompt = reader.model.spec.decoder.position.limit, len(asked.prompt or ())
    before = positions_before(asked.memories, asked.parallel or Parallel())
    if limit is not None and before + prompt >= limit:
        raise PromptError(
            f"the question has {prompt} tokens with the words around it and comes after "
            f"{len(passages)} passages of {before} positions, but the model has {limit}; ask a "
            "shorter one, or of fewer passages."
        )
    return asked


def require_question(question: object) -> None:
    """Raise :class:`UsageError` for a question that is none."""
    asks = isinstance(question, str) and bool(question.strip())
    require(asks, "question", "text that asks something", question)
