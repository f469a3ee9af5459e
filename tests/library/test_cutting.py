"""Passages: where they end, where they are in the file, and what an edit changes of them."""

import random
import re
import subprocess
import sys
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xattn.errors import InvalidSourceError, UsageError
from xattn.inputs.chunks import sentences
from xattn.inputs.table import Table
from xattn.library.cutting import LONGEST_CHARACTERS, cut
from xattn.library.documents import Document, document_of
from xattn.library.passage import Section


def words(text):
    return len(text.split())


def document(*sections):
    return Document(source="s", title="t", kind="text", sections=lambda: iter(sections))


def blocks(text, sizes, **fields):
    """The text as sections of these lengths, again and again, as a reader might give it."""
    sections, start = [], 0
    while start < len(text):
        part = text[start : start + sizes[len(sections) % len(sizes)]]
        sections.append(Section(text=part, start=start, **fields))
        start += len(part)
    return document(*sections)


def written(seed, paragraphs=40):
    rng = random.Random(seed)
    return [
        [
            " ".join(rng.choices(["alpha", "beta", "gamma", "delta", "x1"], k=rng.randint(3, 20)))
            + f" {rng.random()}."
            for _ in range(rng.randint(1, 7))
        ]
        for _ in range(paragraphs)
    ]


def joined(paragraphs):
    return "\n\n".join(" ".join(sentences) for sentences in paragraphs) + "\n"


TEXTS = st.text(st.sampled_from("ab e\u0301é.!?。” \n\r\t\u2003漢"), max_size=400)


@settings(deadline=None, max_examples=200)
@given(TEXTS, st.integers(1, 12), st.lists(st.integers(1, 50), min_size=1), st.booleans())
def test_passages_are_the_text_in_order_however_it_is_read(text, most, sizes, is_code):
    passages = list(cut(blocks(text, sizes, is_code=is_code), count=len, most=most))
    assert passages == list(cut(blocks(text, [10**6], is_code=is_code), count=len, most=most))
    end = 0
    for passage in passages:
        assert passage.text == unicodedata.normalize("NFC", text[passage.start : passage.end])
        assert passage.text.strip()
        assert not text[end : passage.start].strip()
        end = passage.end
    assert not text[end:].strip()


@settings(deadline=None, max_examples=50)
@given(TEXTS, st.integers(1, 30))
def test_no_passage_is_larger_than_there_is_room(text, most):
    for passage in cut(document_of(text, "s"), count=len, most=most):
        assert len(passage.text) <= most


def test_passages_end_with_sentences_and_with_paragraphs_where_they_can():
    text = joined(written(1))
    ends = {end for _, end in sentences(text)}
    passages = list(cut(document_of(text, "s"), count=words, most=150))
    starts = [passage.start for passage in passages[1:]]
    assert set(starts) <= ends
    assert len(starts) > 10
    paragraphs = {found.end() for found in re.finditer(r"\n\n", text)}
    assert sum(start in paragraphs for start in starts) > 0.9 * len(starts)


@pytest.mark.parametrize("overlap", [0, 25])
@pytest.mark.parametrize("edit", ["replace", "insert", "delete"])
def test_an_edit_changes_its_passage_and_neighbours(edit, overlap):
    changed = []
    for seed in range(20):
        paragraphs = written(seed)
        rng = random.Random(seed)
        place = rng.choice(paragraphs)
        n = rng.randrange(len(place))
        before = joined(paragraphs)
        if edit != "insert":
            place.pop(n)
        if edit != "delete":
            place.insert(n, f"Another sentence altogether {seed}.")
        texts = [
            {p.text for p in cut(document_of(t, "s"), count=words, most=60, overlap=overlap)}
            for t in (before, joined(paragraphs))
        ]
        changed.append(len(texts[1] - texts[0]))
        assert len(texts[1]) > 20
    assert max(changed) <= 5
    assert sum(changed) / len(changed) <= (2 if overlap == 0 else 3)


def test_an_overlap_repeats_whole_sentences():
    text = joined(written(2))
    plain = list(cut(document_of(text, "s"), count=words, most=50))
    passages = list(cut(document_of(text, "s"), count=words, most=50, overlap=20))
    starts = {start for start, _ in sentences(text)}
    overlaps = [a.end - b.start for a, b in pairwise(passages)]
    assert all(passage.start in starts for passage in passages)
    assert all(words(passage.text) <= 50 for passage in passages)
    assert max(overlaps) > 0
    for a, b in pairwise(passages):
        assert words(text[b.start : a.end]) <= 20
    assert len(passages) > len(plain)


def test_passages_end_with_headings_and_pages():
    sections = [
        Section(text="One. ", start=0, heading=("A",), page=1),
        Section(text="Two. ", start=5, heading=("A",), page=1),
        Section(text="Three. ", start=10, heading=("A", "B"), page=1),
        Section(text="Four. ", start=17, heading=("A", "B"), page=2),
    ]
    passages = list(cut(document(*sections), count=words, most=100, metadata={"kind": "x"}))
    assert [(p.text, p.heading, p.page) for p in passages] == [
        ("One. Two.", ("A",), 1),
        ("Three.", ("A", "B"), 1),
        ("Four.", ("A", "B"), 2),
    ]
    assert {(p.source, p.title, p.metadata["kind"]) for p in passages} == {("s", "t", "x")}


def test_code_keeps_its_indentation_and_is_cut_at_empty_lines():
    text = "".join(f"    if a{n}:\n        b. c\n\n" for n in range(30))
    passages = list(cut(blocks(text, [7], is_code=True), count=words, most=20))
    assert all(re.match(r"    if a\d+:\n        b\. c", passage.text) for passage in passages)
    assert all(passage.text.endswith("c") for passage in passages)


