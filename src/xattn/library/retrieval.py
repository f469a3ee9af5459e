"""Finding passages: by meaning and by words at once, and by a reranker after that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from xattn.errors import LibraryError, is_whole, require
from xattn.library.catalogue import Catalogue
from xattn.library.embedder import Embedder
from xattn.library.filters import Condition, Where, conditions_of
from xattn.library.fusion import fuse
from xattn.library.indexes import PassageIndex
from xattn.library.passage import Passage
from xattn.library.reranker import Reranker

DEPTH = 50
"""Passages that each retriever gives to the fusion, where not more are asked for."""
RERANKED = 4
"""So many times the passages asked for are put before a reranker."""
ATTEMPTS = 5
"""How often a search is made again because what it saw was changed meanwhile."""
MOST_FOUND = 1000


@dataclass(frozen=True, kw_only=True)
class Found:
    """A passage and how it was found."""

    passage: Passage
    score: float
    """Of the fusion, or of the reranker; larger is better, and it compares within one search."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """From 1, of each retriever that found it: ``dense``, ``words``."""


class _ChangedError(Exception):
    """What was being read is no longer there."""


@dataclass(frozen=True, kw_only=True)
class Retriever:
    """Hybrid retrieval over one library."""

    catalogue: Catalogue
    index: PassageIndex
    embedder: Embedder
    reranker: Reranker | None = None

    def search(self, question: str, k: int, where: Where | None = None) -> list[Found]:
        """The ``k`` passages, or all there are, that go best with ``question``, the best first.

        Raises :class:`~xattn.errors.UsageError` for an empty question, for ``k`` out of its bounds
        and for a field in ``where`` that passages do not have.
        """
        require(_says_something(question), "question", "text that is not empty", question)
        require(is_whole(k, 1) and k <= MOST_FOUND, "k", f"1 to {MOST_FOUND}", k)
        conditions = conditions_of(where, self.catalogue.fields())
        if self.catalogue.count_passages() == 0:
            return []
        vector = self.embedder.embed_question(question)
        wanted = k if self.reranker is None else RERANKED * k

        def search() -> list[Found]:
            seen = self._visible(conditions)
            searches = {
                "dense": lambda n: self.index.search_vectors(vector, n, seen),
                "words": lambda n: self.index.search_words(question, n, seen),
            }
            depth = max(DEPTH, 2 * wanted)
            return self._fused({n: self._named(s, depth) for n, s in searches.items()}, wanted)

        found = self._steady(search)
        if self.reranker is None:
            return found
        scores = self.reranker.scores(question, [one.passage for one in found])
        ranked = [replace(one, score=score) for one, score in zip(found, scores, strict=True)]
        return sorted(ranked, key=lambda one: -one.score)[:k]

    def _steady(self, search: Callable[[], list[Found]]) -> list[Found]:
        """What ``search`` finds while nobody changes what there is to find."""
        for attempt in range(ATTEMPTS):
            before = self.catalogue.standing().revision
            last = attempt == ATTEMPTS - 1
            try:
                found = search()
            except (LibraryError, _ChangedError):
                if last or self.catalogue.standing().revision == before:
                    raise
            else:
                if last or self.catalogue.standing().revision == before:
                    return found
        raise AssertionError("the last attempt returns or raises")

    def _visible(self, conditions: Sequence[Condition]) -> list[Condition]:
        """The conditions, and one that leaves out most of what is only being written."""
        standing = self.catalogue.standing()
        if not standing.unended:
            return list(conditions)
        return [*conditions, Condition(column="generation", most=standing.generation)]

    def _named(self, search: Callable[[int], list[str]], depth: int) -> list[str]:
        """Up to ``depth`` ids that ``search`` finds and the catalogue knows as passages."""
        asked = depth
        while True:
            ids = search(asked)
            places = self.catalogue.places(ids)
            named = [id for id in ids if id in places]
            if len(named) >= depth or len(ids) < asked:
                return named[:depth]
            asked *= 2

    def _fused(self, rankings: Mapping[str, Sequence[str]], wanted: int) -> list[Found]:
        fused = fuse(rankings)[:wanted]
        passages = passages_of(self.catalogue, self.index, [one.id for one in fused])
        if len(passages) < len(fused):
            raise _ChangedError
        return [Found(passage=passages[one.id], score=one.score, ranks=one.ranks) for one in fused]


def _says_something(question: object) -> bool:
    return isinstance(question, str) and question.strip() != ""


def passages_of(
    catalogue: Catalogue, index: PassageIndex, ids: Sequence[str]
) -> dict[str, Passage]:
    """Those of ``ids`` that are passages of the library."""
    places = catalogue.places(ids)
    return {row.id: row.passage(places[row.id]) for row in index.rows(list(places))}
