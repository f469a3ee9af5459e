"""Segments: a memory as one decoder layer reads it.

Their numbers are floats, or int8 with a scale for each position (and head): a *narrow* segment,
which is read a block of positions at a time and never widened as a whole.

Axes: N memories, S positions, G key/value heads, K head width, D model width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

BLOCK = 1024
"""Positions of a narrow segment that are widened at once."""

LIMIT = 127


@dataclass(frozen=True, kw_only=True, eq=False)
class Materialized:
    """Keys and values of one layer, projected ahead of time."""

    k_NGSK: Num[Tensor, "N G S K"]
    v_NGSK: Num[Tensor, "N G S K"]
    mask_NS: Bool[Tensor, "N S"] | None = None
    """True where a position may be read; None when all may."""
    k_scales_NGS: Float[Tensor, "N G S"] | None = None
    """What a step of an int8 key is worth; None where keys are floats."""
    v_scales_NGS: Float[Tensor, "N G S"] | None = None

    @property
    def numbers(self) -> Num[Tensor, "..."]:
        """The tensor by which a segment is known: shared by those that read the same."""
        return self.k_NGSK

    @property
    def is_narrow(self) -> bool:
        """Whether its numbers are int8."""
        return self.k_scales_NGS is not None

    @property
    def size_bytes(self) -> int:
        """Bytes that belong to this segment alone."""
        parts = (self.k_NGSK, self.v_NGSK, self.k_scales_NGS, self.v_scales_NGS, self.mask_NS)
        return _bytes(*parts)

    def narrowed(self) -> "Materialized":
        """The same in int8."""
        k_NGSK, k_scales_NGS = narrow(self.k_NGSK)
        v_NGSK, v_scales_NGS = narrow(self.v_NGSK)
        return Materialized(
            k_NGSK=k_NGSK,
            v_NGSK=v_NGSK,
            mask_NS=self.mask_NS,
            k_scales_NGS=k_scales_NGS,
            v_scales_NGS=v_scales_NGS,
        )

    def members(self, which: slice) -> "Materialized":
        """Some of the memories, as views."""
        return Materialized(
            k_NGSK=self.k_NGSK[which],
            v_NGSK=self.v_NGSK[which],
            mask_NS=_of(self.mask_NS, which),
            k_scales_NGS=_of(self.k_scales_NGS, which),
            v_scales_NGS=_of(self.v_scales_NGS, which),
        )

    def blocks(self) -> Iterator[tuple[slice, "Materialized"]]:
        """The positions of a narrow segment, as floats, in order."""
        assert self.k_scales_NGS is not None
        assert self.v_scales_NGS is not None
        for at in _stretches(self.k_NGSK.shape[2]):
            yield (
                at,
                Materialized(
                    k_NGSK=self.k_NGSK[:, :, at] * self.k_scales_NGS[:, :, at, None],
                    v_NGSK=self.v_NGSK[:, :, at] * self.v_scales_NGS[:, :, at, None],
                    mask_NS=None if self.mask_NS is None else self.mask_NS[:, at],
                ),
            )

    @cached_property
    def bias_N11S(self) -> Float[Tensor, "N 1 1 S"] | None:
        """The mask as a bias on scores."""
        scales = self.k_scales_NGS
        dtype = self.k_NGSK.dtype if scales is None else scales.dtype
        return None if self.mask_NS is None else _additive(self.mask_NS, dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Absorbed:
    """The encoder's states themselves, with the layer's projections applied on the query side.

    ``q (H Wk)ᵀ = (q Wk) Hᵀ`` and ``p (H Wv) = (p H) Wv``, so that one tensor of states serves all
    layers (EL-attention, Yan et al. 2021, arXiv 2105.04779). The key bias adds the same number to
    all scores of a query: it cancels in the softmax and is kept for the log-sum-exp only. The
    value bias is a constant.
    """

    states_NSD: Num[Tensor, "N S D"]
    k_weight_GKD: Float[Tensor, "G K D"]
    v_weight_GKD: Float[Tensor, "G K D"]
    k_bias_GK: Float[Tensor, "G K"] | None = None
    v_bias_GK: Float[Tensor, "G K"] | None = None
    mask_NS: Bool[Tensor, "N S"] | None = None
    scales_NS: Float[Tensor, "N S"] | None = None
    """What a step of an int8 state is worth; None where states are floats."""

    @property
    def numbers(self) -> Num[Tensor, "..."]:
        """The tensor by which a segment is known: shared by those that read the same."""
        return self.states_NSD

    @property
    def is_narrow(self) -> bool:
        """Whether its numbers are int8."""
        return self.scales_NS is not None

    @property
    def size_bytes(self) -> int:
        """Bytes of the mask and of the states, which all layers share; weights are the model's."""
        return _bytes(self.states_NSD, self.scales_NS, self.mask_NS)

    def members(self, which: slice) -> "Absorbed":
        """Some of the memories, as views."""
        return replace(
            self,
            states_NSD=self.states_NSD[which],
            mask_NS=_of(self.mask_NS, which),
            scales_NS=_of(self.scales_NS, which),
        )

    def blocks(self) -> Iterator[tuple[slice, "Absorbed"]]:
        """The positions of a narrow segment, as floats, in order."""
        assert self.scales_NS is not None
        for at in _stretches(self.states_NSD.shape[1]):
            states_NSD = self.states_NSD[:, at] * self.scales_NS[:, at, None]
            mask_NS = None if self.mask_NS is None else self.mask_NS[:, at]
            yield at, replace(self, states_NSD=states_NSD, mask_NS=mask_NS, scales_NS=None)

    @cached_property
    def bias_N11S(self) -> Float[Tensor, "N 1 1 S"] | None:
        """The mask as a bias on scores."""
        dtype = self.k_weight_GKD.dtype
        return None if self.mask_NS is None else _additive(self.mask_NS, dtype)


Segment = Materialized | Absorbed


def narrow(x: Float[Tensor, "*rows K"]) -> tuple[Num[Tensor, "*rows K"], Float[Tensor, "*rows"]]:
    """Each row of ``x`` as int8, and what a step of it is worth: ``x`` is their product, nearly."""
    scales = x.abs().amax(dim=-1) / LIMIT
    steps = (x / scales.clamp(min=torch.finfo(x.dtype).tiny).unsqueeze(-1)).round_()
    return steps.to(torch.int8), scales


def _stretches(positions: int) -> Iterator[slice]:
    """One at least, so that where there is nothing somebody says so."""
    for start in range(0, max(1, positions), BLOCK):
        yield slice(start, min(start + BLOCK, positions))


def _bytes(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _of(tensor: Tensor | None, which: slice) -> Tensor | None:
    return None if tensor is None else tensor[which]


def _additive(mask_NS: Bool[Tensor, "N S"], dtype: torch.dtype) -> Float[Tensor, "N 1 1 S"]:
    """The mask as a bias: 0 where a position may be read, -inf where it may not."""
    bias = torch.zeros(mask_NS.shape, dtype=dtype, device=mask_NS.device)
    return bias.masked_fill_(~mask_NS, float("-inf"))[:, None, None, :]
