"""Weights as int8: a quarter of the bytes of float32, and products of 8-bit integers.

Each output of a matrix has its own scale, and each row that is multiplied is quantised on the way
in with its own (Dettmers et al. 2022, arXiv 2208.07339, without their split of outliers). A matrix
that is *careful* keeps the rest of that quantisation as 8 more bits, so that outliers in a row cost
its other numbers nothing: T5 needs it where its feed-forward layers come down, which also overflow
float16 there.

Axes: O outputs, I inputs, P panels of 16 outputs, Q quads of 4 inputs.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from xattn.counts import PANEL, QUAD
from xattn.models.layers import Attention, FeedForward
from xattn.models.nibbles import NibbleMatrix
from xattn.native import library, structs

LIMIT = 127
REST = 254.0
"""Steps of the second quantisation in one of the first."""
NOTHING = 1e-30
"""A row of no larger numbers is one of zeros."""
ROWS = 256
"""Outputs that are quantised at a time; a multiple of 16."""
GATHERED = 64
"""Outputs are gathered where they are one in so many; else it is quicker to compute all."""


class NarrowMatrix(nn.Module):
    """A matrix ``[O, I]`` as int8 and a scale per output.

    It is laid out ``[P, Q, 16, 4]``: the order in which VNNI's dot products read it.
    """

    def __init__(
        self,
        outputs: int,
        inputs: int,
        *,
        careful: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """Of zeros; :meth:`put` fills it."""
        super().__init__()
        self.out_features, self.in_features, self.careful = outputs, inputs, careful
        P, Q = -(-outputs // PANEL), -(-inputs // QUAD)
        panels = torch.zeros(P, Q, PANEL, QUAD, dtype=torch.int8, device=device)
        self.register_buffer("panels_PQ64", panels)
        self.register_buffer("scales_O", torch.zeros(outputs, device=device))
        self.register_buffer("sums_O", torch.zeros(P * PANEL, dtype=torch.int32, device=device))

    panels_PQ64: Tensor
    scales_O: Tensor
    sums_O: Tensor
    """Kernels multiply rows shifted to 0..255: what the shift adds to each output."""

    @classmethod
    def of(cls, weight_OI: Tensor, *, careful: bool = False) -> "NarrowMatrix":
        """The nearest to a matrix of floats."""
        matrix = cls(*weight_OI.shape, careful=careful, device=weight_OI.device)
        # Some rows at a time: a vocabulary's matrix is large, and would be there three times.
        for start in range(0, len(weight_OI), ROWS):
            rows_OI = weight_OI[start : start + ROWS].float()
            scales_O = rows_OI.abs().amax(dim=1) / LIMIT
            steps_OI = (rows_OI / scales_O.clamp(min=NOTHING)[:, None]).round_()
            matrix.put(start, steps_OI.to(torch.int8), scales_O)
        return matrix

    def put(self, start: int, steps_OI: Tensor, scales_O: Tensor) -> None:
        """Outputs from ``start``, a multiple of 16, as integers and what a step is worth."""
        rows, inputs = steps_OI.shape
        P, Q = -(-rows // PANEL), self.panels_PQ64.shape[1]
        full = nn.functional.pad(steps_OI, (0, Q * QUAD - inputs, 0, P * PANEL - rows))
        panels = full.view(P, PANEL, Q, QUAD).transpose(1, 2)
        self.panels_PQ64[start // PANEL : start // PANEL + P] = panels
        self.scales_O[start : start + rows] = scales_O
        self.sums_O[start : start + P * PANEL] = 128 * full.sum(dim=1, dtype=torch.int32)

    def steps(self) -> Tensor:
        """The integers ``[O, I]``, int8."""
        flat = self.panels_PQ64.transpose(1, 2).flatten(2).flatten(0, 1)
        return flat[: self.out_features, : self.in_features]

    def wide(self) -> Tensor:
        """The matrix ``[O, I]`` in float32."""
        return self.steps().float() * self.scales_O[:, None]

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``[..., I]`` in float32."""
        return self._steps_of(ids).float() * self.scales_O[ids].unsqueeze(-1)

    def _steps_of(self, ids: Tensor) -> Tensor:
        """The integers of rows ``[..., I]``, int8."""
        steps = self.panels_PQ64[ids // PANEL, :, ids % PANEL].flatten(-2)
        return steps[..., : self.in_features]

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x Wᵀ + bias``: ``[..., I] -> [..., O]``, float32."""
        functions = library() if x.device.type == "cpu" else None
        if functions is None:
            return self._product(x, bias)
        return functions.product(self.described(bias), x)

    def product_of(self, x: Tensor, bias: Tensor | None, ids: Tensor) -> Tensor:
        """Of that product the outputs ``ids [I]``, and the same numbers: ``[..., I]``."""
        if len(ids) * GATHERED > self.out_features:
            return self.product(x, bias)[..., ids]
        few = NarrowMatrix(
            len(ids), self.in_features, careful=self.careful, device=self.panels_PQ64.device
        )
        few.put(0, self._steps_of(ids), self.scales_O[ids])
        return few.product(x, None if bias is None else bias[ids])

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The same in torch: the integers are small enough for float32 to add them exactly."""
        x = x.float()
        most = x.abs().amax(dim=-1, keepdim=True)
        scale = most / LIMIT
        steps = x * torch.where(most > NOTHING, LIMIT / most, 0.0)
        near, weight_OI = steps.round(), self.steps().float()
        total = near @ weight_OI.T
        if self.careful:
            total = total + ((steps - near) * REST).round() @ weight_OI.T / REST
        found = total * (scale * self.scales_O)
        return found if bias is None else found + bias

    def described(self, bias: Tensor | None) -> structs.Matrix:
        """As the kernels find it."""
        return structs.Matrix(
            weights=self.panels_PQ64.data_ptr(),
            scales=self.scales_O.data_ptr(),
            sums=self.sums_O.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            input=self.in_features,
            output=self.out_features,
            bits=8,
            careful=self.careful,
        )


class NarrowLinear(nn.Module):
    """``nn.Linear`` with a narrow matrix."""

    matrix: NarrowMatrix | NibbleMatrix

    def __init__(self, matrix: NarrowMatrix | NibbleMatrix, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.matrix, self.bias = matrix, bias
        self._wide: weakref.ref[Tensor] | None = None
        self._made_of: tuple[Any, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """All but what belongs to this one's matrix."""
        return {**vars(self), "_wide": None, "_made_of": ()}

    @property
    def weight(self) -> Tensor:
        """The matrix in float32; one tensor for all who hold it at a time."""
        wide, now = None if self._wide is None else self._wide(), self._versions()
        if wide is None or now != self._made_of:
            wide = self.matrix.wide()
            self._wide, self._made_of = weakref.ref(wide), now
        return wide

    def _versions(self) -> tuple[Any, ...]:
        """Changes with the matrix: where its tensors are, and how often they were written to."""
        held = list(self.matrix.buffers())
        return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in held)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return self.matrix.product(x, self.bias)


class NarrowEmbedding(nn.Module):
    """``nn.Embedding`` with a narrow matrix, which may be the vocabulary head's, too."""

    def __init__(self, matrix: NarrowMatrix) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, ids: Tensor) -> Tensor:
        """Ids ``[...]`` -> vectors ``[..., D]``, float32."""
        return self.matrix.rows(ids)


def is_narrowable(module: nn.Module, name: str) -> bool:
    """Whether ``name`` is a product of attention or of a feed-forward."""
    return isinstance(module, Attention | FeedForward) and isinstance(
        getattr(module, name), nn.Linear
    )


def narrow_layer(module: nn.Module, name: str, bits: int) -> None:
    """Make that product narrow, of 8 or 4 bits, in place."""
    linear: nn.Linear = getattr(module, name)
    weight_OI = linear.weight.detach()
    careful = isinstance(module, FeedForward) and module.spec.has_outliers and name == "down"
    matrix = (
        NibbleMatrix.of(weight_OI) if bits == 4 else NarrowMatrix.of(weight_OI, careful=careful)
    )
    setattr(module, name, NarrowLinear(matrix, linear.bias))