@pytest.mark.parametrize("kind", ["words", "one word", "white space"])
def test_a_sentence_without_an_end_is_cut_where_its_characters_say(kind):
    rng = random.Random(3)
    length = 2 * LONGEST_CHARACTERS
    letters = {"words": "abcdefg   ", "one word": "abcdefg", "white space": " \t"}[kind]
    text = "start " + "".join(rng.choices(letters, k=length)) + " end"
    found = [
        list(cut(blocks(t, sizes), count=len, most=3000))
        for t, sizes in ((text, [1000]), (text, [10**7]), ("More at the start. " + text, [99]))
    ]
    assert found[0] == found[1]
    texts = [{passage.text for passage in passages} for passages in found[1:]]
    if kind != "white space":
        assert len(texts[0]) > 40
        assert len(texts[0] - texts[1]) < 0.7 * len(texts[0])


def test_settings_out_of_bounds():
    with pytest.raises(UsageError, match="`most` must be at least 1"):
        list(cut(document_of("a", "s"), count=words, most=0))
    with pytest.raises(UsageError, match="`overlap` must be between 0 and 5"):
        list(cut(document_of("a", "s"), count=words, most=10, overlap=6))


# Tables


def table(rows, seed=0):
    rng = random.Random(seed)
    names = ("id", "name", "note")
    return [(str(n), rng.choice("abc") * 3, str(rng.random())) for n in range(rows)], names


def of_rows(rows, header, size=10**6):
    return document(
        *(
            Section(
                text="",
                start=0,
                table=Table(header, tuple(rows[n : n + size])),
                first_row=n + 1,
            )
            for n in range(0, len(rows), size)
        )
    )


def test_passages_of_a_table_are_its_chunks_however_it_is_read():
    rows, header = table(200)
    passages = list(cut(of_rows(rows, header, size=7), count=words, most=80))
    whole = Table(header, tuple(rows))
    chunks = whole.chunks(lambda t: words("".join(t.pieces(80))), 80)
    assert [passage.table for passage in passages] == list(chunks)
    assert sum((p.table.rows for p in passages), ()) == tuple(rows)
    for passage in passages:
        assert passage.table.rows == tuple(rows[passage.start - 1 : passage.end - 1])
        assert passage.text == "".join(passage.table.pieces())
        assert words(passage.text) <= 80


def test_a_changed_row_changes_its_own_group():
    rows, header = table(200)
    before = {p.text for p in cut(of_rows(rows, header), count=words, most=80)}
    rows[77] = ("77", "changed", "0")
    after = {p.text for p in cut(of_rows(rows, header), count=words, most=80)}
    assert 1 <= len(after - before) <= 2


def test_a_long_cell_is_cut_and_the_others_of_its_row_stay_with_each_part():
    text = joined(written(4))
    rows = [("1", "short"), ("2", text), ("3", "short too")]
    passages = list(cut(of_rows(rows, ("id", "text")), count=words, most=60))
    parts = [passage for passage in passages if (passage.start, passage.end) == (2, 3)]
    assert len(parts) == len(passages) - 2
    assert all(words(passage.text) <= 60 for passage in passages)
    assert {passage.table.rows[0][0] for passage in parts} == {"2"}
    said = " ".join(passage.table.rows[0][1] for passage in parts)
    assert said.split() == text.split()
    assert len({passage.id for passage in passages}) == len(passages)


def test_a_row_of_many_columns_is_cut_between_them():
    header = tuple(f"c{n}" for n in range(100))
    rows = [tuple(f"v{n}" for n in range(100))]
    passages = list(cut(of_rows(rows, header), count=words, most=60))
    assert sum((p.table.header for p in passages), ()) == header
    assert sum((p.table.rows[0] for p in passages), ()) == rows[0]
    assert all(words(passage.text) <= 60 for passage in passages)


def test_a_column_whose_name_leaves_no_room():
    rows, header = [("a",)], ("very " * 50,)
    with pytest.raises(InvalidSourceError, match="the name of a column takes 5"):
        list(cut(of_rows(rows, header), count=words, most=20))


# Memory

CUTTING = """
import sys
from xattn.library.cutting import cut
from xattn.library.documents import read_document
from xattn.native.process import peak_bytes
document = read_document(sys.argv[1])
passages = cut(document, count=lambda text: text.count(" ") + 1, most=200)
end = sum(1 for _ in passages)
print(end, peak_bytes())
"""


def peak_of(path):
    """Passages of a file, and the most that was in RAM, in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", CUTTING, path], capture_output=True, check=True, timeout=500
    )
    return map(int, ran.stdout.split())


def grown(tmp_path, megabytes, line):
    """How many more bytes are in RAM for a file of so many megabytes than for a small one."""
    peaks = []
    for name, size in (("small", 1), ("large", megabytes)):
        file = tmp_path / f"{name}.txt"
        with file.open("w") as opened:
            for n in range(size * 1_000_000 // len(line)):
                opened.write(line.format(n))
        passages, peak = peak_of(file)
        assert passages > 100 * size
        peaks.append(peak)
    return peaks[1] - peaks[0]


SENTENCES = "Sentence number {} of a long text says as little as the one before it did."


@pytest.mark.parametrize("end", ["\n", " "])
def test_memory_stays_flat_while_a_long_text_is_cut(tmp_path, end):
    assert grown(tmp_path, 12, SENTENCES + end) < 4_000_000


@pytest.mark.slow
def test_memory_stays_flat_while_a_very_long_text_is_cut(tmp_path):
    assert grown(tmp_path, 300, SENTENCES + "\n") < 4_000_000
