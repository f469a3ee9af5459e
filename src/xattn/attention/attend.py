"""Attention of queries over one segment.

Beams, samples and tokens that share a memory are folded into the query axis W by the caller, so
that no key or value is ever repeated. Heads that share a key/value head are folded the same way.

Axes: N memories, W queries that share one, S positions, H heads, G key/value heads, K head width,
D model width, M = H / G heads per key/value head, A chosen heads.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xattn.attention.merge import Part, combine, logsumexp
from xattn.attention.segments import Absorbed, Materialized, Segment

QUERY_BLOCK = 1024
"""Queries whose scores are held at once where the products are written out."""
MANY = 512
"""Positions from which torch's fused attention is the faster for gradients on a CPU."""


def attend(
    q_NWHK: Float[Tensor, "N W H K"],
    segment: Segment,
    *,
    scale: float,
    bias_NHWS: Float[Tensor, "..."] | None = None,
) -> Part:
    """Softmax attention over ``segment``.

    ``bias_NHWS`` is added to the scaled scores and broadcasts over N, H and W; it is how a causal
    or relative-position bias comes in. Never causal by itself.

    Returns the output ``[N, W, H, K]`` and the log-sum-exp of the scores ``[N, W, H]``. A query
    that may read no position gets zeros and -inf.

    A narrow segment is read block by block, and the blocks are merged.
    """
    if segment.is_narrow:
        return combine(
            [
                attend(q_NWHK, block, scale=scale, bias_NHWS=_at(bias_NHWS, where))
                for where, block in segment.blocks()
            ]
        )
    if isinstance(segment, Absorbed):
        return _attend_absorbed(q_NWHK, segment, scale, bias_NHWS)
    W, H = q_NWHK.shape[1:3]
    G = segment.k_NGSK.shape[1]
    bias = _total_bias(segment, bias_NHWS)
    out_NGRK, lse_NGR = _attend_heads(
        _fold_heads(q_NWHK, G),
        segment.k_NGSK,
        segment.v_NGSK,
        scale,
        _fold_bias(bias, H // G, W, G),
    )
    return _unfold_heads(out_NGRK, W), _unfold_heads(lse_NGR.unsqueeze(-1), W).squeeze(-1)


def attend_alone(
    q_NWHK: Float[Tensor, "N W H K"],
    segment: Segment,
    *,
    scale: float,
    bias_NHWS: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "N W H K"]:
    """The output of :func:`attend`, for those who merge it with nothing.

    Without a log-sum-exp to return, torch's own fused attention serves where :func:`attend` would
    write the products out: on other devices than a CPU, and there for gradients over many
    positions (its backward pass is slow over few).
    """
    if segment.is_narrow or isinstance(segment, Absorbed):
        return attend(q_NWHK, segment, scale=scale, bias_NHWS=bias_NHWS)[0]
    many = segment.k_NGSK.shape[2] >= MANY and _wants_gradients(q_NWHK, segment, bias_NHWS)
    if q_NWHK.device.type == "cpu" and not many:
        return attend(q_NWHK, segment, scale=scale, bias_NHWS=bias_NHWS)[0]
    W, H = q_NWHK.shape[1:3]
    G = segment.k_NGSK.shape[1]
    bias = _fold_bias(_total_bias(segment, bias_NHWS), H // G, W, G)
    q_NGRK, k_NGSK, v_NGSK = _fold_heads(q_NWHK, G), segment.k_NGSK, segment.v_NGSK
    if bias is not None:
        bias = bias.to(q_NGRK.dtype)
    out_NGRK = F.scaled_dot_product_attention(
        q_NGRK, k_NGSK, v_NGSK, attn_mask=bias, is_causal=False, scale=scale
    )
    return _unfold_heads(out_NGRK, W)


def _wants_gradients(q_NWHK: Tensor, segment: Materialized, bias_NHWS: Tensor | None) -> bool:
    if not torch.is_grad_enabled():
        return False
    inputs = (q_NWHK, segment.k_NGSK, segment.v_NGSK)
    return any(x.requires_grad for x in (*inputs, *(() if bias_NHWS is None else (bias_NHWS,))))


def attention_weights(
    q_NWHK: Float[Tensor, "N W H K"],
    segment: Segment,
    heads: Sequence[int],
    *,
    scale: float,
) -> Float[Tensor, "N W A S"]:
    """The softmax weights themselves, in float32, for the chosen ``heads`` only.

    Kept apart from :func:`attend`, so that whoever wants to look never slows down whoever decodes.
    """
    scores_NAWS = attention_scores(q_NWHK, segment, heads, scale=scale)
    unread_NAW1 = (scores_NAWS == float("-inf")).all(dim=-1, keepdim=True)
    return scores_NAWS.softmax(dim=-1).masked_fill(unread_NAW1, 0.0).transpose(1, 2)


def attention_scores(
    q_NWHK: Float[Tensor, "N W H K"],
    segment: Segment,
    heads: Sequence[int],
    *,
    scale: float,
) -> Float[Tensor, "N A W S"]:
    """What the softmax is taken of, in float32; -inf at positions that may not be read."""
    if segment.is_narrow:
        blocks = [_scores(q_NWHK, block, heads) for _, block in segment.blocks()]
        scores_NAWS = torch.cat(blocks, dim=-1) * scale
    else:
        scores_NAWS = _scores(q_NWHK, segment, heads) * scale
    return scores_NAWS if segment.bias_N11S is None else scores_NAWS + segment.bias_N11S


def _scores(q_NWHK: Tensor, segment: Segment, heads: Sequence[int]) -> Tensor:
    """Products ``[N, A, W, S]`` of the chosen heads' queries with all keys, in float32."""
    H, chosen = q_NWHK.shape[2], list(heads)
    q_NAWK = q_NWHK[:, :, chosen].transpose(1, 2).float()
    if isinstance(segment, Absorbed):
        per_group = H // segment.k_weight_GKD.shape[0]
        k_weight_AKD = segment.k_weight_GKD[[head // per_group for head in chosen]].float()
        states_N1DS = segment.states_NSD.float().transpose(1, 2).unsqueeze(1)
        return (q_NAWK @ k_weight_AKD) @ states_N1DS
    per_group = H // segment.k_NGSK.shape[1]
    k_NASK = segment.k_NGSK[:, [head // per_group for head in chosen]].float()
    return q_NAWK @ k_NASK.transpose(-1, -2)


def _at(bias_NHWS: Tensor | None, where: slice) -> Tensor | None:
    """A bias at some positions; one that is the same at all of them stays as it is."""
    if bias_NHWS is None or bias_NHWS.shape[-1] == 1:
        return bias_NHWS
    return bias_NHWS[..., where]


def _attend_absorbed(
    q_NWHK: Tensor, segment: Absorbed, scale: float, bias_NHWS: Tensor | None
) -> Part:
    N, W, H, _ = q_NWHK.shape
    G, _, D = segment.k_weight_GKD.shape
    q_NGRK = _fold_heads(q_NWHK, G)
    R = q_NGRK.shape[2]
    query_N1QD = (q_NGRK @ segment.k_weight_GKD).reshape(N, 1, G * R, D)
    states_N1SD = segment.states_NSD.unsqueeze(1)
    bias = _total_bias(segment, bias_NHWS)
    if bias is not None and bias.shape[1] * bias.shape[2] > 1:
        S = segment.states_NSD.shape[1]
        bias = bias.expand(bias.shape[0], H, W, S).reshape(bias.shape[0], 1, H * W, S)
    context_N1QD, lse_N1Q = _attend_heads(query_N1QD, states_N1SD, states_N1SD, scale, bias)
    out_NGRK = context_N1QD.view(N, G, R, D) @ segment.v_weight_GKD.transpose(1, 2)
    lse_NGR = lse_N1Q.view(N, G, R)
    if segment.v_bias_GK is not None:
        read_NGR1 = (lse_NGR > float("-inf")).unsqueeze(-1)
        out_NGRK = out_NGRK + segment.v_bias_GK[:, None, :] * read_NGR1
    if segment.k_bias_GK is not None:
        lse_NGR = lse_NGR + (q_NGRK @ segment.k_bias_GK.unsqueeze(-1)).squeeze(-1).float() * scale
    return _unfold_heads(out_NGRK, W), _unfold_heads(lse_NGR.unsqueeze(-1), W).squeeze(-1)


def _total_bias(segment: Segment, bias_NHWS: Tensor | None) -> Tensor | None:
    mask = segment.bias_N11S
    if mask is None or bias_NHWS is None:
        return bias_NHWS if mask is None else mask
    return bias_NHWS + mask


def _fold_heads(q_NWHK: Tensor, groups: int) -> Tensor:
    """[N, W, H, K] -> [N, G, M*W, K]."""
    N, W, H, K = q_NWHK.shape
    return q_NWHK.permute(0, 2, 1, 3).reshape(N, groups, (H // groups) * W, K)


def _unfold_heads(x_NGRK: Tensor, queries: int) -> Tensor:
    """[N, G, M*W, K] -> [N, W, H, K]."""
    N, G, R, K = x_NGRK.shape
    return x_NGRK.reshape(N, G * R // queries, queries, K).transpose(1, 2)


def _fold_bias(bias: Tensor | None, per_group: int, queries: int, groups: int) -> Tensor | None:
    """[N|1, H|1, W|1, S] -> [N|1, G|1, M*W|1, S], as the folded queries need it."""
    if bias is None or per_group == 1 or bias.shape[1] == bias.shape[2] == 1:
        return bias
    N, H, _, S = bias.shape
    full = bias.expand(N, H if H > 1 else per_group, queries, S)
    return full.reshape(N, groups if H > 1 else 1, per_group * queries, S)


def _attend_heads(
    q_NGRK: Tensor, k_NGSK: Tensor, v_NGSK: Tensor, scale: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One head-wise softmax attention; returns the output and the float32 log-sum-exp."""
    if k_NGSK.shape[2] == 0:  # which torch's kernel divides by
        nothing = q_NGRK.new_full(q_NGRK.shape[:-1], float("-inf"), dtype=torch.float32)
        return q_NGRK.new_zeros(*q_NGRK.shape[:-1], v_NGSK.shape[-1]), nothing
    inputs = (q_NGRK, k_NGSK, v_NGSK) if bias is None else (q_NGRK, k_NGSK, v_NGSK, bias)
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if q_NGRK.device.type != "cpu" or differentiable:
        return _write_out(q_NGRK, k_NGSK, v_NGSK, scale, bias)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_NGRK, k_NGSK, v_NGSK, attn_mask=bias, scale=scale
    )
    # The kernel takes a query that is no number for one of zeros: let it show.
    out.add_(q_NGRK, alpha=0.0)
    if bias is not None and bool((lse == 0).any()):
        # The kernel answers a fully masked query with zeros and a log-sum-exp of 0.
        unread = bias.amax(dim=-1) == float("-inf")
        lse = lse.masked_fill(unread, float("-inf"))
    return out, lse


def _write_out(
    q_NGRK: Tensor, k_NGSK: Tensor, v_NGSK: Tensor, scale: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The products and the softmax themselves, a block of queries at a time."""
    blocks = []
    for start in range(0, q_NGRK.shape[2], QUERY_BLOCK):
        rows = slice(start, start + QUERY_BLOCK)
        # Before the product, and in float32 where it could overflow.
        q_block, k = q_NGRK[:, :, rows] * scale, k_NGSK
        if q_block.dtype == torch.float16:
            q_block, k = q_NGRK[:, :, rows].float() * scale, k.float()
        scores = (q_block @ k.transpose(-1, -2)).float()
        if bias is not None:
            scores = scores + (bias if bias.shape[2] == 1 else bias[:, :, rows])
        lse = logsumexp(scores, dim=-1)
        floor = lse.masked_fill(lse == float("-inf"), 0.0)
        weights = (scores - floor.unsqueeze(-1)).exp().to(v_NGSK.dtype)
        blocks.append((weights @ v_NGSK, lse))
    outs, lses = zip(*blocks, strict=True)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)
