"""Where long sources are cut: content decides, so that an edit changes the chunks it is in.

Content-defined chunking (Muthitacharoen, Chen and Mazières 2001) on sentences, with the choice by
local extremum of Bjørner, Blass and Gurevich (2010): of the sentences that a chunk may end with, it
ends with the one of the smallest digest. Chunks that begin at different places see mostly the same
sentences, choose the same one, and agree from there on.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from xattn.errors import require
from xattn.memory import digest_of

_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])[”’」』）]*\s*|\n+\s*")
_PARAGRAPH_END = re.compile(r"\n\s*\n\s*\Z")
_WORD_END = re.compile(r"\s+")
LEAST_SHARE = 4
"""A chunk holds at least this part of what fits: one fourth."""
REACH_CHARACTERS = 2048
"""How far from the middle of a sentence that is too long a place to cut it is looked for."""
SEEN_CHARACTERS = 16
"""Characters on each side of such a place that decide whether it is taken."""

Rank = tuple[int, str]
"""The smaller, the sooner a chunk ends there."""


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

    They end with sentences, and with paragraphs where they can. A sentence that is longer alone is
    cut between words, a word that is longer between characters. ``count`` sees each sentence once.
    """
    require(most >= 1, "most", "at least 1", most)
    found = [
        part for first, last in sentences(text) for part in parts(text, first, last, count, most)
    ]
    starts = [0, *(end for end, _ in found)]
    ranks = [rank(text[start:end]) for start, (end, _) in zip(starts, found, strict=False)]
    ends = group([size for _, size in found], ranks, most)
    return [(starts[a], starts[b]) for a, b in zip([0, *ends], ends, strict=False)]


def group(sizes: Sequence[int], ranks: Sequence[Rank], most: int) -> list[int]:
    """Where groups of neighbours end that have at most ``most`` together: before which of them.

    A group ends after the smallest rank, the last of several, of those that leave it a fourth of
    ``most`` or more. One that is larger alone is a group.
    """
    ends, start = [], 0
    while start < len(sizes):
        total, end, best = 0, start, None
        while end < len(sizes) and (end == start or total + sizes[end] <= most):
            total += sizes[end]
            enough = LEAST_SHARE * total >= most
            if enough and (best is None or ranks[end] <= ranks[best]):
                best = end
            end += 1
        start = end if best is None or end == len(sizes) else best + 1
        ends.append(start)
    return ends


def rank(sentence: str) -> Rank:
    """Ends of paragraphs come first; the digest decides between equals."""
    return 0 if _PARAGRAPH_END.search(sentence) else 1, _digest(sentence.strip())


def _digest(text: str) -> str:
    return digest_of(text.encode("utf-8", "surrogatepass"))


def parts(
    text: str, first: int, last: int, count: Callable[[str], int], most: int
) -> Iterator[tuple[int, int]]:
    """End and size of pieces of a sentence, each within ``most`` if it has several characters."""
    size = count(text[first:last])
    if size <= most or last - first == 1:
        yield last, size
        return
    middle = _middle(text, first, last)
    yield from parts(text, first, middle, count, most)
    yield from parts(text, middle, last, count, most)


def _middle(text: str, first: int, last: int) -> int:
    """A place near the middle that the characters around it choose: between words if there are."""
    middle = (first + last) // 2
    reach = min((last - first) // 4, REACH_CHARACTERS)
    low, high = middle - reach, middle + reach
    places = [found.end() for found in _WORD_END.finditer(text, low, high)]

    def around(place: int) -> str:
        return _digest(text[max(first, place - SEEN_CHARACTERS) : place + SEEN_CHARACTERS])

    return min(places or range(low, high + 1), key=around)
