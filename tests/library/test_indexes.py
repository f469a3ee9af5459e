"""One contract that every database of passages keeps."""

import math
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from corpora import WordEmbedder, words_of
from servers import postgres_url

from xattn.errors import LibraryError
from xattn.library.filters import Condition, Field
from xattn.library.indexes.lance import LanceIndex
from xattn.library.rows import Row

EMBEDDER = WordEmbedder()
HOW = {"dimensions": EMBEDDER.dimensions, "language": "english"}
WORDS = "kite lamp moss nest opal pond quill reef silk tusk urn vase wand yak zinc".split()
YEAR = Field(name="year", kind="number", column="field_1")
KIND = Field(name="kind", kind="text", column="field_2")
FINAL = Field(name="final", kind="truth", column="field_3")


@pytest.fixture(params=["lance", "postgres"])
def opened(request, tmp_path):
    """Opens the index, each time anew, with more keywords if given."""
    indexes = []
    if request.param == "postgres":
        from xattn.library.indexes.postgres import PostgresIndex

        url, schema = postgres_url(), f"xattn_test_{random.randrange(10**12)}"

    def make(**more):
        if request.param == "lance":
            index = LanceIndex(tmp_path, table="passages", **HOW, **more)
        else:
            index = PostgresIndex(url, schema=schema, **HOW, **more)
        indexes.append(index)
        return index

    yield make
    if indexes:
        indexes[-1].drop()
    for index in indexes:
        index.close()


@pytest.fixture
def index(opened):
    return opened()


def row(n, words, **fields):
    return Row(
        id=f"{n:032x}", source=f"s{n % 3}", title="t", words=words, rest="{}", generation=n,
        fields=fields,
    )  # fmt: skip


def add(index, rows):
    index.add(rows, EMBEDDER.embed_passages([one.words for one in rows]))


def texts(count, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) for _ in range(count)]


def ids(numbers):
    return [f"{n:032x}" for n in numbers]


def test_rows_come_back_as_they_were_written(index):
    odd = [
        "kite",
        "a 'quoted' \\ word",
        "100% of %s",
        "naïve Straße 東京 🙂",
        "two\nlines\ttab",
        "",
    ]
    rows = [row(n, words) for n, words in enumerate(odd)]
    add(index, rows)
    assert sorted(index.rows(ids(range(9))), key=lambda one: one.id) == rows
    assert index.present(ids(range(3, 9))) == set(ids(range(3, 6)))
    assert index.count() == 6
    assert sorted(id for some in index.ids() for id in some) == ids(range(6))
    index.remove(ids([0, 5, 8]))
    assert sorted(id for some in index.ids() for id in some) == ids([1, 2, 3, 4])
    index.remove(ids([0]))
    assert index.count() == 4


def test_an_empty_index_finds_nothing(index):
    assert index.search_words("kite", 5, []) == []
    assert index.search_vectors(EMBEDDER.embed_question("kite"), 5, []) == []
    assert index.rows(ids([1])) == []
    index.tidy(alone=True)
    assert index.count() == 0


def test_vectors_are_found_as_numpy_finds_them(index):
    written = texts(300)
    add(index, [row(n, text) for n, text in enumerate(written)])
    vectors = EMBEDDER.embed_passages(written)
    for tidied in (False, True):
        if tidied:
            index.tidy(alone=True)
        for question in ("kite lamp", "moss", "zinc yak opal"):
            vector = EMBEDDER.embed_question(question)
            cosines = vectors @ vector
            found = index.search_vectors(vector, 10, [])
            wanted = np.sort(cosines)[::-1][:10]
            np.testing.assert_allclose([cosines[int(id, 16)] for id in found], wanted, atol=1e-6)


def bm25(question, written):
    """Scores by the formula, on words that have neither stems nor stop words among them."""
    counts = [Counter(words_of(text)) for text in written]
    mean = sum(map(Counter.total, counts)) / len(counts)

    def of_word(word, count):
        having = sum(word in one for one in counts)
        rarity = math.log(1 + (len(counts) - having + 0.5) / (having + 0.5))
        norm = 1.2 * (0.25 + 0.75 * count.total() / mean)
        return rarity * count[word] * 2.2 / (count[word] + norm)

    return [sum(of_word(word, count) for word in words_of(question)) for count in counts]


