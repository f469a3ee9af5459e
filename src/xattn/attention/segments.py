"""Segments: a memory as one decoder layer reads it.

Axes: N memories, S positions, G key/value heads, K head width, D model width.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Materialized:
    """Keys and values of one layer, projected ahead of time."""

    k_NGSK: Float[Tensor, "N G S K"]
    v_NGSK: Float[Tensor, "N G S K"]
    mask_NS: Bool[Tensor, "N S"] | None = None
    """True where a position may be read; None when all may."""

    @property
    def size_bytes(self) -> int:
        """Bytes that belong to this segment alone."""
        mask = 0 if self.mask_NS is None else self.mask_NS.nbytes
        return self.k_NGSK.nbytes + self.v_NGSK.nbytes + mask

    def narrow(self, members: slice) -> "Materialized":
        """Some of the memories, as views."""
        mask_NS = None if self.mask_NS is None else self.mask_NS[members]
        return Materialized(
            k_NGSK=self.k_NGSK[members], v_NGSK=self.v_NGSK[members], mask_NS=mask_NS
        )

    @cached_property
    def bias_N11S(self) -> Float[Tensor, "N 1 1 S"] | None:
        """The mask as a bias on scores."""
        return None if self.mask_NS is None else _additive(self.mask_NS, self.k_NGSK.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Absorbed:
    """The encoder's states themselves, with the layer's projections applied on the query side.

    ``q (H Wk)ᵀ = (q Wk) Hᵀ`` and ``p (H Wv) = (p H) Wv``, so that one tensor of states serves all
    layers (EL-attention, Yan et al. 2021, arXiv 2105.04779). The key bias adds the same number to
    all scores of a query: it cancels in the softmax and is kept for the log-sum-exp only. The
    value bias is a constant.
    """

    states_NSD: Float[Tensor, "N S D"]
    k_weight_GKD: Float[Tensor, "G K D"]
    v_weight_GKD: Float[Tensor, "G K D"]
    k_bias_GK: Float[Tensor, "G K"] | None = None
    v_bias_GK: Float[Tensor, "G K"] | None = None
    mask_NS: Bool[Tensor, "N S"] | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the mask and of the states, which all layers share; weights are the model's."""
        mask = 0 if self.mask_NS is None else self.mask_NS.nbytes
        return self.states_NSD.nbytes + mask

    def narrow(self, members: slice) -> "Absorbed":
        """Some of the memories, as views."""
        mask_NS = None if self.mask_NS is None else self.mask_NS[members]
        return replace(self, states_NSD=self.states_NSD[members], mask_NS=mask_NS)

    @cached_property
    def bias_N11S(self) -> Float[Tensor, "N 1 1 S"] | None:
        """The mask as a bias on scores."""
        return None if self.mask_NS is None else _additive(self.mask_NS, self.states_NSD.dtype)


Segment = Materialized | Absorbed


def _additive(mask_NS: Bool[Tensor, "N S"], dtype: torch.dtype) -> Float[Tensor, "N 1 1 S"]:
    """The mask as a bias: 0 where a position may be read, -inf where it may not."""
    bias = torch.zeros(mask_NS.shape, dtype=dtype, device=mask_NS.device)
    return bias.masked_fill_(~mask_NS, float("-inf"))[:, None, None, :]
