"""Whether engines did the same work. One that did other work is no faster, it is wrong."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

Rule = Literal["same tokens", "as likely"]
"""``same tokens``: equal precision, token by token. ``as likely``: quantised weights may choose
other tokens, also from call to call, and no fewer; each engine's answers are as likely to the other
as to itself. How long they follow float32 is reported."""
CLOSE, FAR = 0.1, 0.5
"""Nats, of mean log-probabilities a token with int8 weights. What one engine says of an answer
differs from what another says by 0.03 on random weights, and by whole nats where one leaves out
something; what it says of two answers, by 0.2, and of one that nobody chose, by ten."""
FOLLOWED = 0.5
"""Share of another engine's answer that is said before another token, where likelihoods cannot be
compared."""

Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""Author -> judge -> how likely each answer is."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What comparing the outputs found."""

    rule: Rule
    holds: bool
    agreement: float | None
    """Share of tokens that all engines agree on; None where there was no second one."""
    faults: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()


def judge(
    rule: Rule, outputs: Mapping[str, Sequence[Any]], scores: Scores | None = None
) -> Verdict:
    """Compare what engines said, over all rounds and measures: name -> its distinct outputs."""
    faults, first = [], {}
    for name, found in outputs.items():
        first[name] = found[0]
        if len(found) > 1 and (rule == "same tokens" or len({*map(str, map(counts, found))}) > 1):
            faults.append(f"{name} gave {len(found)} different outputs: {where(*found[:2])}")
    if not first:
        return Verdict(rule=rule, holds=True, agreement=None)
    names = list(first)
    reference = first[names[0]]
    shares = []
    for name in names[1:]:
        shares.append(agreement(reference, first[name]))
        if rule == "same tokens" and first[name] != reference:
            faults.append(f"{names[0]} and {name} differ: {where(reference, first[name])}")
        elif counts(first[name]) != counts(reference):
            faults.append(
                f"{names[0]} and {name} made different numbers of tokens: "
                f"{counts(reference)} and {counts(first[name])}"
            )
        elif rule == "as likely" and scores is None:
            share = followed(first[name], reference)
            if share < FOLLOWED:
                faults.append(
                    f"{names[0]} and {name} part after {share:.0%} of the answers: "
                    f"{where(reference, first[name])}"
                )
    faults += _unlikely(scores or {})
    return Verdict(
        rule=rule,
        holds=not faults,
        agreement=min(shares) if shares else None,
        faults=tuple(faults),
        compared=tuple(names),
    )


def _unlikely(scores: Scores) -> Iterator[str]:
    pairs = [(author, name) for author in scores for name in scores if name != author]
    for author, name in pairs:
        own, seen, best = scores[author][author], scores[author][name], scores[name][name]
        for number, (to_itself, found, of_others) in enumerate(zip(own, seen, best, strict=True)):
            what = f"answer {number} of {author} has a log-probability of {found:.2f} a token"
            if not abs(to_itself - found) <= CLOSE:
                yield f"{what} to {name}, and {to_itself:.2f} to itself"
            if not found >= of_others - FAR:
                yield f"{what} to {name}, whose own has {of_others:.2f}"


def counts(outputs: Sequence[Sequence[int]]) -> list[int]:
    """Tokens of each answer."""
    return [len(answer) for answer in outputs]


def agreement(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Share of places that hold the same token."""
    pairs = list(zip_longest(ours, theirs, fillvalue=()))
    places = sum(max(len(a), len(b)) for a, b in pairs)
    same = sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False))
    return same / places if places else 1.0


def followed(outputs: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """Share of the reference's tokens that come before the first which is another."""
    shares = []
    for ours, theirs in zip(outputs, reference, strict=True):
        pairs = enumerate(zip(ours, theirs, strict=False))
        shared = min(len(ours), len(theirs))
        shares.append(next((n for n, (a, b) in pairs if a != b), shared) / max(1, len(theirs)))
    return sum(shares) / len(shares) if shares else 1.0


def where(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> str:
    """The first place at which two outputs differ."""
    if len(ours) != len(theirs):
        return f"{len(ours)} answers against {len(theirs)}"
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for place, (x, y) in enumerate(zip(a, b, strict=False)):
            if x != y:
                return f"answer {number}, token {place}: {x} against {y}"
        if len(a) != len(b):
            return f"answer {number}: {len(a)} tokens against {len(b)}"
    return "nothing"
