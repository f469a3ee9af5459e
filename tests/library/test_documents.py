"""Readers: what is read of each format, where it is in the file, and what cannot be read."""

import os

import pytest

from xattn.errors import InvalidSourceError, SourceNotFoundError, UnreadableSourceError
from xattn.inputs.table import Table
from xattn.library.cutting import cut
from xattn.library.documents import digest_of_file, find_files, read_document


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


# What cannot be read


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("a.md", bytes(range(1, 256)), UnreadableSourceError, "is not text in UTF-8"),
        ("a.txt", b"text\0more", UnreadableSourceError, "holds NUL characters"),
        ("a.md", b"text\0more", UnreadableSourceError, "holds NUL characters"),
        ("a.txt", "é".encode("latin-1"), UnreadableSourceError, "0xe9.*Convert it to UTF-8"),
        ("a.txt", "é".encode()[:1], UnreadableSourceError, "unexpected end of data"),
        ("a.txt", "ab".encode("utf-16")[:-1], UnreadableSourceError, "truncated data"),
        ("a.txt", b"", InvalidSourceError, "is empty; leave it out"),
        ("a.md", b" \n\n", InvalidSourceError, "has no text in it"),
        ("a.md", b"%PDF-1.7 ...", UnreadableSourceError, "is a PDF; give it the suffix .pdf"),
        ("a.txt", b"PK\x03\x04...", UnreadableSourceError, "is a ZIP archive"),
        ("a.docx", b"\xd0\xcf\x11\xe0 ...", UnreadableSourceError, "without a password"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, error, says):
    path = put(tmp_path, name, content)
    with pytest.raises(error, match=says) as raised:
        list(read_document(path).sections())
    assert repr(str(path)) in str(raised.value)


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


# Finding files


def test_files_of_directories_and_patterns(tmp_path):
    wanted = ["Makefile", "a.md", "b/c.txt", "b/d/e.py", "z.unknown"]
    for name in (*wanted, ".hidden.md", ".git/config.txt", "b/.d/f.md", "lib.xattn/g.txt"):
        put(tmp_path, name, "text")
    put(tmp_path, "picture.unknown", b"\x89PNG\0\xff")
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
