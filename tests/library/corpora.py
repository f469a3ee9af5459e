"""Embedders that need no model, and small corpora."""

import random
import zlib
from pathlib import Path

import numpy as np

DIMENSIONS = 48
TOPICS = {
    "rivers": "river delta bank flood water bridge estuary source current",
    "castles": "castle wall tower siege knight moat gate drawbridge keep",
    "engines": "engine piston valve fuel cylinder torque exhaust crankshaft oil",
    "proteins": "protein enzyme folding acid membrane cell ribosome gene receptor",
    "markets": "market price trader bond share dividend auction broker yield",
}
FILLING = (
    "old large small often never quickly under above near between many few with without".split()
)


def words_of(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


class WordEmbedder:
    """A vector is the sum of one random vector for each word; it counts the texts it embeds."""

    def __init__(self, name: str = "words", dimensions: int = DIMENSIONS) -> None:
        self.name, self.dimensions = name, dimensions
        self.identity = f"{name}/{dimensions}"
        self.embedded: list[str] = []

    def count_tokens(self, text: str) -> int:
        return len(words_of(text))

    def embed_passages(self, texts):
        self.embedded += texts
        return np.stack([self.embed_question(text) for text in texts])

    def embed_question(self, text):
        vector = np.full(self.dimensions, 1e-3, dtype=np.float32)
        for word in words_of(text):
            seed = zlib.crc32(word.encode())
            vector += np.random.default_rng(seed).normal(size=self.dimensions).astype(np.float32)
        return vector / np.linalg.norm(vector)


def sentence(rng: random.Random, topic: str, mark: str) -> str:
    words = rng.choices(TOPICS[topic].split(), k=5) + rng.choices(FILLING, k=4)
    rng.shuffle(words)
    return f"{' '.join(words).capitalize()} {mark}."


def write_corpus(directory: Path, files: int = 6, sentences: int = 12, seed: int = 0) -> list[Path]:
    """Text files, each of one topic; every sentence ends with a word that no other has."""
    rng, paths = random.Random(seed), []
    directory.mkdir(parents=True, exist_ok=True)
    for n in range(files):
        topic = list(TOPICS)[n % len(TOPICS)]
        lines = [sentence(rng, topic, f"mark{n}x{m}") for m in range(sentences)]
        path = directory / f"{topic}{n}.txt"
        path.write_text(" ".join(lines))
        paths.append(path)
    return paths
