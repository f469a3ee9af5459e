"""How states are written down: as they are, in fewer bits, and what that costs.

Axes: S positions, D model width, B blocks of a position, G numbers that share one scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.counts import CODECS, INT4_GROUP, CodecName
from xattn.errors import CorruptEntryError, require

LOSSLESS: CodecName = "float32"
"""Keeps everything of what encoders make; the others are chosen, and their loss is reported."""
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class CodecError:
    """How far decoded states are from those that were encoded."""

    relative_l2: float
    """Length of the difference over the length of the states."""
    largest: float
    """Largest absolute difference of one number."""


def encode(states_SD: Tensor, codec: CodecName, block: int | None = None) -> dict[str, Tensor]:
    """The tensors that stand for ``states_SD`` on disk.

    ``int8`` has one scale per position, or per ``block`` numbers of it; ``int4`` a scale and a
    minimum per 32 numbers.
    """
    require(codec in CODECS, "codec", f"one of {', '.join(CODECS)}", codec)
    states_SD = states_SD.detach().cpu()
    if codec in FLOATS:
        return {"states": states_SD.to(FLOATS[codec]).contiguous()}
    wide_SD = states_SD.float()
    if codec == "int8":
        return _int8(wide_SD, block or wide_SD.shape[1])
    return _int4(wide_SD)


def _int8(wide_SD: Tensor, block: int) -> dict[str, Tensor]:
    blocks_SBG = _grouped(wide_SD, block)
    scale_SB1 = blocks_SBG.abs().amax(dim=2, keepdim=True).clamp(min=1e-30) / 127
    levels_SBG = (blocks_SBG / scale_SB1).round().clamp(-127, 127).to(torch.int8)
    return {"states": levels_SBG, "scale": scale_SB1.squeeze(2)}


def _int4(wide_SD: Tensor) -> dict[str, Tensor]:
    grouped_SBG = _grouped(wide_SD, INT4_GROUP)
    low_SB1 = grouped_SBG.amin(dim=2, keepdim=True)
    step_SB1 = ((grouped_SBG.amax(dim=2, keepdim=True) - low_SB1) / 15).clamp(min=1e-30)
    # Scales are kept as they are applied, so that their own rounding is not one more error.
    low_SB1, step_SB1 = low_SB1.to(torch.bfloat16), step_SB1.to(torch.bfloat16)
    levels_SBG = ((grouped_SBG - low_SB1.float()) / step_SB1.float()).round().clamp(0, 15)
    nibbles_SX = levels_SBG.to(torch.uint8).flatten(1)
    return {
        "states": nibbles_SX[:, 0::2] | (nibbles_SX[:, 1::2] << 4),
        "scale": step_SB1.squeeze(2),
        "low": low_SB1.squeeze(2),
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
        block = states.shape[-1]
        blocks = -(-width // max(block, 1))
        _require_shape("states", states, (S, blocks, block), torch.int8)
        _require_shape("scale", tensors["scale"], (S, blocks), torch.float32)
        wide_SBG = states.float() * tensors["scale"][..., None]
        return wide_SBG.flatten(1)[:, :width].to(dtype)
    blocks = -(-width // INT4_GROUP)
    _require_shape("states", states, (S, blocks * INT4_GROUP // 2), torch.uint8)
    for name in ("scale", "low"):
        _require_shape(name, tensors[name], (S, blocks), torch.bfloat16)
    levels_SX = torch.stack((states & 15, states >> 4), dim=2).flatten(1)
    levels_SBG = levels_SX.view(S, blocks, INT4_GROUP).float()
    wide_SBG = levels_SBG * tensors["scale"].float()[..., None] + tensors["low"].float()[..., None]
    return wide_SBG.flatten(1)[:, :width].to(dtype)


def through(states_SD: Tensor, codec: CodecName, block: int | None = None) -> Tensor:
    """The states as they come back from a store with this codec."""
    width, dtype = states_SD.shape[1], states_SD.dtype
    return decode(encode(states_SD, codec, block), codec, width, dtype).to(states_SD.device)


def error_of(states_SD: Tensor, decoded_SD: Tensor) -> CodecError:
    """How far ``decoded_SD`` is from ``states_SD``."""
    want, difference = states_SD.double(), decoded_SD.double() - states_SD.double()
    length = want.norm().item()
    return CodecError(
        relative_l2=difference.norm().item() / length if length else 0.0,
        largest=difference.abs().max().item() if difference.numel() else 0.0,
    )


def _grouped(wide_SD: Tensor, size: int) -> Tensor:
    """[S, D] -> [S, B, size], the last block filled up with its own last number."""
    S, D = wide_SD.shape
    missing = -D % size
    if missing:
        wide_SD = torch.cat((wide_SD, wide_SD[:, -1:].expand(S, missing)), dim=1)
    return wide_SD.reshape(S, -(-D // size), size)


def _require_shape(name: str, found: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(found.shape) != shape or found.dtype != dtype:
        raise CorruptEntryError(
            f"{name!r} must be {dtype} of shape {list(shape)}, but is {found.dtype} of shape "
            f"{list(found.shape)}."
        )
