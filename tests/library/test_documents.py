"""Readers: what is read of each format, where it is in the file, and what cannot be read."""

import datetime
import io
import json
import os
import random
import sys
import zipfile
from pathlib import Path

import docx
import pyarrow
import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from xattn.errors import (
    InvalidSourceError,
    MissingExtraError,
    SourceError,
    SourceNotFoundError,
    UnreadableSourceError,
)
from xattn.inputs.table import Table, read_table
from xattn.library.cutting import cut
from xattn.library.documents import digest_of_file, files, find_files, read_document


def words(text):
    return len(text.split())


def passages_of(path, most=100):
    return list(cut(read_document(path), count=words, most=most))


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_offsets_are_those_of_the_decoded_file(tmp_path, encoding, end):
    text = end.join(["Café au lait.", "", "Cafe\u0301 is not composed.", "𝒳 is one character."])
    path = put(tmp_path, "a.txt", text.encode(encoding))
    [passage] = passages_of(path)
    assert text[passage.start : passage.end] == text
    assert passage.text == text.replace("e\u0301", "é")
    assert (passage.source, passage.title, passage.page) == (str(path), "a", None)
    short = passages_of(path, most=4)
    assert [text[p.start : p.end] for p in short] == [
        "Café au lait.",
        "Cafe\u0301 is not composed.",
        "𝒳 is one character.",
    ]


def test_a_document_is_read_as_often_as_it_is_asked(tmp_path):
    document = read_document(put(tmp_path, "a.txt", "One."))
    assert list(document.sections()) == list(document.sections())


MARKDOWN = """---
title: "A guide"
---
Before any heading.

# First *thing*

Text of the first.

```python
# not a heading
x = 1
```

Set below
---------

## Code only

    indented

### Table

Above it.

| name | born |
|------|------|
| Ada  | 1815 |
| `A\\|B` *c* | 1912 |

Below it.

# Last
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_markdown(tmp_path, end):
    text = MARKDOWN.replace("\n", end)
    path = put(tmp_path, "a.md", text)
    passages = passages_of(path)
    assert {passage.title for passage in passages} == {"A guide"}
    written = [passage for passage in passages if passage.table is None]
    assert [(text[p.start : p.end].split()[-1], p.heading) for p in written] == [
        ("heading.", ()),
        ("```", ("First thing",)),
        ("indented", ("First thing", "Code only")),
        ("it.", ("First thing", "Code only", "Table")),
        ("it.", ("First thing", "Code only", "Table")),
        ("Last", ("Last",)),
    ]
    assert all(passage.text == text[passage.start : passage.end] for passage in written)
    assert "# not a heading" in written[1].text
    assert written[2].text.startswith("Set below")
    [table] = [passage for passage in passages if passage.table is not None]
    assert table.table == Table(("name", "born"), (("Ada", "1815"), ("A|B c", "1912")))
    assert (table.start, table.end) == (1, 3)


@pytest.mark.parametrize(
    ("text", "title"),
    [("Text.\n\n# One\n\n# Two", "One"), ("## Second level", "a"), ("---\nx: y\n---\n# H", "H")],
)
def test_titles_of_markdown(tmp_path, text, title):
    assert read_document(put(tmp_path, "a.md", text)).title == title


# HTML

PAGE = """<!doctype html><html><head><title> A &amp; B </title><style>p {}</style></head><body>
<nav>Home <nav hidden>and away</nav></nav><header>Masthead</header>
<main><h1>First<a class="headerlink">¶</a></h1>
<p>Some <b>bold</b>
text &lt;here&gt;.<br>A new line.<script>alert(1)</script></p>
tail <ul><li>one</li><li><p>two</p></li></ul>
<pre>def f():
    return 1
