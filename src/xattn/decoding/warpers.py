"""Sampling: temperature, truncation, and a draw that does not depend on the batch.

The truncations take and return logits ``[R, C]`` of C candidates, in any order of candidates; what
they drop becomes -inf. ``keep`` is how many candidates they leave at least.

Axes: R rows, C candidates, V vocabulary, B numbers drawn ahead.
"""

import hashlib
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from xattn.decoding.settings import Settings

DROPPED = float("-inf")
DRAWN_AHEAD = 64


def top_k(logits_RC: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
    """Logits and ids of the ``k`` likeliest tokens, and of all that tie with the last one.

    Candidates stay in the order of the vocabulary; ids are None where no token can be dropped.
    """
    V = logits_RC.shape[1]
    if k >= V:
        return logits_RC, None
    least_R1 = logits_RC.topk(k).values[:, -1:]
    # A row with fewer than k tokens left (a forced one) has -inf for the last, and ties with none.
    counts = ((logits_RC >= least_R1) & (logits_RC > DROPPED)).sum(-1)
    count = max(k, int(counts.max()))
    if count == V:
        return logits_RC.masked_fill(logits_RC < least_R1, DROPPED), None
    ids_RC = logits_RC.topk(count).indices.sort(-1).values
    kept_RC = logits_RC.gather(1, ids_RC)
    return kept_RC.masked_fill(kept_RC < least_R1, DROPPED), ids_RC


def top_p(logits_RC: Tensor, p: float, keep: int = 1) -> Tensor:
    """Drop the unlikeliest candidates that hold ``1 - p`` together (Holtzman et al. 2020)."""
    ascending, order = logits_RC.sort(-1)
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - p
    drop[:, -keep:] = False
    return logits_RC.masked_fill(drop.scatter(1, order, drop), DROPPED)


def min_p(logits_RC: Tensor, p: float, keep: int = 1) -> Tensor:
    """Drop candidates less than ``p`` times as likely as the likeliest."""
    probability = logits_RC.softmax(-1)
    drop = probability < p * probability.amax(-1, keepdim=True)
    best = probability.topk(min(keep, probability.shape[-1])).indices
    return logits_RC.masked_fill(drop.scatter(1, best, False), DROPPED)


def typical(logits_RC: Tensor, mass: float, keep: int = 1) -> Tensor:
    """Keep candidates whose surprise is nearest the entropy (Meister et al. 2023)."""
    logprob = logits_RC.log_softmax(-1)
    entropy = -(logprob * logprob.exp()).nansum(-1, keepdim=True)
    distance, order = (-logprob - entropy).abs().sort(-1)
    held = logits_RC.gather(1, order).softmax(-1).cumsum(-1)
    last = (held < mass).sum(-1, keepdim=True).clamp_(max=distance.shape[-1] - 1)
    drop = distance > distance.gather(1, last)
    drop[:, :keep] = False
    return logits_RC.masked_fill(drop.scatter(1, order, drop), DROPPED)


def warp(logits_RV: Tensor, settings: Settings, keep: int = 1) -> tuple[Tensor, Tensor | None]:
    """Logits and ids of the candidates to draw from, in transformers' order of warpers.

    Only ``top_k`` looks at the whole vocabulary. Ids are None where every token is a candidate.
    """
    logits, ids = logits_RV, None
    if settings.temperature != 1.0:
        logits = logits / settings.temperature
    if settings.top_k > 0:
        logits, ids = top_k(logits, max(settings.top_k, keep))
    if settings.top_p < 1.0:
        logits = top_p(logits, settings.top_p, keep)
    if settings.min_p is not None:
        logits = min_p(logits, settings.min_p, keep)
    if settings.typical_p < 1.0:
        logits = typical(logits, settings.typical_p, keep)
    return logits, ids


def inverse_cdf(logits_RC: Tensor, uniform_R: Tensor) -> Tensor:
    """Candidate that each uniform number in [0, 1) falls on, ``[R]``."""
    cdf = logits_RC.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1:]
    # Rounding must not carry the target past the last candidate that has any probability.
    target = torch.minimum(uniform_R[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cdf, target, right=True).squeeze(1).clamp_(max=cdf.shape[1] - 1)


def draw(logits_RV: Tensor, settings: Settings, uniform_R: Tensor) -> Tensor:
    """One token for each row, ``[R]``."""
    logits, ids = warp(logits_RV, settings)
    chosen_R = inverse_cdf(logits, uniform_R)
    return chosen_R if ids is None else ids.gather(1, chosen_R[:, None]).squeeze(1)


def scattered(logits_RV: Tensor, settings: Settings, keep: int) -> Tensor:
    """What :func:`warp` leaves, on the whole vocabulary."""
    logits, ids = warp(logits_RV, settings, keep)
    if ids is None:
        return logits
    return torch.full_like(logits_RV, DROPPED).scatter_(1, ids, logits)


def generator_of(seed: int | None, sequence: int) -> torch.Generator:
    """Random numbers of one sequence of a request, whatever it is batched with."""
    if seed is None:
        seed = secrets.randbits(64)
    digest = hashlib.sha256(f"{seed}/{sequence}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


class Uniforms:
    """One number in [0, 1) for each row and step, drawn ahead in blocks."""

    def __init__(self, generators: Sequence[torch.Generator], device: torch.device) -> None:
        self._generators, self._device = list(generators), device
        self._block_RB = torch.empty(0)
        self._used = DRAWN_AHEAD

    def next(self) -> Tensor:
        """[R], float64."""
        if self._used == DRAWN_AHEAD:
            rows = [
                torch.rand(DRAWN_AHEAD, generator=g, dtype=torch.float64) for g in self._generators
            ]
            self._block_RB = torch.stack(rows).to(self._device)
            self._used = 0
        self._used += 1
        return self._block_RB[:, self._used - 1].contiguous()

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        self._generators = [self._generators[row] for row in rows]
        self._block_RB = self._block_RB[list(rows)]
