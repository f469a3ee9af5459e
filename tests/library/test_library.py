"""A library of text files: what is found, and what an edit costs."""

import json
import os
from urllib.parse import urlencode

import pytest
from corpora import WordEmbedder, write_corpus
from servers import postgres_url

from xattn.errors import (
    LibraryBusyError,
    LibraryError,
    LibraryFormatError,
    LibraryMismatchError,
    SourceNotFoundError,
    UsageError,
)
from xattn.library.library import Library
from xattn.library.locks import writing

SETTINGS = {"passage_tokens": 30, "overlap": 0}


@pytest.fixture
def docs(tmp_path):
    write_corpus(tmp_path / "docs")
    return tmp_path / "docs"


@pytest.fixture
def made(tmp_path, docs):
    embedder = WordEmbedder()
    with Library(tmp_path / "corpus.xattn", embedder=embedder, **SETTINGS) as library:
        library.add(docs)
        yield library


def said(library):
    """Every passage with its place, as the library gives them."""
    return sorted((p.source, p.start, p.end, p.copy, p.text) for p in library.passages())


def test_passages_are_what_stands_at_their_places(made, docs):
    passages = list(made.passages())
    assert len(passages) == len(made) > 12
    assert {passage.source for passage in passages} == {str(path) for path in docs.iterdir()}
    for passage in passages:
        with open(passage.source) as file:
            assert file.read()[passage.start : passage.end] == passage.text


def test_batches_make_no_difference(made, docs, tmp_path):
    with Library(tmp_path / "other.xattn", embedder=WordEmbedder(), **SETTINGS) as other:
        for size in (1, 3, 7):
            other.add(docs, batch_passages=size)
            assert said(other) == said(made)
            other.remove(docs)


def test_a_word_that_one_passage_has_finds_it_first(made):
    for passage in made.passages():
        mark = passage.text.split()[-1].rstrip(".")
        found = made.search(mark, k=3)
        assert found[0].passage == passage
        assert found[0].ranks["words"] == 1


def test_a_question_about_a_topic_finds_passages_of_it(made):
    found = made.search("a siege of the castle with its moat and tower", k=5)
    assert all("castles" in one.passage.source for one in found)
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    for one in found:
        assert one.score == pytest.approx(sum(1 / (60 + rank) for rank in one.ranks.values()))


def test_more_than_there_are_gives_all(made):
    assert len(made.search("castle", k=1000)) == len(made)


def test_a_search_can_be_of_one_file_only(made, docs):
    path = docs / "rivers0.txt"
    for name in (str(path), os.path.relpath(path)):
        found = made.search("castle", k=100, where={"source": name})
        assert {one.passage.source for one in found} == {str(path)}
        assert len(found) == made.file(path).passages
    two = made.search("castle", k=100, where={"source": [str(path), str(docs / "castles1.txt")]})
    assert len({one.passage.source for one in two}) == 2