</pre>
<h2>Data</h2>
<table><caption>c</caption><tr><th>name</th><th>born</th><th>died</th></tr>
<tr><td>Ada</td><td colspan="2">1815 <i>to</i> 1852</td></tr>
<tr><td rowspan="2">Alan</td><td>1912</td><td>1954</td></tr><tr><td>x</td></tr></table>
<h2>Layout</h2>
<table><tr><td>left</td><td>right</td></tr><tr><td><p>below</p></td></tr></table>
<h3>Nothing below</h3></main><footer>Imprint</footer></body></html>"""


def test_html(tmp_path):
    path = put(tmp_path, "a.html", PAGE)
    document = read_document(path)
    assert document.title == "A & B"
    text = "".join(section.text for section in document.sections())
    passages = passages_of(path)
    written = [passage for passage in passages if passage.table is None]
    assert [(p.text, p.heading) for p in written] == [
        (
            "First\n\nSome bold text <here>.\nA new line.\n\ntail\n\n- one\n\n-\n\ntwo\n\n"
            "def f():\n    return 1",
            ("First",),
        ),
        ("Data\n\nc", ("First", "Data")),
        ("Layout\n\nleft | right\n\nbelow", ("First", "Layout")),
        ("Nothing below", ("First", "Layout", "Nothing below")),
    ]
    assert all(text[p.start : p.end] == p.text for p in written)
    [table] = [passage for passage in passages if passage.table is not None]
    assert table.heading == ("First", "Data")
    assert table.table == Table(
        ("name", "born", "died"),
        (
            ("Ada", "1815 to 1852", "1815 to 1852"),
            ("Alan", "1912", "1954"),
            ("Alan", "x", ""),
        ),
    )


def test_a_page_without_main_text_is_read_as_a_whole(tmp_path):
    page = "<header>Top</header><p>a<article>one</article><article>two</article><h1>The end"
    document = read_document(put(tmp_path, "a.htm", page))
    assert document.title == "The end"
    texts = [section.text for section in document.sections()]
    assert texts == ["Top\n\n", "a\n\n", "one\n\n", "two\n\n", "The end\n\n"]


def test_a_page_whose_cells_span_more_than_there_is(tmp_path):
    rows = "<tr><td colspan=99999999 rowspan=99999999>1<td>2" * 100
    page = f"<table><tr><th>a<th>b<th>c</tr>{rows}</table>"
    [section] = read_document(put(tmp_path, "a.html", page)).sections()
    assert section.table == Table(("a", "b", "c"), (("1", "2", ""),) * 100)


def test_a_page_as_deep_as_one_can_be(tmp_path):
    page = "<div>" * 20_000 + "bottom" + "</div>" * 20_000
    [passage] = passages_of(put(tmp_path, "a.html", page))
    assert passage.text == "bottom"


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [("iso-8859-1", "cp1252"), ("utf-8", "utf-8"), ("UTF-16", "utf-8"), ("koi8-r", "koi8-r"),
     ("hex", "utf-8"), ("no-such", "utf-8")],
)  # fmt: skip
def test_a_page_is_decoded_as_it_says(tmp_path, declared, encoding):
    text = {"koi8-r": "мир", "cp1252": "café – €"}.get(encoding, "café мир")
    page = f'<meta http-equiv=x content="text/html; charset={declared}"><p>{text}</p>'
    [passage] = passages_of(put(tmp_path, "a.html", page.encode(encoding)))
    assert passage.text == text


# PDF


def pdf(*pages, title=None):
    """A PDF by hand: a page for each text, its lines one below the other."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for lines in pages:
        shown = " ".join(f"({line}) Tj 0 -20 Td" for line in lines.split("\n") if line)
        content = f"BT /F1 12 Tf 72 700 Td {shown} ET"
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R "
            "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> "
            ">> >>"
        )
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    objects.append(f"<< /Title ({title or ''}) >>")
    written, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(written))
        written += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    count = len(objects) + 1
    return (
        written
        + (
            f"xref\n0 {count}\n0000000000 65535 f \n{table}trailer\n<< /Size {count} /Root 1 0 R "
            f"/Info {len(objects)} 0 R >>\nstartxref\n{len(written)}\n%%EOF\n"
        ).encode()
    )


def encrypted(content, password):
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(content))
    writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    written = io.BytesIO()
    writer.write(written)
    return written.getvalue()


PDF = pdf("The first page.\nIts second line.", "", "The third page.", title="A report")


