"""Indexes a directory again and again and is killed in the middle; then once to the end.

``python killed.py LIBRARY DOCS ROUNDS SEED`` prints what was seen on the way, as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from corpora import WordEmbedder

from xattn.library.library import Library

SETTINGS = {"passage_tokens": 30, "overlap": 0}


class TellingEmbedder(WordEmbedder):
    """Writes a byte into a pipe whenever a batch begins."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self.pipe = pipe

    def embed_passages(self, texts):
        os.write(self.pipe, b"!")
        return super().embed_passages(texts)


def index(root: str, docs: str, pipe: int, before: str, after: str) -> None:
    """Note what there is, index, and note it again."""
    if Path(root).exists():
        Path(before).write_text(json.dumps(look(root)))
    with Library(root, embedder=TellingEmbedder(pipe), **SETTINGS) as library:
        library.add(docs, batch_passages=16)
    Path(after).write_text(json.dumps(look(root)))


def look(root: str) -> dict:
    """What a reader finds, and what is in the database."""
    with Library(root, embedder=WordEmbedder()) as library:
        passages = [(p.source, p.start, p.text) for p in library.passages()]
        found = library.search("castle", k=1000)
        return {
            "passages": sorted(passages),
            "found": sorted((f.passage.source, f.passage.start) for f in found),
            "rows": library._opened.index.count(),
            "unended": library._opened.catalogue.standing().unended,
        }


def in_child(work) -> int:
    """The process of a fork that does ``work``: LanceDB's threads are only ever in children."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def run(root: str, docs: str, killed_after: tuple[int, float] | None = None) -> tuple[str, str]:
    """One run, killed so many seconds after the beginning of so many batches; what it noted."""
    before, after = f"{root}.before", f"{root}.after"
    reading, writing = os.pipe()
    child = in_child(lambda: index(root, docs, writing, before, after))
    os.close(writing)
    if killed_after is not None:
        batches, seconds = killed_after
        for _ in range(batches):
            os.read(reading, 1)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reading)
    if killed_after is None and status:
        raise SystemExit("indexing failed")
    return before, after


def main(root: str, docs: str, rounds: int, seed: int) -> None:
    rng, noted = random.Random(seed), []
    _, clean = run(f"{root}-clean.xattn", docs)
    for _ in range(rounds):
        moment = (rng.randint(1, 20 // rounds), rng.uniform(0, 0.04))
        noted.append(Path(run(root, docs, moment)[0]).read_text())
    last, end = (Path(name).read_text() for name in run(root, docs))
    between = [json.loads(text) for text in [*noted[1:], last]]
    found = {"clean": json.loads(Path(clean).read_text()), "between": between}
    sys.stdout.write(json.dumps(found | {"end": json.loads(end)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
