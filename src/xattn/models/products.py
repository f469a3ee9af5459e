"""Products of many rows with a layer's matrix, by whichever library is fast at them.

On x86 that is oneDNN, also where torch itself would take MKL: it uses the widest vectors of any
maker's processor. The numbers differ by float32's rounding alone.

Axes: M rows, I inputs, O outputs.
"""

import platform
from collections.abc import Callable

import torch
from torch import Tensor, nn

from xattn.models.adapters import is_adapted, of_rows

FEW = 16
"""Rows up to which torch's own products, made for vectors too, are taken."""
BLOCK = 1024
"""Rows that go through a wide inner layer together, so that what is between stays in the cache."""

_WIDE_VECTORS = (
    torch.backends.mkldnn.is_available()
    and platform.machine().lower() in ("x86_64", "amd64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, ``[..., I] -> [..., O]``."""
    if _WIDE_VECTORS and isinstance(layer, nn.Linear) and is_plain(layer) and _fits(layer, x):
        return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
    names = of_rows()
    if names is None or not is_adapted(layer):
        return layer(x)
    return layer(x, adapter_names=list(names))


def in_blocks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, which keeps rows ``[..., D]`` apart and their width, a block at a time."""
    rows = x.numel() // x.shape[-1]
    whole = x.device.type != "cpu" or torch.is_grad_enabled() or of_rows() is not None
    if whole or rows <= BLOCK:
        return function(x)
    out_MD = torch.empty(rows, x.shape[-1], dtype=x.dtype)
    pieces = x.reshape(rows, -1).split(BLOCK)
    for place, piece in zip(out_MD.split(BLOCK), pieces, strict=True):
        place.copy_(function(piece))
    return out_MD.view(x.shape)


def is_plain(layer: nn.Linear) -> bool:
    """A linear layer that nobody has changed."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and not is_changed(layer)


def is_changed(module: nn.Module) -> bool:
    """Somebody has changed what calling this module does, apart from others of its class."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return bool(hooked) or "forward" in vars(module)


def _fits(layer: nn.Linear, x: Tensor) -> bool:
    """Float32 on the CPU, for results alone."""
    return (
        x.dtype == layer.weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > FEW * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad))
    )
