"""Readers for decoder-only language models: passages as memories, and passages as a prompt."""

from collections.abc import Iterable, Sequence

from xattn.errors import require
from xattn.library.passage import Passage
from xattn.library.readers.base import Asked, Place
from xattn.library.wording import Wording, Written, continuation, conversation, joined
from xattn.memory import Memory
from xattn.model import Model
from xattn.models.encode import Prepared
from xattn.models.parallel import Parallel


class _LanguageReader:
    """What both have: words, a prefix that is read once, and the question as the prompt.

    Passages stand in the prompt with the most relevant one last, next to the question: small
    models answer better from what is near (Liu et al. 2024, arXiv 2307.03172).
    """

    def __init__(self, model: Model, wording: Wording | None = None) -> None:
        require(model.spec.encoder is None, "model", "decoder-only for this reader", model)
        self.model = model
        self.wording = wording_of(model) if wording is None else wording

    @property
    def prefix(self) -> Memory:
        """What stands before all passages."""
        return self.model.remembered([self.model.prepare(self.wording.before)])[0]

    def _prompt(self, question: str) -> tuple[int, ...]:
        words = self.wording.of_question(question)
        return tuple(self.model.tokenizer.encode_plain(words).ids)


SHARPENED = Parallel(temperature=0.9)
"""How several passages are read: a little more sharply than one, as they did not see each other."""


class ParallelReader(_LanguageReader):
    """Each passage is a memory of its own, made behind the prefix and kept, whatever is asked.

    ``how`` is in what way several are read. One is read as the plain prompt is.
    """

    name = "parallel"

    def __init__(
        self, model: Model, wording: Wording | None = None, *, how: Parallel | None = None
    ) -> None:
        super().__init__(model, wording)
        self.how = SHARPENED if how is None else how

    def sources(self, passages: Sequence[Passage]) -> list[Prepared]:
        """The passages between their words, behind the prefix."""
        return self._prepared(map(self.wording.of_passage, passages), self.prefix)

    def _prepared(self, written: Iterable[Written], before: Memory) -> list[Prepared]:
        return self.model.prepare_batch([one.text for one in written], behind=before)

    def ask(self, question: str, passages: Sequence[Passage]) -> Asked:
        """The prefix, the passages with the most relevant last, and the question as prompt."""
        before, last = self.prefix, len(passages)
        written = [self.wording.of_passage(passage) for passage in passages]
        memories = self.model.remembered(self._prepared(written, before))
        return Asked(
            memories=(before, *reversed(memories)),
            prompt=self._prompt(question),
            parallel=self.how if last > 1 else Parallel(),
            places=tuple(Place(memory=last - j, start=w.start) for j, w in enumerate(written)),
        )


class PlainReader(_LanguageReader):
    """All passages are read anew for every question, after a prefix that is kept."""

    name = "plain"

    def sources(self, passages: Sequence[Passage]) -> list[Prepared]:
        """Nothing: what stands after another passage is read with it in sight."""
        return []

    def ask(self, question: str, passages: Sequence[Passage]) -> Asked:
        """The prefix, all passages as one text, and the question as prompt."""
        written = [self.wording.of_passage(passage) for passage in reversed(passages)]
        text, starts = joined(written)
        before = self.prefix
        # Not kept: nobody asks for the same passages in the same order again.
        read = [self.model.encode(text, behind=before)] if passages else []
        places = [Place(memory=1, start=start) for start in reversed(starts)]
        return Asked(
            memories=(before, *read),
            prompt=self._prompt(question),
            parallel=None,
            places=tuple(places),
        )


def wording_of(model: Model) -> Wording:
    """That of the model's chat template, or plain words where it has none."""
    tokenizer = model.tokenizer
    return conversation(tokenizer) if tokenizer.converses else continuation(tokenizer)
