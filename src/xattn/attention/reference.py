"""The naive twin: what :mod:`xattn.attention` must equal, written to be read, in float32.

Axes: N memories, W queries that share one, S positions, H heads, G key/value heads, K head width,
D model width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from xattn.attention.segments import Materialized, Segment


def materialize(segment: Segment) -> Materialized:
    """The keys and values that a segment stands for."""
    if isinstance(segment, Materialized):
        return Materialized(
            k_NGSK=_wide(segment.k_NGSK, segment.k_scales_NGS),
            v_NGSK=_wide(segment.v_NGSK, segment.v_scales_NGS),
            mask_NS=segment.mask_NS,
        )
    states_NSD = _wide(segment.states_NSD, segment.scales_NS)
    k_NGSK = torch.einsum("nsd,gkd->ngsk", states_NSD, segment.k_weight_GKD)
    v_NGSK = torch.einsum("nsd,gkd->ngsk", states_NSD, segment.v_weight_GKD)
    if segment.k_bias_GK is not None:
        k_NGSK = k_NGSK + segment.k_bias_GK[:, None, :]
    if segment.v_bias_GK is not None:
        v_NGSK = v_NGSK + segment.v_bias_GK[:, None, :]
    return Materialized(k_NGSK=k_NGSK, v_NGSK=v_NGSK, mask_NS=segment.mask_NS)


def _wide(x: Tensor, scales: Tensor | None) -> Tensor:
    return x if scales is None else x * scales[..., None]


def attend_reference(
    q_NWHK: Float[Tensor, "N W H K"],
    segments: Sequence[Segment],
    *,
    scale: float,
    bias_NHWS: Float[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, "N W H K"], Float[Tensor, "N W H"]]:
    """One softmax over the concatenation of all ``segments``, heads repeated, in float32."""
    H = q_NWHK.shape[2]
    parts = [materialize(segment) for segment in segments]
    k_NHSK, v_NHSK = (
        torch.cat([x.repeat_interleave(H // x.shape[1], dim=1) for x in tensors], dim=2).float()
        for tensors in ([part.k_NGSK for part in parts], [part.v_NGSK for part in parts])
    )
    scores_NHWS = torch.einsum("nwhk,nhsk->nhws", q_NWHK.float(), k_NHSK) * scale
    if bias_NHWS is not None:
        scores_NHWS = scores_NHWS + bias_NHWS
    readable_NS = torch.cat(
        [
            torch.ones(part.k_NGSK.shape[0], part.k_NGSK.shape[2], dtype=torch.bool)
            if part.mask_NS is None
            else part.mask_NS
            for part in parts
        ],
        dim=1,
    )
    scores_NHWS = scores_NHWS.masked_fill(~readable_NS[:, None, None, :], float("-inf"))
    # Scores of a row that reads nothing are replaced first, so that its gradients are zeros too.
    unread_NHW1 = (scores_NHWS == float("-inf")).all(dim=-1, keepdim=True)
    scores_NHWS = scores_NHWS.masked_fill(unread_NHW1, 0.0)
    weights_NHWS = torch.softmax(scores_NHWS, dim=-1).masked_fill(unread_NHW1, 0.0)
    lse_NHW = torch.logsumexp(scores_NHWS, dim=-1)
    lse_NHW = lse_NHW.masked_fill(unread_NHW1.squeeze(-1), float("-inf"))
    out_NWHK = torch.einsum("nhws,nhsk->nwhk", weights_NHWS, v_NHSK)
    return out_NWHK, lse_NHW.transpose(1, 2)
