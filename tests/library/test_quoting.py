"""Citations beside their files: as they were, changed, gone."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xattn.errors import UsageError
from xattn.inputs.table import Table
from xattn.library.answer import Citation
from xattn.library.cutting import cut
from xattn.library.documents import digest_of_file, read_document
from xattn.library.quoting import checked, original_span, quote, quote_rows, standing_of


def words(text):
    return len(text.split())


def test_what_stands_at_a_place(tmp_path):
    text = "# One\n\nFirst. Second.\n\n# Two\n\nThird.\n"
    path = tmp_path / "a.md"
    path.write_text(text)
    digest = digest_of_file(path)
    start = text.index("Second")
    found = quote(str(path), start, start + 7, digest=digest)
    assert (found.standing, found.text, found.heading) == ("as it was", "Second.", ("One",))
    assert quote(str(path), 0, len(text), digest=digest).text == text
    assert quote(str(path), 1000, 1001, digest=digest).text == ""
    path.write_text(text.replace("Second", "Zweite"))
    found = quote(str(path), start, start + 7, digest=digest)
    assert (found.standing, found.text) == ("changed", "")
    path.unlink()
    assert quote(str(path), start, start + 7, digest=digest).standing == "gone"
    assert standing_of(str(path), digest) == "gone"


def test_a_place_in_a_long_file(tmp_path):
    path = tmp_path / "a.txt"
    text = "".join(f"{n} " for n in range(40_000))
    path.write_text(text)
    found = quote(str(path), 65_000, 140_000, digest=digest_of_file(path))
    assert found.text == text[65_000:140_000]


def test_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("n\n" + "".join(f"{n}\n" for n in range(1, 1001)))
    digest = digest_of_file(path)
    for start, end in ((1, 2), (250, 600), (1000, 1001)):
        rows = tuple((str(n),) for n in range(start, end))
        assert quote_rows(str(path), start, end, digest=digest).table == Table(("n",), rows)
    path.write_text("n\n")
    found = quote_rows(str(path), 1, 2, digest=digest)
    assert (found.standing, found.table) == ("changed", None)


def test_a_citation_of_a_file_that_is_not_composed(tmp_path):
    text = unicodedata.normalize("NFD", "Où est le café ? Là-bas, près du théâtre. Voilà.")
    path = tmp_path / "a.txt"
    path.write_text(text)
    [passage] = cut(read_document(path), count=words, most=50)
    for said in ("Là-bas,", "théâtre.", "est le"):
        start = passage.start + passage.text.index(said)
        citation = Citation(
            number=1, passage=passage, start=start, end=start + len(said), quote=said, support=1
        )
        found = checked(citation, digest_of_file(path))
        assert found.standing == "as it was"
        assert unicodedata.normalize("NFC", text[found.start : found.end]) == said
        assert text[found.start : found.end] != said or said == "est le"
    digest = digest_of_file(path)
    path.write_text(text + "More.")
    assert checked(citation, digest).standing == "changed"
    path.unlink()
    assert checked(citation, digest).standing == "gone"


def test_a_citation_of_a_composed_file_stays_where_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One. Two.")
    [passage] = cut(read_document(path), count=words, most=50)
    citation = Citation(number=1, passage=passage, start=5, end=9, quote="Two.", support=1)
    found = checked(citation, digest_of_file(path))
    assert (found.standing, found.start, found.end) == ("as it was", 5, 9)


@given(st.text(st.sampled_from("ae\u0301 é\u0958漢\u1100\u1161"), min_size=1), st.data())
def test_spans_of_a_text_are_found_in_what_it_was_composed_of(original, data):
    composed = unicodedata.normalize("NFC", original)
    start = data.draw(st.integers(0, len(composed) - 1))
    end = data.draw(st.integers(start + 1, len(composed)))
    first, last = original_span(original, start, end)
    assert composed[start:end] in unicodedata.normalize("NFC", original[first:last])
    if composed == original:
        assert (first, last) == (start, end)


def test_a_span_out_of_bounds():
    with pytest.raises(UsageError, match="a span of 0 to 3"):
        original_span("abc", 2, 4)
