"""The words around passages and a question: what a model reads besides them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from xattn.errors import require
from xattn.inputs.text import Tokenizer
from xattn.library.passage import Passage

_NAMES = re.compile(r"\{title\}|\{heading\}")
MARK = "\N{REPLACEMENT CHARACTER}"
"""Stands for passages and question while a chat template is filled in."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A passage as a model reads it, and where its own text begins in that."""

    text: str
    start: int


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What stands before all passages, around each one, and around the question after them.

    ``passage`` has ``{text}`` in it, and may have ``{title}`` and ``{heading}``; ``question`` has
    ``{question}``.
    """

    before: str
    passage: str
    question: str
    forbidden: frozenset[str] = frozenset()
    """Spellings of control tokens, which no passage and no question may smuggle in."""

    def __post_init__(self) -> None:
        require("{text}" in self.passage, "passage", "with {text} in it", self.passage)
        require("{question}" in self.question, "question", "with {question} in it", self.question)

    def of_passage(self, passage: Passage) -> Written:
        """The passage between its words; its text has as many characters as before."""
        said = {"{title}": passage.title, "{heading}": " > ".join(passage.heading)}
        before, after = (
            _NAMES.sub(lambda name: self._harmless(said[name[0]]), part)
            for part in self.passage.split("{text}", 1)
        )
        return Written(text=before + self._harmless(passage.text) + after, start=len(before))

    def of_question(self, question: str) -> str:
        """The question between its words."""
        return self.question.replace("{question}", self._harmless(question))

    def _harmless(self, text: str) -> str:
        """``text`` with another first character in control tokens: a document gives no orders."""
        for token in self._longest_first:
            text = text.replace(token, MARK + token[1:])
        return text

    @cached_property
    def _longest_first(self) -> list[str]:
        return sorted(filter(None, self.forbidden), key=len, reverse=True)


SYSTEM = "You answer questions from the passages given."
INSTRUCTION = "Read the passages and answer the question in a few words."
PASSAGE = "Passage: {text}\n\n"
QUESTION = "Question: {question}"


def conversation(
    tokenizer: Tokenizer,
    *,
    system: str = SYSTEM,
    instruction: str = INSTRUCTION,
    passage: str = PASSAGE,
    question: str = QUESTION,
) -> Wording:
    """The wording of a model that converses, from its chat template.

    Raises :class:`UsageError` where the checkpoint has none.
    """
    messages = [{"role": "user", "content": f"{instruction}\n\n{MARK}{question}"}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    before, after = tokenizer.chat_text(messages).split(MARK, 1)
    return Wording(
        before=before, passage=passage, question=after, forbidden=tokenizer.control_tokens
    )


def continuation(tokenizer: Tokenizer) -> Wording:
    """The wording of a language model that was not taught to converse."""
    return Wording(
        before=f"{INSTRUCTION}\n\n",
        passage=PASSAGE,
        question=f"{QUESTION}\nAnswer:",
        forbidden=tokenizer.control_tokens,
    )


def joined(written: Iterable[Written]) -> tuple[str, list[int]]:
    """Passages as one text, and where the text of each begins in it."""
    text, starts = "", []
    for one in written:
        starts.append(len(text) + one.start)
        text += one.text
    return text, starts
