"""Questions with known answers: the SQuAD format (Rajpurkar et al. 2016), and how it is scored."""

import gzip
import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xattn.errors import InvalidSourceError, SourceNotFoundError, UnreadableSourceError


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, what may be answered, and the paragraph that says so."""

    text: str
    answers: tuple[str, ...]
    paragraph: int
    """Its place among the paragraphs."""


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """A paragraph of an article."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A file of questions."""

    paragraphs: tuple[Paragraph, ...]
    questions: tuple[Question, ...]


def read_questions(path: Path) -> Questions:
    """A ``.json`` or ``.json.gz`` file in SQuAD's format.

    Raises :class:`~xattn.SourceError` where it is missing, unreadable, or in another format.
    """
    try:
        content = path.read_bytes()
        data = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"there is no file {str(path)!r}.") from error
    except (OSError, EOFError, ValueError) as error:
        raise UnreadableSourceError(f"{str(path)!r} is not readable as JSON: {error}") from error
    try:
        found = _read(data)
    except (KeyError, TypeError, IndexError) as error:
        raise InvalidSourceError(
            f"{str(path)!r} is not in SQuAD's format (data, paragraphs, qas, answers): {error!r}."
        ) from error
    if not found.questions:
        raise InvalidSourceError(f"{str(path)!r} has no question with an answer.")
    return found


def _read(data: Any) -> Questions:
    paragraphs: list[Paragraph] = []
    questions: list[Question] = []
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                if answers:
                    place = len(paragraphs)
                    questions.append(
                        Question(text=asked["question"], answers=answers, paragraph=place)
                    )
            title = article.get("title", "").replace("_", " ")
            paragraphs.append(Paragraph(title=title, text=paragraph["context"]))
    return Questions(paragraphs=tuple(paragraphs), questions=tuple(questions))


def normalized(text: str) -> str:
    """As SQuAD's scorer compares: lower case, no punctuation, no articles, single spaces."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def contains(text: str, answers: Sequence[str]) -> bool:
    """Whether any of the answers is in ``text``."""
    words = f" {normalized(text)} "
    return any(f" {normalized(answer)} " in words for answer in answers)


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Whether ``text`` is one of the answers."""
    return normalized(text) in {normalized(answer) for answer in answers}


def f1(text: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words, with the best of the answers."""
    return max(_f1(normalized(text).split(), normalized(answer).split()) for answer in answers)


def _f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def auc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """Chance that a right one has a higher score than a wrong one; None without both kinds."""
    good = [s for s, r in zip(scores, right, strict=True) if r]
    bad = [s for s, r in zip(scores, right, strict=True) if not r]
    if not good or not bad:
        return None
    wins = sum((a > b) + 0.5 * (a == b) for a in good for b in bad)
    return wins / (len(good) * len(bad))
