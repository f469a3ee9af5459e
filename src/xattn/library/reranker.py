"""What reads a question and a passage together, and says how well they go with each other."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

from xattn.errors import is_whole, require
from xattn.library.embedder import directory_of, load_quietly, sentence_transformers
from xattn.library.passage import Passage, lead_of


class Reranker(Protocol):
    """What scores the passages that were found."""

    def scores(self, question: str, passages: Sequence[Passage]) -> Sequence[float]:
        """A number for each passage, the higher the better."""


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers, loaded when it is first needed.

    ``name`` is as for :class:`~xattn.library.embedder.SentenceEmbedder`, and so are the errors; a
    bare name is one of ``sentence-transformers``, so say ``cross-encoder/ms-marco-MiniLM-L6-v2``.
    """

    def __init__(
        self, name: str, *, device: str = "cpu", batch_size: int = 16, offline: bool = False
    ) -> None:
        require(bool(name) and isinstance(name, str), "name", "the name of a reranker", name)
        require(is_whole(batch_size, 1), "batch_size", "at least 1", batch_size)
        self.name, self._device, self._batch_size = name, device, batch_size
        self._offline = offline

    @cached_property
    def _model(self) -> Any:
        package = sentence_transformers("ranking passages again")
        directory = directory_of(self.name, offline=self._offline)
        return load_quietly(package.CrossEncoder, directory, self._device)

    def scores(self, question: str, passages: Sequence[Passage]) -> list[float]:
        """The model's score of each passage, its title and headings before it."""
        if not passages:
            return []
        pairs = [(question, lead_of(passage) + passage.text) for passage in passages]
        scores = self._model.predict(pairs, batch_size=self._batch_size, show_progress_bar=False)
        return [float(score) for score in scores]
