"""From a question and its passages to an answer with citations."""

from collections.abc import Mapping, Sequence
from typing import Any

from xattn.engine import Engine, Ticket
from xattn.errors import PromptError, UsageError, require
from xattn.generation import Generation
from xattn.library.answer import Answer
from xattn.library.calibration import Calibration, calibration_of
from xattn.library.citing import cite
from xattn.library.passage import Passage
from xattn.library.readers import Asked, Reader
from xattn.models.network import positions_before
from xattn.models.parallel import Parallel

AT_ONCE = 32
"""Questions whose memories are held at a time."""
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

    Memories of at most :data:`AT_ONCE` questions are held at a time; ``capacity_bytes`` bounds what
    those in flight may take (:class:`~xattn.Engine`). Where passages are read again with the
    question in sight, each question is answered by itself. Raises as :func:`answer`.
    """
    for question, _ in questions:
        require_question(question)
    how = getattr(reader, "how", None)
    if isinstance(how, Parallel) and how.recompute:
        return [
            answer(reader, question, passages, calibration=calibration, **settings)
            for question, passages in questions
        ]
    found: list[Answer] = []
    with Engine(reader.model, capacity_bytes=capacity_bytes) as engine:
        for first in range(0, len(questions), AT_ONCE):
            some = questions[first : first + AT_ONCE]
            handed_in = [_handed_in(engine, reader, *one, settings) for one in some]
            said = [(asked, ticket.result(), passes) for asked, ticket, passes in handed_in]
            found += [
                explained(reader, *one, asked, generation, passes, calibration)
                for one, (asked, generation, passes) in zip(some, said, strict=True)
            ]
    return found


def _handed_in(
    engine: Engine,
    reader: Reader,
    question: str,
    passages: Sequence[Passage],
    settings: Mapping[str, Any],
) -> tuple[Asked, Ticket, int]:
    """A question in flight, and the encoder passes that its passages took."""
    before = reader.model.counters.encoder_passes
    asked = _asked(reader, question, passages)
    passes = reader.model.counters.encoder_passes - before
    ticket = engine.submit(
        list(asked.memories), asked.prompt, parallel=asked.parallel, **{**SETTINGS, **settings}
    )
    return asked, ticket, passes


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
    assert isinstance(question, str)
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"`question` must be Unicode text, but is {question!a}.") from error
