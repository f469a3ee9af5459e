"""kill -9 at any time leaves a library that readers can use and the next run completes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import WordEmbedder, write_corpus
from killed import SETTINGS

from xattn.library.library import Library

HERE = Path(__file__).parent


def documents(directory):
    """Files, some of which a library had before: one is changed and one is gone since."""
    write_corpus(directory, files=40, sentences=24)
    (directory / "rivers5.txt").write_text("It is short now: a river.")
    (directory / "castles6.txt").unlink()


@pytest.mark.parametrize(("rounds", "seed"), [(5, 0), pytest.param(20, 1, marks=pytest.mark.slow)])
def test_nothing_is_doubled_and_nothing_lost(tmp_path, rounds, seed):
    docs, root = tmp_path / "docs", tmp_path / "corpus.xattn"
    write_corpus(docs, files=12, sentences=24)
    with Library(root, embedder=WordEmbedder(), **SETTINGS) as library:
        library.add(docs)
        before = {(p.source, p.start, p.text) for p in library.passages()}
    documents(docs)
    ran = subprocess.run(
        [sys.executable, str(HERE / "killed.py"), str(root), str(docs), str(rounds), str(seed)],
        stdout=subprocess.PIPE, timeout=300, check=True, cwd=HERE,
    )  # fmt: skip
    seen = json.loads(ran.stdout)
    after = {tuple(one) for one in seen["clean"]["passages"]}
    assert len(after) > 200
    for moment in seen["between"]:
        there = [tuple(one) for one in moment["passages"]]
        assert len(set(there)) == len(there)
        assert set(there) <= before | after
        assert {source for source, _, _ in before} - {str(docs / "castles6.txt")} <= {
            source for source, _, _ in there
        }
        assert moment["found"] == sorted([source, start] for source, start, _ in there)
    assert any(moment["unended"] for moment in seen["between"])
    assert seen["end"] == seen["clean"]
    assert seen["end"]["rows"] == len(after)