def test_words_are_found_in_the_order_of_bm25(index):
    written = texts(200, seed=1)
    add(index, [row(n, text) for n, text in enumerate(written)])
    index.tidy(alone=True)
    for question in ("kite", "moss silk", "reef urn vase wand"):
        scores = bm25(question, written)
        found = index.search_words(question, 200, [])
        assert {int(id, 16) for id in found} == {n for n, score in enumerate(scores) if score > 0}
        in_order = [scores[int(id, 16)] for id in found]
        # LanceDB keeps lengths in one byte, so near scores may change places.
        assert all(b <= a * 1.12 for a, b in pairwise(in_order))
        assert in_order[0] >= 0.9 * max(scores)


def test_words_that_were_just_added_are_found_with_the_others(index):
    add(index, [row(1, "kite lamp")])
    index.tidy(alone=True)
    add(index, [row(2, "kite moss")])
    assert set(index.search_words("kite", 5, [])) == set(ids([1, 2]))
    index.remove(ids([1]))
    assert index.search_words("kite", 5, []) == ids([2])


def test_stems_are_found_and_stop_words_are_not(index):
    add(index, [row(1, "The running horses"), row(2, "the of and")])
    assert index.search_words("horse runs", 5, []) == ids([1])
    assert index.search_words("the", 5, []) == []


@pytest.mark.parametrize(
    "question", ["", "?!", "' OR 1=1 --", "a & b | !c:*", "\\", "kite:*", "%s"]
)
def test_questions_are_words_and_no_language(index, question):
    add(index, [row(1, "lamp"), row(2, "moss")])
    assert index.search_words(question, 5, []) == []


def test_conditions(index):
    add(index, [row(0, "kite old")])  # before there are fields
    index.add_fields([YEAR, KIND])
    index.add_fields([YEAR, KIND, FINAL])
    rows = [
        row(n, "kite", field_1=2000.0 + n, field_2=f"it's {n}", field_3=n > 3) for n in range(1, 6)
    ]
    add(index, rows)
    vector = EMBEDDER.embed_question("kite")

    def found(*conditions):
        by_words = index.search_words("kite", 100, conditions)
        assert sorted(by_words) == sorted(index.search_vectors(vector, 100, conditions))
        return sorted(int(id, 16) for id in by_words)

    assert found() == [0, 1, 2, 3, 4, 5]
    assert found(Condition(column="source", any_of=("s1",))) == [1, 4]
    assert found(Condition(column="field_1", any_of=(2001.0, 2002.0, 3.5))) == [1, 2]
    assert found(Condition(column="field_1", least=2003.0)) == [3, 4, 5]
    assert found(Condition(column="field_1", least=2002.0, most=2003.0)) == [2, 3]
    assert found(Condition(column="field_2", any_of=("it's 3",))) == [3]
    assert found(Condition(column="field_2", most="it's 2")) == [1, 2]
    assert found(Condition(column="field_3", any_of=(True,))) == [4, 5]
    assert found(Condition(column="generation", most=2)) == [0, 1, 2]
    both = (
        Condition(column="field_3", any_of=(False,)),
        Condition(column="source", any_of=("s1",)),
    )
    assert found(*both) == [1]


def test_another_handle_sees_what_was_written(opened):
    writer, reader = opened(), opened()
    add(writer, [row(1, "kite")])
    assert reader.search_words("kite", 5, []) == ids([1])
    writer.tidy(alone=False)
    add(writer, [row(2, "kite")])
    assert set(reader.search_words("kite", 5, [])) == set(ids([1, 2]))
    assert reader.count() == 2


def test_an_index_of_vectors_misses_little(opened):
    index = opened(ann_from=500)
    written = texts(1500, seed=2)
    vectors = EMBEDDER.embed_passages(written)
    for first in range(0, 1500, 500):
        rows = [row(first + n, text) for n, text in enumerate(written[first : first + 500])]
        index.add(rows, vectors[first : first + 500])
    index.tidy(alone=True)
    hits = 0
    for question in texts(20, seed=3):
        vector = EMBEDDER.embed_question(question)
        cosines = vectors @ vector
        least = np.sort(cosines)[-10]
        found = index.search_vectors(vector, 10, [])
        hits += sum(cosines[int(id, 16)] >= least - 1e-6 for id in found)
    assert hits >= 190


def test_vectors_of_another_size_are_refused(index):
    with pytest.raises(LibraryError):
        index.add([row(1, "kite")], np.ones((1, 3), dtype=np.float32))
    assert index.count() == 0
