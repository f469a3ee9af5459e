"""Whether engines did the same work. One that did other work is no faster, it is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

Rule = Literal["same tokens", "same counts"]
"""``same tokens``: equal precision, token by token. ``same counts``: quantised weights may choose
other tokens, also from call to call, and no fewer; how long they follow float32 is reported."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What comparing the outputs found."""

    rule: Rule
    holds: bool
    agreement: float | None
    """Share of tokens that all engines agree on; None where there was no second one."""
    faults: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()


def judge(rule: Rule, outputs: Mapping[str, Sequence[Any]]) -> Verdict:
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
    return Verdict(
        rule=rule,
        holds=not faults,
        agreement=min(shares) if shares else None,
        faults=tuple(faults),
        compared=tuple(names),
    )


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