def test_metadata_filters(made, docs, tmp_path):
    for year in (2019, 2020, 2021):
        folder = tmp_path / str(year)
        write_corpus(folder, files=1, seed=year)
        made.add(folder, metadata={"year": year, "kind": f"it's {year}", "final": year == 2021})

    def years(where):
        return {one.passage.metadata["year"] for one in made.search("river", 100, where)}

    assert years({"year": 2020}) == {2020}
    assert years({"year": [2019, 2021]}) == {2019, 2021}
    assert years({"year": {"min": 2020}}) == {2020, 2021}
    assert years({"year": {"min": 2019, "max": 2020.5}}) == {2019, 2020}
    assert years({"kind": "it's 2019"}) == {2019}
    assert years({"final": True}) == {2021}
    assert years({"final": False, "year": {"min": 2020}}) == {2020}
    assert made.fields() == {
        "source": "text",
        "title": "text",
        "year": "number",
        "kind": "text",
        "final": "truth",
    }


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"yaer": 2020}, "source, title, year"),
        ({"year": "2020"}, "of kind number"),
        ({"year": {"from": 1}}, "min, max"),
        ({"year": {}}, "min, max"),
        ({"year": []}, "values"),
        ({"year": None}, "of kind number"),
        ({"source": 5}, "of kind text"),
        ("year = 2020", "a mapping"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(made, tmp_path, where, told):
    write_corpus(tmp_path / "2020", files=1)
    made.add(tmp_path / "2020", metadata={"year": 2020})
    with pytest.raises(UsageError, match=told):
        made.search("river", where=where)


def test_metadata_of_another_kind_than_before_fails_its_file(made, tmp_path):
    write_corpus(tmp_path / "a", files=1)
    made.add(tmp_path / "a", metadata={"year": 2020})
    before = said(made)
    write_corpus(tmp_path / "b", files=1)
    report = made.add(tmp_path / "b", metadata={"year": "2020"})
    assert report.failed == 1
    assert "'year' must be of kind number" in report.failures[0].reason
    assert said(made) == before


def test_metadata_has_no_name_that_every_passage_has(made, docs):
    report = made.add(docs, metadata={"source": "elsewhere"}, full=True)
    assert report.failed == len(list(docs.iterdir()))
    assert "the metadata 'source' has the name of what every passage has" in (
        report.failures[0].reason
    )


def test_metadata_stays_where_nobody_speaks_of_it(made, docs):
    made.add(docs / "rivers0.txt", metadata={"year": 2020})
    assert made.add(docs).unchanged == 6
    (docs / "rivers0.txt").write_text("Another river. It has no bridge.")
    made.add(docs)
    [found] = made.search("river", where={"year": 2020})
    assert found.passage.text == "Another river. It has no bridge."


@pytest.mark.parametrize(("question", "k"), [("", 3), ("  ", 3), ("castle", 0), ("castle", 1001)])
def test_a_search_for_nothing_is_refused(made, question, k):
    with pytest.raises(UsageError):
        made.search(question, k)


def test_questions_of_signs_and_stop_words_are_no_error(made):
    for question in ("?!", "the", 'a "b AND (c', "x' OR 1=1 --", "\\", "%s", "ß" * 5000):
        assert made.search(question, k=2)


# Incremental


def test_files_that_look_as_they_did_are_not_read(made, docs):
    for path in docs.iterdir():
        path.chmod(0)  # which stops others than root
        status = path.stat()
        path.chmod(0o600)
        path.write_text("x" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    before = said(made)
    report = made.add(docs)
    assert (report.unchanged, report.changed, report.passages_added) == (6, 0, 0)
    assert said(made) == before
    assert made.add(docs, full=True).changed == 6


def test_a_file_with_the_same_bytes_is_not_embedded_again(made, docs):
    count = len(made.embedder.embedded)
    os.utime(docs / "rivers0.txt", ns=(1, 1))
    assert made.add(docs).unchanged == 6
    assert len(made.embedder.embedded) == count
    assert made.file(docs / "rivers0.txt").modified == 1


def test_an_edit_embeds_the_passages_that_changed_and_moves_the_others(made, docs):
    path = docs / "rivers0.txt"
    before = {p.text: p for p in made.passages(str(path))}
    first = path.read_text().split(".")[0]
    path.write_text("It begins here.\n\n" + path.read_text().replace(first, first + " indeed", 1))
    made.embedder.embedded.clear()
    report = made.add(docs)
    after = {p.text: p for p in made.passages(str(path))}
    new = set(after) - set(before)
    assert 1 <= len(new) <= 3
    assert {text.rpartition("\n")[2] for text in made.embedder.embedded} <= {
        line for text in new for line in text.split("\n")
    }
    assert len(made.embedder.embedded) == report.passages_added == len(new)
    assert (report.changed, report.unchanged) == (1, 5)
    assert report.passages_kept == len(after) - len(new)
    assert report.passages_removed == len(set(before) - set(after))
    text = path.read_text()
    for passage in after.values():
        assert text[passage.start : passage.end] == passage.text
    kept = next(text for text in after if text in before)
    assert after[kept].start > before[kept].start
    assert after[kept].id == before[kept].id


def test_passages_that_say_the_same_are_each_there(tmp_path):
    path = tmp_path / "same.txt"
    path.write_text("\n\n".join(["The same words again and again and again."] * 9))
    embedder = WordEmbedder()
    with Library(tmp_path / "l.xattn", embedder=embedder, passage_tokens=8, overlap=0) as library:
        library.add(path)
        passages = list(library.passages())
        assert [p.copy for p in passages] == list(range(9))
        assert len({p.start for p in passages}) == 9
        path.write_text("\n\n".join(["The same words again and again and again."] * 8))
        assert library.add(path).passages_removed == 1
        assert [p.copy for p in library.passages()] == list(range(8))


def test_a_file_that_is_gone_leaves(made, docs):
    gone = docs / "rivers0.txt"
    many = made.file(gone).passages
    gone.unlink()
    report = made.add(docs)
    assert (report.removed, report.passages_removed) == (1, many)
    assert made.file(gone) is None
    found = made.search("river", 1000)
    assert len(found) == len(made)
    assert str(gone) not in {one.passage.source for one in found}


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_file_that_says_nothing_any_more_leaves(made, docs, everywhere):
    """It is empty, a directory, or no text."""
    files = [docs / name for name in ("first", "second", "third")]
    for number, file in enumerate(files):
        file.write_text(f"The word of {file.name} is zylo{number}.\n")
    made.add(docs)
    files[0].write_text("")
    files[1].unlink()
    files[1].mkdir()
    files[2].write_bytes(bytes(range(256)))
    report = made.add(() if everywhere else docs, remove_missing=everywhere)
    assert report.removed == 3
    known = {passage.source for passage in made.passages()}
    assert known.isdisjoint(map(str, files))


def test_a_name_that_is_no_text_is_told_and_the_others_are_read(tmp_path, docs):
    (docs / os.fsdecode(b"bad\xff.txt")).write_text("Nobody can say what this is called.\n")
    with Library(tmp_path / "other.xattn", embedder=WordEmbedder(), **SETTINGS) as other:
        report = other.add(docs)
        assert report.added == len(list(docs.iterdir())) - 1
        [failure] = report.failures
    assert failure.source == str(docs / "bad\\xff.txt")
    assert failure.reason == "has a name that is not UTF-8; rename it."


def test_a_library_is_no_document(tmp_path, docs):
    with Library(docs / "lib", embedder=WordEmbedder(), **SETTINGS) as inside:
        inside.add(docs)
        assert inside.add(docs).added == 0
        assert all("lib" not in passage.source.split("/") for passage in inside.passages())


def test_files_elsewhere_leave_only_when_told(made, docs, tmp_path):
    write_corpus(tmp_path / "other", files=1)
    (docs / "rivers0.txt").unlink()
    assert made.add(tmp_path / "other").removed == 0
    assert made.add(tmp_path / "other", remove_missing=True).removed == 1
    assert made.add(tmp_path / "nowhere", remove_missing=True).unchanged == 0


def test_without_paths_all_files_are_looked_at(made, docs):
    (docs / "rivers0.txt").write_text("A river. And that is all.")
    (docs / "castles1.txt").unlink()
    report = made.add()
    assert (report.changed, report.unchanged, report.failed) == (1, 4, 1)
    assert "no file" in made.file(docs / "castles1.txt").problem
    assert made.add(remove_missing=True).removed == 1


def test_a_bad_file_is_told_and_the_others_are_read(made, docs):
    (docs / "junk.md").write_bytes(bytes(range(256)))
    (docs / "more.txt").write_text("More of it: a unicorn.")
    report = made.add(docs)
    assert (report.added, report.failed, report.unchanged) == (1, 1, 6)
    assert report.failures[0].source == str(docs / "junk.md")
    assert made.search("unicorn", 1)[0].passage.text == "More of it: a unicorn."
    assert made.add(docs).failed == 1


def test_a_file_that_goes_bad_keeps_what_it_had(made, docs):
    before = said(made)
    (docs / "rivers0.txt").write_bytes(b"\xff\xfe\x00\x00\xff")
    assert made.add(docs).failed == 1
    assert said(made) == before
    assert made.file(docs / "rivers0.txt").problem


def test_texts_under_names(made):
    report = made.add_texts({"note": "The unicorn sleeps.", "other": "Nothing at all."})
    assert report.added == 2
    [found] = made.search("unicorn", 1)
    assert (found.passage.source, found.passage.text) == ("note", "The unicorn sleeps.")
    assert made.add_texts({"note": "The unicorn sleeps."}).unchanged == 1
    assert made.add_texts({"note": "The unicorn wakes."}).changed == 1
    assert made.add(remove_missing=True).removed == 0
    assert made.remove("note").removed == 1
    assert made.file("note") is None


def test_removing(made, docs):
    many = len(made)
    of_one = made.file(docs / "rivers0.txt").passages
    assert made.remove(docs / "rivers0.txt").passages_removed == of_one
    assert len(made) == many - of_one
    assert made.remove([docs]).removed == 5
    assert len(made) == 0
    assert made.search("river") == []
    with pytest.raises(LibraryError, match="nothing of the name"):
        made.remove(docs)


def test_new_passages_are_encoded_before_they_can_be_found(made, docs):
    (docs / "new.txt").write_text("A unicorn. And another unicorn.")
    seen = []

    def encode(passages):
        assert all("unicorn" not in one.passage.text for one in made.search("unicorn", 100))
        seen.extend(passages)

    made.add(docs, encode=encode)
    assert seen == list(made.passages(str(docs / "new.txt")))


def test_progress_ends_with_all_bytes(made, docs):
    told = []
    for path in docs.iterdir():
        path.write_text(path.read_text() + " More.")
    made.add(docs, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (sum(p.stat().st_size for p in docs.iterdir()),) * 2


# What is kept with it


def test_it_is_opened_again_as_it_was(made, docs, tmp_path):
    before = said(made)
    with Library(made.root, embedder=WordEmbedder()) as again:
        assert said(again) == before
        assert again.add(docs).unchanged == 6


def test_readers_see_what_another_wrote(made, docs):
    with Library(made.root, embedder=WordEmbedder()) as reader:
        assert reader.search("unicorn", 1)[0].passage.text != "A unicorn."
        (docs / "new.txt").write_text("A unicorn.")
        made.add(docs)
        assert reader.search("unicorn", 1)[0].passage.text == "A unicorn."


def test_another_embedder_or_other_settings_are_refused(made):
    with pytest.raises(LibraryMismatchError, match=r"'words'.*--embedder others"):
        Library(made.root, embedder=WordEmbedder("others"))
    with pytest.raises(LibraryMismatchError, match=r"passage_tokens 30, not 31.*--passage-tokens"):
        Library(made.root, passage_tokens=31)
    with pytest.raises(LibraryMismatchError, match=r"language 'english', not 'german'"):
        Library(made.root, language="german")
    with pytest.raises(LibraryMismatchError, match=r"in 'lance', not 'host=x'"):
        Library(made.root, database="postgresql://x")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 99}'])
def test_a_damaged_library_json(made, content):
    made.close()
    (made.root / "library.json").write_text(content)
    with pytest.raises(LibraryFormatError):
        Library(made.root)


def test_a_library_json_with_a_value_of_another_type(made):
    made.close()
    path = made.root / "library.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"overlap": "32"}))
    with pytest.raises(LibraryFormatError):
        Library(made.root)


def test_a_damaged_catalogue(made):
    made.close()
    for suffix in ("-wal", "-shm"):
        (made.root / f"catalogue.sqlite{suffix}").unlink(missing_ok=True)
    (made.root / "catalogue.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(LibraryFormatError, match="damaged"):
        Library(made.root)


def test_a_damaged_database_is_named_with_its_remedy(made, docs):
    before = said(made)
    for file in (made.root / "passages.lance" / "data").iterdir():
        file.write_bytes(b"no rows")
    with pytest.raises(LibraryError, match="make it anew from the files with: xattn index --again"):
        made.search("anything")
    made.remake()
    assert said(made) == before
    assert made.search("anything")


def test_rows_that_the_database_lost_are_written_again(made, docs):
    before = said(made)
    ids = [p.id for p in made.passages(str(docs / "rivers0.txt"))]
    made._opened.index.remove(ids[:2])
    made.embedder.embedded.clear()
    report = made.add(docs)
    assert (report.changed, report.passages_added) == (1, 2)
    assert len(made.embedder.embedded) == 2
    assert said(made) == before


def test_it_is_made_anew_with_other_settings(made, docs):
    made.add_texts({"note": "A unicorn."})
    made.add(docs / "rivers0.txt", metadata={"year": 2020})
    with Library(made.root, embedder=WordEmbedder()) as reader:
        report = made.remake(embedder=WordEmbedder("others", 32), passage_tokens=60, overlap=10)
        assert (report.added, report.failed) == (6, 1)
        assert "add it again" in report.failures[0].reason
        assert made.settings.passage_tokens == 60
        assert len(made.search("castle", 3)) == 3
        assert made.add(docs).unchanged == 6
        assert {one.passage.source for one in made.search("castle", 99, {"year": 2020})} == {
            str(docs / "rivers0.txt")
        }
        with pytest.raises(LibraryMismatchError):
            reader.search("castle")
    assert sorted(path.name for path in made.root.iterdir() if path.name[0] != ".") == [
        "catalogue-2.sqlite",
        "catalogue-2.sqlite-shm",
        "catalogue-2.sqlite-wal",
        "library.json",
        "passages-2.lance",
    ]
    assert made.remake().added == 6


def test_making_it_anew_is_gone_on_with(made, docs):
    def dies(passages):
        raise MemoryError

    before, others = said(made), WordEmbedder("others")
    with pytest.raises(MemoryError):
        made.remake(embedder=others, encode=dies)
    assert said(made) == before
    assert made.search("castle", 1)
    with pytest.raises(MemoryError):
        made.remake(passage_tokens=60, encode=dies)
    assert made.remake(embedder=others).added == 6
    assert said(made) == before
    assert made.embedder is others


def test_there_is_no_library_until_something_is_added(tmp_path):
    library = Library(tmp_path / "none.xattn", embedder=WordEmbedder())
    with pytest.raises(LibraryError, match="xattn index PATHS"):
        library.search("castle")
    assert not (tmp_path / "none.xattn").exists()


def test_an_empty_corpus(tmp_path):
    (tmp_path / "empty").mkdir()
    with Library(tmp_path / "l.xattn", embedder=WordEmbedder()) as library:
        assert library.add(tmp_path / "empty").added == 0
        assert library.search("castle") == []
        assert len(library) == 0


def test_a_path_that_names_nothing(made):
    with pytest.raises(SourceNotFoundError):
        made.add(made.root / "nothing")


def test_a_directory_of_other_things_is_not_taken_over(docs):
    with pytest.raises(LibraryError, match="holds other things"):
        Library(docs, embedder=WordEmbedder()).add(docs)


def test_a_second_writer_is_told_who_the_first_is(made, docs):
    with writing(made.root), pytest.raises(LibraryBusyError, match=f"process {os.getpid()}"):
        made.add(docs)
    assert made.add(docs).unchanged == 6


@pytest.mark.parametrize(
    "settings",
    [{"passage_tokens": 0}, {"overlap": 200}, {"language": "klingon"}, {"database": "mysql://x"}],
)
def test_settings_out_of_their_bounds(tmp_path, settings):
    with pytest.raises(UsageError):
        Library(tmp_path / "l.xattn", embedder=WordEmbedder(), **settings)


# On a server


def test_a_library_on_a_server(tmp_path, docs):
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(postgres_url()) | {"password": "never kept"}
    root, embedder = tmp_path / "l.xattn", WordEmbedder()
    with Library(tmp_path / "here.xattn", embedder=embedder, **SETTINGS) as here:
        here.add(docs)
        local, found = said(here), [one.passage for one in here.search("castle siege", 5)]
    with Library(root, embedder=embedder, database=as_url(parts), **SETTINGS) as library:
        library.add(docs)
        assert said(library) == local
        assert [one.passage for one in library.search("castle siege", 5)] == found
        assert "never kept" not in (root / "library.json").read_text()
        assert not list(root.glob("*.lance"))
        (docs / "rivers0.txt").unlink()
        assert library.add(docs).removed == 1
    with Library(root, embedder=embedder) as library:  # as it was kept
        assert {one[0] for one in said(library)} == {one[0] for one in local} - {
            str(docs / "rivers0.txt")
        }
        library._opened.index.drop()


def as_url(parts):
    """A connection string as a URL."""
    names = urlencode({name: value for name, value in parts.items() if name != "dbname"})
    return f"postgresql:///{parts['dbname']}?{names}"


def test_a_server_that_does_not_answer(tmp_path, docs):
    pytest.importorskip("psycopg")
    library = Library(
        tmp_path / "l.xattn", embedder=WordEmbedder(), database="postgresql://127.0.0.1:1/none"
    )
    with pytest.raises(LibraryError, match="does not answer"):
        library.add(docs)
