"""Where long texts are cut: at the ends of sentences, decided by the sentences themselves.

Content-defined chunking (Muthitacharoen, Chen and Mazières 2001) on sentences: a chunk ends where
the digest of its last sentence says so, once it has some length, and no later than it must. An edit
moves no boundary but those beside it, so that all other chunks keep their names.
"""

import re
from collections.abc import Callable, Iterator

from xattn.errors import require
from xattn.memory import digest_of

_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])[”’」』）]*\s*|\n+\s*")
_WORD_END = re.compile(r"\s+")
ONE_IN = 4
"""Of this many sentences, one may end a chunk."""


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """``[start, end)`` of each sentence with the space after it; together they are the text."""
    start = 0
    for found in _SENTENCE_END.finditer(text):
        if found.end() > start:
            yield start, found.end()
            start = found.end()
    if start < len(text):
        yield start, len(text)


def chunks(text: str, count: Callable[[str], int], most: int) -> list[tuple[int, int]]:
    """``[start, end)`` of pieces of ``text`` that ``count`` finds no longer than ``most`` (tokens).

    A sentence that is longer alone is cut between words, a word that is longer between characters.
    """
    require(most >= 1, "most", "at least 1", most)
    pieces: list[tuple[int, int]] = []
    start, length = 0, 0
    for first, last in sentences(text):
        size = count(text[first:last])
        if length and length + size > most:
            pieces.append((start, first))
            start, length = first, 0
        if size > most:
            cuts = list(_within(text, first, last, count, most))
            pieces += cuts[:-1]
            start = cuts[-1][0]
            size = count(text[start:last])
        length += size
        if 2 * length >= most and _ends_chunk(text[first:last]):
            pieces.append((start, last))
            start, length = last, 0
    if start < len(text):
        pieces.append((start, len(text)))
    return pieces


def _ends_chunk(sentence: str) -> bool:
    return int(digest_of(sentence.strip().encode("utf-8", "surrogatepass"))[:8], 16) % ONE_IN == 0


def _within(
    text: str, first: int, last: int, count: Callable[[str], int], most: int
) -> Iterator[tuple[int, int]]:
    start, end = first, first
    places = [found.end() for found in _WORD_END.finditer(text, first, last)]
    for place in (*places, last):
        if end > start and count(text[start:place]) > most:
            yield start, end
            start = end
        while count(text[start:place]) > most and place - start > 1:
            # A word that is too long alone, or a script without spaces: between characters.
            cut = start + max(1, (place - start) // 2)
            while cut - start > 1 and count(text[start:cut]) > most:
                cut = start + (cut - start) // 2
            yield start, cut
            start = cut
        end = place
    yield start, last
