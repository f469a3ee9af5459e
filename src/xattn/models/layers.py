"""Sub-layers that all encoders and decoders are composed of.

Axes: R rows, T tokens, N memories, S positions, H heads, G key/value heads, K head width, D model
width.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xattn.attention import Absorbed, Materialized, Segment
from xattn.errors import UnsupportedModelError, shown
from xattn.models.adapters import is_adapted, of_rows
from xattn.models.products import in_blocks, linear
from xattn.native.pages import spacious
from xattn.spec import AttentionSpec, FeedForwardSpec, Form, NormSpec, is_absorbed, is_narrow

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def activation(name: object) -> Callable[[Tensor], Tensor]:
    """The function that checkpoints call ``name``; :class:`UnsupportedModelError` if unknown."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"activation must be one of {', '.join(sorted(ACTIVATIONS))}, "
            f"but is {shown(name)} instead."
        )
    return ACTIVATIONS[name]


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019), computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def make_norm(spec: NormSpec, width: int) -> nn.Module:
    """The norm that ``spec`` describes, over the last axis of ``width``."""
    return nn.LayerNorm(width, eps=spec.eps) if spec.kind == "layer" else RMSNorm(width, spec.eps)


class Attention(nn.Module):
    """The four projections of an attention sub-layer, and its norms of query and key if any.

    ``width`` is the model width on the query side, ``memory_width`` on the key/value side.
    """

    def __init__(self, spec: AttentionSpec, width: int, memory_width: int) -> None:
        super().__init__()
        inner, kv_inner = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
        self.spec = spec
        self.q = nn.Linear(width, inner, bias=spec.q_bias)
        self.k = nn.Linear(memory_width, kv_inner, bias=spec.k_bias)
        self.v = nn.Linear(memory_width, kv_inner, bias=spec.v_bias)
        self.o = nn.Linear(inner, width, bias=spec.o_bias)
        if spec.qk_norm is not None:
            self.q_norm = make_norm(spec.qk_norm, spec.head_width)
            self.k_norm = make_norm(spec.qk_norm, spec.head_width)

    def queries(self, x_RTD: Tensor) -> Tensor:
        """[R, T, D] -> [R, T, H, K]."""
        q_RTHK = linear(self.q, x_RTD).unflatten(-1, (self.spec.heads, self.spec.head_width))
        return q_RTHK if self.spec.qk_norm is None else self.q_norm(q_RTHK)

    def keys(self, x_NSD: Tensor) -> Tensor:
        """[N, S, D] -> [N, G, S, K]."""
        k_NSGK = linear(self.k, x_NSD).unflatten(-1, (self.spec.kv_heads, self.spec.head_width))
        return (k_NSGK if self.spec.qk_norm is None else self.k_norm(k_NSGK)).transpose(1, 2)

    def values(self, x_NSD: Tensor) -> Tensor:
        """[N, S, D] -> [N, G, S, K]."""
        v_NSGK = linear(self.v, x_NSD).unflatten(-1, (self.spec.kv_heads, self.spec.head_width))
        return v_NSGK.transpose(1, 2)

    def output(self, x_RTHK: Tensor) -> Tensor:
        """[R, T, H, K] -> [R, T, D]."""
        return linear(self.o, x_RTHK.flatten(-2))

    def project(
        self,
        states_NSD: Tensor,
        mask_NS: Tensor | None,
        form: Form,
        scales_NS: Tensor | None = None,
    ) -> Segment:
        """The memories as this layer reads them; the spec says whether ``form`` is legal.

        States that are absorbed may be int8 already, with their scales.
        """
        if not is_absorbed(form):
            wide = Materialized(
                k_NGSK=_per_head(self.keys(states_NSD)),
                v_NGSK=_per_head(self.values(states_NSD)),
                mask_NS=mask_NS,
            )
            return wide.narrowed() if is_narrow(form) else wide
        per_head = (self.spec.kv_heads, self.spec.head_width)
        return Absorbed(
            states_NSD=states_NSD,
            k_weight_GKD=matrix_of(self.k).unflatten(0, per_head),
            v_weight_GKD=matrix_of(self.v).unflatten(0, per_head),
            k_bias_GK=self.k.bias.unflatten(0, per_head) if self.spec.k_bias else None,
            v_bias_GK=self.v.bias.unflatten(0, per_head) if self.spec.v_bias else None,
            mask_NS=mask_NS,
            scales_NS=scales_NS,
        )


def matrix_of(layer: nn.Module) -> Tensor:
    """The matrix ``[O, I]`` that a product multiplies with, what adapters of peft add included."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if not is_adapted(layer):
        return weight
    adapted: Any = layer
    named = of_rows()
    if named is not None:
        assert len(set(named)) == 1, "a matrix is one adapter's"
    elif adapted.merged or adapted.disable_adapters:
        return weight
    for name in adapted.active_adapters if named is None else named[:1]:
        if name in adapted.lora_A:
            weight = weight + adapted.get_delta_weight(name)
    return weight


def _per_head(x_NGSK: Tensor) -> Tensor:
    """The same, contiguous: reading a strided S axis is many times slower."""
    if x_NGSK.device.type != "cpu" or torch.is_grad_enabled():
        return x_NGSK.contiguous()
    return spacious(*x_NGSK.shape, dtype=x_NGSK.dtype).copy_(x_NGSK)


class FeedForward(nn.Module):
    """``down(act(up x))``, or ``down(act(gate x) * up x)`` (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, spec: FeedForwardSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.activation = activation(spec.activation)
        self.up = nn.Linear(width, spec.width, bias=spec.bias)
        if spec.gated:
            self.gate = nn.Linear(width, spec.width, bias=spec.bias)
        self.down = nn.Linear(spec.width, width, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return in_blocks(self._rows, x)

    def _rows(self, x: Tensor) -> Tensor:
        up = linear(self.up, x)
        if self.spec.gated:
            inner = self.activation(linear(self.gate, x)) * up
        else:
            inner = self.activation(up)
        if x.dtype == torch.float16:  # the one of whose matrices the last may be kept wide
            inner = inner.to(self.down.weight.dtype)
        return linear(self.down, inner).to(x.dtype)


def saturate(x: Tensor) -> Tensor:
    """Keep a float16 residual finite, as transformers does for T5 and BART; others as they are.

    One layer's output may exceed float16; an infinity would become NaN in the next norm.
    """
    if x.dtype != torch.float16 or not torch.isinf(x).any():
        return x
    limit = torch.finfo(torch.float16).max - 1000
    return x.clamp(-limit, limit)


def empty_embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding table to be filled from a checkpoint.

    The ordinary constructor draws random weights, which on the meta device imports torch's
    compiler: a second of every load.
    """
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