@pytest.mark.parametrize("content", [PDF, encrypted(PDF, ""), b"\n\n" + PDF])
def test_pdf(tmp_path, content):
    path = put(tmp_path, "a.pdf", content)
    text = "".join(section.text for section in read_document(path).sections())
    passages = passages_of(path)
    assert [(p.text, p.page, p.title) for p in passages] == [
        ("The first page.\nIts second line.", 1, "A report"),
        ("The third page.", 3, "A report"),
    ]
    assert [text[p.start : p.end] for p in passages] == [p.text for p in passages]
    assert read_document(put(tmp_path, "untitled.pdf", pdf("x"))).title == "untitled"


# DOCX


def docx_bytes(document):
    written = io.BytesIO()
    document.save(written)
    return written.getvalue()


def a_docx(title=""):
    document = docx.Document()
    document.core_properties.title = title
    document.add_heading("Named in the text", 0)
    document.add_heading("One", 1)
    document.add_heading("One and one", 2)
    document.add_paragraph("First paragraph. Of two sentences.")
    document.add_paragraph("An item", style="List Bullet")
    table = document.add_table(3, 3)
    for row, cells in zip(table.rows, ("abc", "123", "456"), strict=True):
        for cell, text in zip(row.cells, cells, strict=True):
            cell.text = text
    table.cell(2, 0).merge(table.cell(2, 1))
    document.add_heading("Two", 1)
    return docx_bytes(document)


def test_docx(tmp_path):
    path = put(tmp_path, "a.docx", a_docx("Of its properties"))
    text = "".join(section.text for section in read_document(path).sections())
    passages = passages_of(path)
    written = [passage for passage in passages if passage.table is None]
    assert [(p.text, p.heading) for p in written] == [
        ("Named in the text", ()),
        (
            "One\n\nOne and one\n\nFirst paragraph. Of two sentences.\n\n- An item",
            ("One", "One and one"),
        ),
        ("Two", ("Two",)),
    ]
    assert [text[p.start : p.end] for p in written] == [p.text for p in written]
    [table] = [passage for passage in passages if passage.table is not None]
    assert table.table == Table(("a", "b", "c"), (("1", "2", "3"), ("4 5", "4 5", "6")))
    assert table.heading == ("One", "One and one")
    assert {passage.title for passage in passages} == {"Of its properties"}
    assert read_document(put(tmp_path, "b.docx", a_docx())).title == "Named in the text"


def damaged(content, name):
    """An archive with half of one of its parts."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        for part in old.namelist():
            bytes_ = old.read(part)
            new.writestr(part, bytes_[: len(bytes_) // 2] if part == name else bytes_)
    return written.getvalue()


def bomb():
    """An archive that says it unpacks to 600 MiB."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
        archive.filelist[0].file_size = 600 << 20
    return written.getvalue()


# Records


def test_csv(tmp_path):
    text = 'name,note\n\nAda,"two\nlines, quoted"\nBo,\n'
    [passage] = passages_of(put(tmp_path, "a.csv", text.encode("utf-8-sig")))
    assert passage.table == Table(("name", "note"), (("Ada", "two\nlines, quoted"), ("Bo", "")))
    assert (passage.start, passage.end) == (1, 3)
    assert passage.table == read_table(tmp_path / "a.csv")
    [tabbed] = passages_of(put(tmp_path, "a.tsv", "name\tnote\na, b\tc\n"))
    assert tabbed.table == Table(("name", "note"), (("a, b", "c"),))


def test_json_lines(tmp_path):
    records = [{"id": n, "note": None if n % 2 else [n, "é"]} for n in range(400)]
    records[399] = {"id": 399, "more": {"nested": [1.5, True]}}
    lines = "\n\n".join(json.dumps(record) for record in records)
    passages = passages_of(put(tmp_path, "a.jsonl", lines))
    rows = [row for passage in passages for row in passage.table.rows]
    assert rows[:2] == [(0, (0, "é")), (1, None)]
    assert rows[399] == (399, None, '{"nested": [1.5, true]}')
    assert passages[-1].table.header == ("id", "note", "more")
    assert (passages[-1].start, passages[-1].end) == (400, 401)
    assert {passage.table.header for passage in passages[:-1]} == {("id", "note")}


