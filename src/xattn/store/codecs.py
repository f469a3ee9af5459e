"""How states are written down: as they are, in fewer bits, and what that costs.

Axes: S positions, D model width, G numbers that share one scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xattn.errors import CorruptEntryError, require

CodecName = Literal["float32", "bfloat16", "float16", "int8", "int4"]
CODECS: tuple[CodecName, ...] = ("float32", "bfloat16", "float16", "int8", "int4")
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT4_GROUP = 32
"""Numbers that share a scale and a minimum in int4."""


@dataclass(frozen=True, kw_only=True)
class CodecError:
    """How far decoded states are from those that were encoded."""

    relative_l2: float
    """Length of the difference over the length of the states."""
    largest: float
    """Largest absolute difference of one number."""


def encode(states_SD: Tensor, codec: CodecName) -> dict[str, Tensor]:
    """The tensors that stand for ``states_SD`` on disk.

    ``int8`` has one scale per position, ``int4`` a scale and a minimum per 32 numbers of it.
    """
    require(codec in CODECS, "codec", f"one of {', '.join(CODECS)}", codec)
    states_SD = states_SD.detach().cpu()
    if codec in FLOATS:
        return {"states": states_SD.to(FLOATS[codec]).contiguous()}
    wide_SD = states_SD.float()
    if codec == "int8":
        scale_S1 = wide_SD.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
        return {
            "states": (wide_SD / scale_S1).round().clamp(-127, 127).to(torch.int8),
            "scale": scale_S1.squeeze(1),
        }
    grouped_SNG = _grouped(wide_SD)
    low_SN1 = grouped_SNG.amin(dim=2, keepdim=True)
    step_SN1 = ((grouped_SNG.amax(dim=2, keepdim=True) - low_SN1) / 15).clamp(min=1e-30)
    # Scales are kept as they are applied, so that their own rounding is not one more error.
    low_SN1, step_SN1 = low_SN1.to(torch.bfloat16), step_SN1.to(torch.bfloat16)
    levels = ((grouped_SNG - low_SN1.float()) / step_SN1.float()).round().clamp(0, 15)
    nibbles_SX = levels.to(torch.uint8).flatten(1)
    return {
        "states": nibbles_SX[:, 0::2] | (nibbles_SX[:, 1::2] << 4),
        "scale": step_SN1.squeeze(2),
        "low": low_SN1.squeeze(2),
    }


def decode(tensors: Mapping[str, Tensor], codec: str, width: int, dtype: torch.dtype) -> Tensor:
    """The states ``[S, width]`` in ``dtype``; those of a float codec in their own dtype are views.

    Raises :class:`CorruptEntryError` where the tensors do not fit together.
    """
    states = tensors["states"]
    if codec in FLOATS:
        _require_shape("states", states, (len(states), width), FLOATS[codec])
        return states.to(dtype)
    S = len(states)
    if codec == "int8":
        _require_shape("states", states, (S, width), torch.int8)
        _require_shape("scale", tensors["scale"], (S,), torch.float32)
        return (states.float() * tensors["scale"][:, None]).to(dtype)
    groups = -(-width // INT4_GROUP)
    _require_shape("states", states, (S, groups * INT4_GROUP // 2), torch.uint8)
    for name in ("scale", "low"):
        _require_shape(name, tensors[name], (S, groups), torch.bfloat16)
    levels_SX = torch.stack((states & 15, states >> 4), dim=2).flatten(1)
    levels_SNG = levels_SX.view(S, groups, INT4_GROUP).float()
    wide_SNG = levels_SNG * tensors["scale"].float()[..., None] + tensors["low"].float()[..., None]
    return wide_SNG.flatten(1)[:, :width].to(dtype)


def through(states_SD: Tensor, codec: CodecName) -> Tensor:
    """The states as they come back from a store with this codec."""
    width, dtype = states_SD.shape[1], states_SD.dtype
    return decode(encode(states_SD, codec), codec, width, dtype).to(states_SD.device)


def error_of(states_SD: Tensor, decoded_SD: Tensor) -> CodecError:
    """How far ``decoded_SD`` is from ``states_SD``."""
    want, difference = states_SD.double(), decoded_SD.double() - states_SD.double()
    length = want.norm().item()
    return CodecError(
        relative_l2=difference.norm().item() / length if length else 0.0,
        largest=difference.abs().max().item() if difference.numel() else 0.0,
    )


def _grouped(wide_SD: Tensor) -> Tensor:
    """[S, D] -> [S, groups, 32], the last group filled up with its own last number."""
    S, D = wide_SD.shape
    missing = -D % INT4_GROUP
    if missing:
        wide_SD = torch.cat((wide_SD, wide_SD[:, -1:].expand(S, missing)), dim=1)
    return wide_SD.view(S, -1, INT4_GROUP)


def _require_shape(name: str, found: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(found.shape) != shape or found.dtype != dtype:
        raise CorruptEntryError(
            f"{name!r} must be {dtype} of shape {list(shape)}, but is {found.dtype} of shape "
            f"{list(found.shape)}."
        )
