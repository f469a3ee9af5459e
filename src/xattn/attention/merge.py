"""Joining what several segments returned, exactly.

Each part is an attention output with the log-sum-exp of its scores; weighting the outputs by the
softmax of the log-sum-exps gives the softmax over the union of all positions.

Axes: N memories, W queries that share one, H heads, K head width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Part = tuple[Float[Tensor, "N W H K"], Float[Tensor, "N W H"]]


def combine(parts: Sequence[Part]) -> Part:
    """The parts as one part: output ``[N, W, H, K]`` and log-sum-exp ``[N, W, H]``.

    A part that read nothing has a log-sum-exp of -inf and does not count; where no part read
    anything the output is zero.
    """
    if len(parts) == 1:
        return parts[0]
    lse_PNWH = torch.stack([lse for _, lse in parts])
    total_NWH = logsumexp(lse_PNWH, dim=0)
    floor_NWH = total_NWH.masked_fill(total_NWH == float("-inf"), 0.0)
    share_PNWH = (lse_PNWH - floor_NWH).exp()
    out_NWHK = sum(
        (
            out * share.unsqueeze(-1).to(out.dtype)
            for (out, _), share in zip(parts, share_PNWH, strict=True)
        ),
        start=torch.zeros_like(parts[0][0]),
    )
    return out_NWHK, total_NWH


def merge(parts: Sequence[Part]) -> Float[Tensor, "N W H K"]:
    """The output of one softmax over the union of all positions; needs at least one part."""
    return combine(parts)[0]


def logsumexp(scores: Tensor, dim: int) -> Tensor:
    """Log-sum-exp along ``dim``; -inf where all are -inf, with gradients of zero and not NaN."""
    top = scores.detach().amax(dim=dim, keepdim=True)
    floor = top.masked_fill(top == float("-inf"), 0.0)
    total = (scores - floor).exp().sum(dim=dim)
    nothing = total == 0
    lse = total.masked_fill(nothing, 1.0).log() + floor.squeeze(dim)
    return lse.masked_fill(nothing, float("-inf"))
