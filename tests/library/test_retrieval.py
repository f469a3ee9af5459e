"""Rankings are fused as the paper says, and searches see one state of the library."""

import pytest
from corpora import WordEmbedder, write_corpus

from xattn.errors import UsageError
from xattn.library.filters import BUILT_IN, Field, conditions_of
from xattn.library.fusion import fuse
from xattn.library.library import Library

SETTINGS = {"passage_tokens": 30, "overlap": 0}


def test_reciprocal_ranks_by_hand():
    fused = fuse({"dense": ["a", "b", "c"], "words": ["c", "a", "d"]})
    assert [one.id for one in fused] == ["a", "c", "b", "d"]
    by_hand = {"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62, "d": 1 / 63}
    assert {one.id: one.score for one in fused} == pytest.approx(by_hand)
    assert dict(fused[1].ranks) == {"dense": 3, "words": 1}


def test_ties_do_not_depend_on_the_order_of_the_rankings():
    one, other = {"x": ["a", "b"], "y": ["b", "a"]}, {"y": ["b", "a"], "x": ["a", "b"]}
    assert [f.id for f in fuse(one)] == [f.id for f in fuse(other)] == ["a", "b"]


def test_no_rankings_are_no_passages():
    assert fuse({"dense": [], "words": []}) == []


def test_numbers_are_compared_as_numbers():
    year = Field(name="year", kind="number", column="field_1")
    [condition] = conditions_of({"year": 2020}, [*BUILT_IN, year])
    assert condition.any_of == (2020.0,)
    with pytest.raises(UsageError, match="of kind number"):
        conditions_of({"year": True}, [year])


class Reversed:
    """A reranker that likes last what was found first."""

    def scores(self, question, passages):
        return [float(n) for n in range(len(passages))]


@pytest.fixture
def docs(tmp_path):
    write_corpus(tmp_path / "docs")
    return tmp_path / "docs"


def test_a_reranker_has_the_last_word(tmp_path, docs):
    root = tmp_path / "l.xattn"
    with Library(root, embedder=WordEmbedder(), **SETTINGS) as library:
        library.add(docs)
        found = library.search("castle siege", k=12)
    with Library(root, embedder=WordEmbedder(), reranker=Reversed()) as library:
        reranked = library.search("castle siege", k=3)
    assert [one.passage for one in reranked] == [one.passage for one in found[::-1][:3]]
    assert [one.score for one in reranked] == [11.0, 10.0, 9.0]


def test_passages_that_are_only_being_written_are_not_found(tmp_path, docs):
    """However many there are, and however well they go with the question."""
    with Library(tmp_path / "l.xattn", embedder=WordEmbedder(), **SETTINGS) as library:
        library.add(docs)
        alone = library.search("castle siege", k=20)
        lines = [f"castle siege number {n}." for n in range(2000)]
        (docs / "big.txt").write_text(" ".join(lines))
        seen = []

        def encode(passages):
            seen.append(library.search("castle siege", k=20))
            if len(seen) == 3:
                raise MemoryError  # as where the process dies

        with pytest.raises(MemoryError):
            library.add(docs, encode=encode, batch_passages=64)
        seen.append(library.search("castle siege", k=20))
        for found in seen:
            # The words of rows that are being written count for how rare a word is.
            assert {one.passage.id for one in found} == {one.passage.id for one in alone}
        library.add(docs)
        assert library.search("castle siege", k=1)[0].passage.source == str(docs / "big.txt")


def test_a_search_that_falls_into_a_change_is_made_again(tmp_path, docs, monkeypatch):
    with Library(tmp_path / "l.xattn", embedder=WordEmbedder(), **SETTINGS) as library:
        library.add(docs)
        index = library._opened.index
        search, calls = type(index).search_words, []

        def searched(self, text, k, where):
            found = search(self, text, k, where)
            calls.append(k)
            if len(calls) == 1:
                (docs / "castles1.txt").write_text("A castle. It has no moat.")
                library.add(docs)
            return found

        monkeypatch.setattr(type(index), "search_words", searched)
        found = library.search("castle", k=100)
        assert len(calls) == 2
        assert len(found) == len(library)
        assert "A castle. It has no moat." in [one.passage.text for one in found]