def test_parquet(tmp_path):
    columns = {
        "n": list(range(600)),
        "when": [datetime.date(2020, 1, 1) + datetime.timedelta(n) for n in range(600)],
        "what": [{"a": n} if n % 2 else None for n in range(600)],
        "how long": [datetime.timedelta(n) for n in range(600)],
        "bytes": [b"\0\xff"] * 600,
    }
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=100)
    passages = passages_of(path)
    rows = [row for passage in passages for row in passage.table.rows]
    assert [row[0] for row in rows] == columns["n"]
    assert rows[1] == (1, datetime.date(2020, 1, 2), '{"a": 1}', '"1 day, 0:00:00"', b"\0\xff")
    for passage in passages:
        assert passage.table.rows == tuple(rows[passage.start - 1 : passage.end - 1])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_changed_record_changes_its_passage_only(tmp_path, suffix):
    def texts(change):
        values = [f"value {n * 7919 % 1000}" for n in range(900)]
        if change:
            values[500] = "another"
        path = tmp_path / f"a.{suffix}"
        if suffix == "csv":
            path.write_text("v\n" + "\n".join(values))
        elif suffix == "jsonl":
            path.write_text("\n".join(json.dumps({"v": value}) for value in values))
        else:
            parquet.write_table(pyarrow.table({"v": values}), path)
        return {passage.text for passage in passages_of(path)}

    before, after = texts(False), texts(True)
    assert len(before) > 40
    assert len(after - before) <= 2


# Source code

CODE = '''"""About."""

import os

# Before it.
@decorated
class Outer(Base):
    x = 1

    def method(
        self,
    ):
        return 2

    # About the second.
    async def second(self): ...

    y = 2


if os:
    def inner(): ...
z = 3
'''


def test_code(tmp_path):
    path = put(tmp_path, "a.py", CODE)
    passages = passages_of(path)
    assert [(p.text.split("\n")[0], p.heading) for p in passages] == [
        ('"""About."""', ()),
        ("# Before it.", ("Outer",)),
        ("    def method(", ("Outer", "method")),
        ("    # About the second.", ("Outer", "second")),
        ("    y = 2", ("Outer",)),
        ("if os:", ()),
        ("    def inner(): ...", ("inner",)),
        ("z = 3", ()),
    ]
    assert [CODE[p.start : p.end] for p in passages] == [p.text for p in passages]
    assert passages[0].title == "a.py"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("pub(crate) async fn run<T>(x: T) {", "run"),
        ("func (s *Server) Serve() error {", "Serve"),
        ("export default class App extends Base {", "App"),
        ("public static final class Inner {", "Inner"),
        ("impl<T> Tree<T> {", "Tree"),
        ("namespace a::b {", "a::b"),
        ("function* walk() {", "walk"),
    ],
)
def test_definitions_of_other_languages(tmp_path, line, name):
    code = f"before;\n\n{line}\n  inside;\n}}\nafter;\n"
    passages = passages_of(put(tmp_path, "a.rs", code))
    assert [(p.heading, p.text) for p in passages] == [
        ((), "before;"),
        ((name,), f"{line}\n  inside;\n}}"),
        ((), "after;"),
    ]


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(["a.py", "a.md", "a.txt"]),
    st.lists(
        st.sampled_from(
            ["# H", "## I", "text. More", "", "```", "    code", "class A:", "  def f():", "\t}",
             "| a | b |", "---", "> # q", "- x", "@d", "é\u0301\u2028"]
        ),
        max_size=40,
    ).map("\n".join),
)  # fmt: skip
def test_sections_of_text_are_the_file(tmp_path_factory, name, text):
    path = put(tmp_path_factory.mktemp("sections"), name, text + "\nend")
    end = 0
    for section in read_document(path).sections():
        if section.table is None:
            assert (text + "\nend")[section.start :].startswith(section.text)
            assert name == "a.md" or section.start == end
            end = section.start + len(section.text)
    assert end == len(text + "\nend")


# What cannot be read


