"""Weights as int4: an eighth of the bytes of float32, and a little for their steps.

Each output of a matrix has, for every 32 inputs, a step and a least number in float16; a weight is
the least number and 0 to 15 steps. That is GGUF's Q4_1, and weights of such a file are kept as they
are where each 32 of them have both ends, as llama.cpp makes them. Only weights are rounded: what is
multiplied with them keeps 15 bits in the kernels, and all of its own in torch.

Axes: O outputs, I inputs, P panels of 16 outputs, G groups of 32 inputs.
"""

import torch
from torch import Tensor, nn

from xattn.counts import GROUP, GROUP_BYTES, PANEL, QUAD
from xattn.errors import UsageError
from xattn.native import library, structs

MOST = 15
WIDENED = 256
"""Outputs that are rounded at a time, or made floats where torch multiplies them."""
LEAST, GREATEST = 4e-6, 65504.0
"""Of a matrix's largest weight: float16 has no steps below, and no numbers above."""
_RUNS = GROUP // 2 // QUAD
_WEIGHTS = PANEL * GROUP // 2
"""Bytes of a panel's group before its steps."""


class NibbleMatrix(nn.Module):
    """A matrix ``[O, I]`` as int4; ``kernels/nibbles.h`` says how it is laid out."""

    def __init__(self, outputs: int, inputs: int, *, device: torch.device | None = None) -> None:
        """Of zeros; :meth:`put` fills it."""
        super().__init__()
        self.out_features, self.in_features = outputs, inputs
        shape = (-(-outputs // PANEL), -(-inputs // GROUP), GROUP_BYTES)
        self.register_buffer("panels_PGB", torch.zeros(shape, dtype=torch.uint8, device=device))

    panels_PGB: Tensor

    @classmethod
    def of(cls, weight_OI: Tensor) -> "NibbleMatrix":
        """The nearest to a matrix of floats; :class:`UsageError` where float16 cannot hold them."""
        top = weight_OI.abs().amax().item()
        if top and not LEAST <= top <= GREATEST:
            raise UsageError(
                "`quantize` must be None or 'int8' for a matrix whose largest weight is "
                f"{top:.3g}: 'int4' is for {LEAST:g} to {GREATEST:g}."
            )
        matrix = cls(*weight_OI.shape, device=weight_OI.device)
        for start in range(0, len(weight_OI), WIDENED):
            matrix.put(start, weight_OI[start : start + WIDENED].float())
        return matrix

    def put(self, start: int, weight_OI: Tensor) -> None:
        """Round outputs from ``start``, a multiple of 16."""
        rows, inputs = weight_OI.shape
        P, G = -(-rows // PANEL), self.panels_PGB.shape[1]
        # What fills the last group up is a number of it, which moves neither end.
        more = weight_OI[:, -1:].expand(-1, G * GROUP - inputs)
        full = torch.cat([weight_OI, more], dim=1).view(rows, G, GROUP)
        full = torch.cat([full, full.new_zeros(P * PANEL - rows, G, GROUP)])
        least, most = full.amin(dim=-1), full.amax(dim=-1)
        least, step = least.half(), ((most - least) / MOST).half()
        steps = (full - least.float()[..., None]) / step.float().clamp(min=1e-30)[..., None]
        nibbles = steps.round_().clamp_(0, MOST).to(torch.uint8)
        nibbles = nibbles.view(P, PANEL, G, 2, _RUNS, QUAD).permute(3, 0, 2, 4, 1, 5)
        lower, upper = nibbles.flatten(-3)
        numbers = [part.view(P, PANEL, G).transpose(1, 2).contiguous() for part in (step, least)]
        parts = [lower | upper << 4, *(part.view(torch.uint8) for part in numbers)]
        self.panels_PGB[start // PANEL : start // PANEL + P] = torch.cat(parts, dim=-1)

    def wide(self) -> Tensor:
        """The matrix ``[O, I]`` in float32."""
        return _wide(self.panels_PGB)[: self.out_features, : self.in_features].contiguous()

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x Wᵀ + bias``: ``[..., I] -> [..., O]``, float32."""
        functions = library() if x.device.type == "cpu" else None
        if functions is None:
            return self._product(x, bias)
        return functions.product(self.described(bias), x)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The same in torch, some outputs after the other."""
        flat_MI = x.reshape(-1, self.in_features).float()
        found_MO = flat_MI.new_empty(len(flat_MI), self.out_features)
        for start in range(0, self.out_features, WIDENED):
            stop = min(start + WIDENED, self.out_features)
            panels = self.panels_PGB[start // PANEL : -(-stop // PANEL)]
            weight_OI = _wide(panels)[: stop - start, : self.in_features]
            of_these = None if bias is None else bias[start:stop]
            found_MO[:, start:stop] = nn.functional.linear(flat_MI, weight_OI, of_these)
        return found_MO.view(*x.shape[:-1], self.out_features)

    @property
    def widening(self) -> int:
        """Bytes, at most, that outputs take as floats and on their way there."""
        return 8 * WIDENED * self.in_features

    def described(self, bias: Tensor | None) -> structs.Matrix:
        """As the kernels find it."""
        return structs.Matrix(
            weights=self.panels_PGB.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            input=self.in_features,
            output=self.out_features,
            bits=4,
            careful=True,
        )


def _wide(panels_PGB: Tensor) -> Tensor:
    """Panels ``[16 * P, 32 * G]`` in float32."""
    P, G, _ = panels_PGB.shape
    both = panels_PGB[..., :_WEIGHTS].view(P, G, _RUNS, PANEL, QUAD)
    halves = torch.stack([both & MOST, both >> 4], dim=2)  # [P, G, 2, runs, 16, 4]
    nibbles = halves.permute(0, 4, 1, 2, 3, 5).reshape(P, PANEL, G, GROUP)
    numbers = panels_PGB[..., _WEIGHTS:].contiguous().view(torch.float16)
    step, least = numbers.view(P, G, 2, PANEL).permute(2, 0, 3, 1).float().unsqueeze(-1)
    return (nibbles * step).add_(least).view(P * PANEL, G * GROUP)
