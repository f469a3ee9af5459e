"""A library asked: from files to answers, and what is said of files that changed since."""

import html
import json
import os
import re
from dataclasses import replace

import pytest

import xattn
from xattn.library.answer import Glance
from xattn.library.page import write_page
from xattn.library.readers import ParallelReader, PlainReader
from xattn.models.parallel import Parallel

GRIS = (
    "# The lighthouse\n\nThe lighthouse at Cape Gris was built in 1844 by Anna Verhoeven. "
    "It is 41 metres high.\n\n# The harbour\n\nThe harbour has room for 60 boats.\n"
)
TABLE = "name,height,keeper\nMoor lighthouse,17,Ida Berg\nGris lighthouse,41,Tom Rask\n"


@pytest.fixture(scope="module")
def smol():
    return xattn.load("smollm2-135m-instruct")


@pytest.fixture
def library(smol, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "gris.md").write_text(GRIS)
    (tmp_path / "docs" / "heights.csv").write_text(TABLE)
    with (
        xattn.MemoryStore(tmp_path / "store") as store,
        xattn.Library(tmp_path / "corpus.xattn", model=smol, store=store) as library,
    ):
        library.add(tmp_path / "docs")
        yield library
        smol.store = None


def test_an_answer_says_where_it_stands_in_the_file(library, tmp_path):
    found = library.ask("Who built the lighthouse at Cape Gris?", k=2)
    assert "Verhoeven" in found.text
    first = found.citations[0]
    assert first.standing == "as it was"
    assert GRIS[first.start : first.end] == first.quote
    assert "Verhoeven" in first.quote
    assert first.passage.heading == ("The lighthouse",)
    assert found.encoder_passes == 0  # they were read when they came in
    assert "[1]" in found.with_footnotes()
    assert str(tmp_path / "docs" / "gris.md") in str(found)


def test_of_a_table_row_and_column_are_cited(library, tmp_path):
    where = {"source": str(tmp_path / "docs" / "heights.csv")}
    found = library.ask("How high is Gris lighthouse?", k=1, where=where)
    assert "41" in found.text
    first = found.citations[0]
    assert (first.cell.row, first.cell.column, first.quote) == (2, "height", "41")
    assert "row 2, column height" in first.place


def test_a_file_that_changed_or_is_gone_is_told(library, tmp_path):
    question, file = "Who built the lighthouse at Cape Gris?", tmp_path / "docs" / "gris.md"
    file.write_text(GRIS.replace("Anna", "Hanna"))
    changed = library.ask(question, k=2).citations[0]
    assert (changed.standing, "Anna Verhoeven" in changed.quote) == ("changed", True)
    file.unlink()
    gone = library.ask(question, k=2).citations[0]
    assert (gone.standing, "Anna Verhoeven" in gone.quote) == ("gone", True)
    file.write_text(GRIS.replace("Anna", "Hanna"))
    library.add(tmp_path / "docs")
    now = library.ask(question, k=2).citations[0]
    assert (now.standing, "Hanna Verhoeven" in now.quote) == ("as it was", True)


def test_memories_are_made_of_what_came_in_without_a_model(library, smol, tmp_path):
    bare = xattn.Library(tmp_path / "corpus.xattn")
    (tmp_path / "docs" / "more.md").write_text("# Mill\n\nThe mill grinds rye for Jonas Lind.\n")
    with bare:
        bare.add(tmp_path / "docs")
    told = []
    assert library.remember(lambda *done: told.append(done)) == 1
    assert told == [(len(library), len(library))]
    assert library.remember() == 0
    assert library.ask("For whom does the mill grind rye?", k=9).encoder_passes == 0


def test_several_questions_are_answered_as_alone(library):
    questions = ["Who built the lighthouse at Cape Gris?", "How many boats fit into the harbour?"]
    together = library.ask_many(questions, k=2)
    alone = [library.ask(question, k=2) for question in questions]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.citations for one in together] == [one.citations for one in alone]


def test_other_readers_and_more_passages_than_there_are(library, smol):
    library.reader = PlainReader(smol)
    found = library.ask("Who built the lighthouse at Cape Gris?", k=50)
    assert found.reader == "plain"
    assert len(found.passages) == len(library)


def test_the_page_has_all_of_it(library, tmp_path):
    found = library.ask("Who built the lighthouse at Cape Gris?", k=2)
    page = write_page(found, tmp_path / "out" / "answer.html").read_text()
    assert page.startswith("<!doctype html>")
    for token in found.tokens:
        for glance in token.glances:
            assert f"id=p{glance.passage}-{glance.start}>" in page
    assert "https://" not in page


def test_a_page_shows_each_character_once(library, tmp_path):
    """Where tokens are parts of a character, and look at it twice."""
    said = "# Mühle\n\nThe mill grinds rye 漢字 for Jonas Lind 👩‍🌾 and <b>nobody</b> else.\n"
    (tmp_path / "docs" / "mill.md").write_text(said)
    library.add(tmp_path / "docs")
    where = {"source": str(tmp_path / "docs" / "mill.md")}
    found = library.ask("For whom does the mill grind rye?", k=1, where=where)
    whole = {(0, n, n + 2) for n in range(len(found.passages[0].text) - 1)}
    glances = tuple(Glance(passage=j, start=a, end=b, share=0.01) for j, a, b in sorted(whole))
    found = replace(found, tokens=(replace(found.tokens[0], glances=glances), *found.tokens[1:]))
    page = write_page(found, tmp_path / "answer.html").read_text()
    [shown] = re.findall(r"<article>.*?<p>(.*?)</p></article>", page, re.DOTALL)
    assert html.unescape(re.sub(r"</?i[^>]*>", "", shown)) == found.passages[0].text
    [looks] = re.findall(r"id=looks>(.*?)</script>", page)
    for name in {name for token in json.loads(looks) for name, _ in token}:
        assert page.count(f"<i id={name}>") == 1


def test_what_was_read_again_is_cited(library, smol):
    library.reader = ParallelReader(smol, how=Parallel(recompute=0.3))
    questions = ["Who built the lighthouse at Cape Gris?", "How many boats fit into the harbour?"]
    found = library.ask_many(questions, k=2)
    assert [one.text for one in found] == [library.ask(one, k=2).text for one in questions]
    assert "Verhoeven" in found[0].citations[0].quote
    shares = [sum(g.share for t in one.tokens for g in t.glances) for one in found]
    assert all(share > 0 for share in shares)


def test_an_answer_is_given_whatever_became_of_its_file(library, tmp_path):
    question, file = "Who built the lighthouse at Cape Gris?", tmp_path / "docs" / "gris.md"
    file.unlink()
    file.mkdir()
    assert library.ask(question, k=2).citations[0].standing == "gone"
    file.rmdir()
    os.mkfifo(file)
    assert library.ask(question, k=2).citations[0].standing == "unknown"


def test_what_is_wrong_is_named(library, tmp_path):
    with pytest.raises(xattn.UsageError, match="`question` must be text"):
        library.ask("")
    with pytest.raises(xattn.UsageError, match="`question` must be Unicode text"):
        library.ask("Who \udcff?")
    with pytest.raises(xattn.UsageError, match="`questions` must be a list of one text or more"):
        library.ask_many("Who?")
    bare = xattn.Library(tmp_path / "corpus.xattn")
    with bare, pytest.raises(xattn.UsageError, match="opened without a model"):
        bare.ask("Who?")
    library.remove(tmp_path / "docs")
    with pytest.raises(xattn.LibraryError, match="has no passages; there is nothing to read"):
        library.ask("Who?")