def test_a_cell_may_be_long(tmp_path):
    long = "word " * 100_000
    path = put(tmp_path, "a.csv", f'title,text\nshort,"{long}"\n')
    [section] = read_document(path).sections()
    assert section.table.rows == (("short", long),)


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("a.md", bytes(range(1, 256)), UnreadableSourceError, "is no text in UTF-8"),
        ("a.txt", b"text\0more", UnreadableSourceError, "holds NUL characters"),
        ("a.md", b"text\0more", UnreadableSourceError, "holds NUL characters"),
        ("a.txt", "é".encode("latin-1"), UnreadableSourceError, "0xe9.*Convert it to UTF-8"),
        ("a.txt", "é".encode()[:1], UnreadableSourceError, "unexpected end of data"),
        ("a.txt", "ab".encode("utf-16")[:-1], UnreadableSourceError, "truncated data"),
        ("a.txt", b"", InvalidSourceError, "is empty; leave it out"),
        ("a.md", b" \n\n", InvalidSourceError, "has no text and no rows"),
        ("a.md", b"%PDF-1.7 ...", UnreadableSourceError, "is a PDF; give it the suffix .pdf"),
        ("a.txt", b"PK\x03\x04...", UnreadableSourceError, "is a ZIP archive"),
        ("a.pdf", encrypted(PDF, "secret"), UnreadableSourceError, "needs a password; save"),
        ("a.pdf", PDF[:200], UnreadableSourceError, "is damaged"),
        ("a.pdf", pdf("", ""), InvalidSourceError, "run OCR over it"),
        ("a.docx", a_docx()[:5000], UnreadableSourceError, "is damaged"),
        ("a.docx", damaged(a_docx(), "word/document.xml"), UnreadableSourceError, "is damaged"),
        ("a.docx", bomb(), InvalidSourceError, "600 MiB once it is unpacked"),
        ("a.docx", docx_bytes(docx.Document()), InvalidSourceError, "has no text and no rows"),
        ("a.parquet", b"PAR1" + bytes(100) + b"PAR1", UnreadableSourceError, "is damaged"),
        ("a.parquet", b"PARE....", UnreadableSourceError, "save it without encryption"),
        (
            "a.csv",
            "a,b\n1,2\n3\n",
            InvalidSourceError,
            "line 3 has 1 cells between ',', but the header has 2",
        ),
        ("a.csv", 'a,b\n"1"x,2\n', UnreadableSourceError, "is badly quoted near line 2"),
        ("a.csv", "a,b\n", InvalidSourceError, "has no text and no rows"),
        ("a.jsonl", '{"a": 1}\n{"a"', UnreadableSourceError, "has no JSON in line 2"),
        ("a.jsonl", "[1]", UnreadableSourceError, r"line 1 is \[1\]"),
        ("a.jsonl", '{"a": "\\ud800"}', UnreadableSourceError, "surrogates not allowed"),
        ("a.jsonl", "[" * 100_000, UnreadableSourceError, "has no JSON in line 1"),
        ("a.html", "<p>\0", UnreadableSourceError, "holds NUL characters"),
        ("a.html", "<nav>Home</nav>", InvalidSourceError, "has no text and no rows"),
        ("a.pdf", b"text", UnreadableSourceError, "is no PDF file"),
        ("a.docx", b"\xd0\xcf\x11\xe0 ...", UnreadableSourceError, "without a password"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, error, says):
    path = put(tmp_path, name, content)
    with pytest.raises(error, match=says) as raised:
        list(read_document(path).sections())
    assert repr(str(path)) in str(raised.value)
    assert path not in open_files()


def open_files() -> set[Path]:
    return {place.resolve() for place in Path("/proc/self/fd").iterdir() if place.exists()}


def test_files_that_are_none(tmp_path):
    with pytest.raises(SourceNotFoundError, match="there is no file"):
        read_document(tmp_path / "a.txt")
    with pytest.raises(UnreadableSourceError, match="is no regular file"):
        read_document(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableSourceError, match="is no regular file"):
        read_document(tmp_path / "pipe")
    path = put(tmp_path, os.fsdecode(b"\xff.txt"), "text")
    with pytest.raises(UnreadableSourceError, match="not UTF-8; rename it"):
        read_document(path)
    path = put(tmp_path, "gone.txt", "text")
    document = read_document(path)
    path.unlink()
    with pytest.raises(SourceNotFoundError, match=r"gone\.txt"):
        list(document.sections())


