"""Several rankings as one: reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009).

A passage's score is the sum, over the rankings that have it, of ``1 / (60 + rank)``. Scores of the
rankings themselves, which no two retrievers give on one scale, are not looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CONSTANT = 60
"""How little the first ranks count above the next ones; the paper's own."""


@dataclass(frozen=True, kw_only=True)
class Fused:
    """A passage in the fused ranking."""

    id: str
    score: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Its rank, from 1, in each ranking that has it."""


def fuse(rankings: Mapping[str, Sequence[str]], constant: int = CONSTANT) -> list[Fused]:
    """The ids of all ``rankings``, each the best first, as one ranking; ties in order of ids."""
    ranks: dict[str, dict[str, int]] = {}
    for name, ids in rankings.items():
        for rank, id in enumerate(ids, 1):
            ranks.setdefault(id, {}).setdefault(name, rank)
    fused = [
        Fused(id=id, score=sum(1 / (constant + rank) for rank in own.values()), ranks=own)
        for id, own in ranks.items()
    ]
    return sorted(fused, key=lambda one: (-one.score, one.id))