def a_parquet():
    written = io.BytesIO()
    parquet.write_table(pyarrow.table({"n": list(range(300)), "text": ["x"] * 300}), written)
    return written.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pdf", PDF),
        ("a.docx", a_docx("Title")),
        ("a.parquet", a_parquet()),
        ("a.html", PAGE.encode()),
        ("a.md", MARKDOWN.encode()),
        ("a.jsonl", b'{"a": [1, {"b": "\\u00e9"}]}\n' * 10),
        ("a.csv", b'a,b\n1,2\n"x\n",3\n' * 10),
    ],
)
def test_a_damaged_file_is_read_or_refused(tmp_path, name, content):
    rng, refused = random.Random(name), 0
    for _ in range(150):
        bytes_ = bytearray(content)
        for _ in range(rng.choice([1, 5, 30])):
            place = rng.randrange(len(bytes_))
            bytes_[place : place + rng.choice([1, 1, 40])] = rng.randbytes(rng.choice([1, 1, 40]))
        try:
            passages_of(put(tmp_path, name, bytes(bytes_)))
        except SourceError as error:
            assert repr(str(tmp_path / name)) in str(error)  # noqa: PT017
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("name", ["a.md", "a.html", "a.docx"])
def test_a_file_too_large_to_be_read_as_a_whole(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b"PK\x03\x04" if name == "a.docx" else b"text")
        file.truncate(files.WHOLE_BYTES + 1)
    with pytest.raises(InvalidSourceError, match=r"64\.0 MiB, but a file of its kind"):
        read_document(path)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_line_too_long_to_be_a_record(tmp_path, name):
    path = put(tmp_path, name, b"x" * (files.LINE_CHARACTERS + 1))
    with pytest.raises(InvalidSourceError, match="line 1 has 16777216 characters or more"):
        list(read_document(path).sections())


@pytest.mark.parametrize(
    ("module", "name", "content", "extra"),
    [
        ("markdown_it", "a.md", b"# x", "documents"),
        ("selectolax.lexbor", "a.html", b"x", "documents"),
        ("pypdf", "a.pdf", PDF, "documents"),
        ("docx", "a.docx", a_docx(), "documents"),
        ("pyarrow.parquet", "a.parquet", b"PAR1", "library"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path, monkeypatch, module, name, content, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"'{name}'.*pip install 'xattn\[{extra}\]'"):
        read_document(put(tmp_path, name, content))


# Finding files


def test_files_of_directories_and_patterns(tmp_path):
    wanted = ["Makefile", "a.md", "b/c.txt", "b/d/e.py", "z.unknown"]
    for name in (*wanted, ".hidden.md", ".git/config.txt", "b/.d/f.md", "lib.xattn/g.txt"):
        put(tmp_path, name, "text")
    put(tmp_path, "picture.unknown", b"\x89PNG\0\xff")
    put(tmp_path, "b/__init__.py", "")
    put(tmp_path, "b/__pycache__/e.py", "x")
    (tmp_path / "b/loop").symlink_to(tmp_path)

    def found(*paths, **options):
        return [str(f.relative_to(tmp_path)) for f in find_files(paths, **options)]

    assert sorted(found(tmp_path)) == wanted
    assert found(tmp_path, tmp_path / "a.md", tmp_path / "b") == found(tmp_path)
    assert found(tmp_path) == found(f"{tmp_path}/b/..")
    assert found(tmp_path / "b/*.txt", tmp_path / "picture.unknown") == [
        "b/c.txt",
        "picture.unknown",
    ]
    assert set(found(f"{tmp_path}/**/*.*")) == set(wanted) - {"Makefile"}
    assert {".hidden.md", ".git/config.txt", "b/.d/f.md"} < set(found(tmp_path, hidden=True))
    put(tmp_path, "[odd].md", "text")
    assert found(tmp_path / "[odd].md") == ["[odd].md"]


def test_paths_that_name_nothing(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no file or directory"):
        list(find_files([tmp_path / "a"]))
    with pytest.raises(SourceNotFoundError, match="no file that can be read matches"):
        list(find_files([tmp_path / "*.md"]))


def test_digests_of_files(tmp_path):
    a, b = put(tmp_path, "a", b"x" * 3_000_000), put(tmp_path, "b", b"x" * 3_000_001)
    assert digest_of_file(a) != digest_of_file(b)
    b.write_bytes(a.read_bytes())
    assert digest_of_file(a) == digest_of_file(b)
    with pytest.raises(SourceNotFoundError):
        digest_of_file(tmp_path / "c")
