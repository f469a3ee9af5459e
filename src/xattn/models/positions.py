"""Where a token stands: tables added to embeddings, biases added to scores, rotations of heads.

Axes: R rows, T tokens, S positions, H heads, K head width, P table rows, B buckets.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xattn.spec import PositionSpec, RotaryScaling


def sinusoidal_table(rows: int, width: int, *, half_minus_one: bool, interleaved: bool) -> Tensor:
    """Sine and cosine of geometric wavelengths (Vaswani et al. 2017), float32 ``[rows, width]``."""
    half = width // 2
    steps = half - 1 if half_minus_one else half
    # M2M100 was trained on a table computed in float32, Marian on one computed in float64.
    dtype = torch.float32 if half_minus_one else torch.float64
    rates = torch.exp(torch.arange(half, dtype=dtype) * -(math.log(10000.0) / steps))
    angles = torch.arange(rows, dtype=dtype)[:, None] * rates[None, :]
    waves = (angles.sin(), angles.cos())
    table = torch.stack(waves, dim=-1).flatten(1) if interleaved else torch.cat(waves, dim=1)
    return F.pad(table, (0, width - table.shape[1])).float()


class PositionTable(nn.Module):
    """Learned or sinusoidal vectors, one row per position, added to the embeddings."""

    def __init__(self, spec: PositionSpec, width: int) -> None:
        super().__init__()
        self.spec, self.width = spec, width
        if spec.kind == "learned":
            assert spec.limit is not None
            self.weight = nn.Parameter(torch.empty(spec.limit + spec.offset, width))
        else:
            self.register_buffer("weight", torch.empty(0, width), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """Positions ``[...]`` (0 is the first token) -> vectors ``[..., width]``."""
        rows = positions + self.spec.offset
        if self.spec.kind == "sinusoidal":
            self._reserve(int(rows.max()) + 1)
        return F.embedding(rows, self.weight)

    def clear(self, dtype: torch.dtype, device: torch.device) -> None:
        """Forget a computed table; it is made again, as long as needed, on first use."""
        self.register_buffer(
            "weight", torch.empty(0, self.width, dtype=dtype, device=device), persistent=False
        )

    def _reserve(self, rows: int) -> None:
        if rows > self.weight.shape[0]:
            table = sinusoidal_table(
                max(rows, 2 * self.weight.shape[0], 512),
                self.width,
                half_minus_one=self.spec.half_minus_one,
                interleaved=self.spec.interleaved,
            )
            self.register_buffer("weight", table.to(self.weight), persistent=False)


class RelativeBias(nn.Module):
    """T5's bucketed relative-position bias (Raffel et al. 2020), shared by all layers of a stack.

    The bias depends on the distance key minus query alone, so it is kept as one vector per head and
    looked up by distance.
    """

    def __init__(self, spec: PositionSpec, heads: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.spec, self.bidirectional = spec, bidirectional
        self.weight = nn.Parameter(torch.empty(spec.buckets, heads))

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket of each distance ``key position - query position``."""
        buckets, offset = self.spec.buckets, torch.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            offset = (distance > 0) * buckets
            steps = distance.abs()
        else:
            steps = (-distance).clamp(min=0)
        exact = buckets // 2
        ratio = (steps.clamp(min=1).float() / exact).log() / math.log(
            self.spec.max_distance / exact
        )
        far = exact + (ratio * (buckets - exact)).to(torch.long)
        return offset + torch.where(steps < exact, steps, far.clamp(max=buckets - 1))

    def forward(self, queries_RT: Tensor, keys_S: Tensor) -> Tensor:
        """Query and key positions -> bias ``[R, H, T, S]``."""
        distance_RTS = keys_S[None, None, :] - queries_RT[:, :, None]
        return F.embedding(self.bucket(distance_RTS), self.weight).permute(0, 3, 1, 2)

    def reversed_queries(self, positions: int, dtype: torch.dtype) -> Tensor:
        """Bias ``[1, H, S, S]`` of all queries, the last one first, over all keys.

        It depends on their distance only (it is Toeplitz), and so is a view of 2 S - 1 numbers per
        head: each query reads the same numbers as the one after it, one place on.
        """
        S = positions
        distances = torch.arange(1 - S, S, device=self.weight.device)
        table_HX = F.embedding(self.bucket(distances), self.weight).T.to(dtype).contiguous()
        return table_HX.as_strided((1, len(table_HX), S, S), (0, 2 * S - 1, 1, 1))


class Rotary:
    """Rotary position embedding (Su et al. 2021), the half-split layout of Llama checkpoints."""

    def __init__(self, spec: PositionSpec, head_width: int) -> None:
        self.spec, self.head_width = spec, head_width
        self._rates: Tensor | None = None

    def angles(self, positions_RT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[R, T, 1, K]`` of the given positions."""
        if self._rates is None or self._rates.device != positions_RT.device:
            self._rates = self._frequencies(positions_RT.device)
        rates = self._rates
        phase_RTK = torch.cat([positions_RT[..., None].float() * rates] * 2, dim=-1)
        return phase_RTK.cos().to(dtype).unsqueeze(2), phase_RTK.sin().to(dtype).unsqueeze(2)

    def _frequencies(self, device: torch.device) -> Tensor:
        exponents = torch.arange(0, self.head_width, 2, dtype=torch.float32) / self.head_width
        rates = 1.0 / self.spec.theta**exponents
        scaling = self.spec.scaling
        return (rates if scaling is None else _scaled(rates, scaling)).to(device)


def rotate(x_RTHK: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair ``(x[k], x[k + K/2])`` by its position's angle."""
    cosine, sine = angles
    first, second = x_RTHK.chunk(2, dim=-1)
    turned = x_RTHK * cosine + torch.cat([-second, first], dim=-1) * sine
    return turned.to(x_RTHK.dtype)  # under autocast, angles have more bits than what they turn


def _scaled(rates: Tensor, scaling: RotaryScaling) -> Tensor:
    if scaling.kind == "linear":
        return rates / scaling.factor
    wavelength = 2 * math.pi / rates
    low = scaling.original_positions / scaling.low_frequency_factor
    high = scaling.original_positions / scaling.high_frequency_factor
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    smooth = (scaling.original_positions / wavelength - scaling.low_frequency_factor) / span
    between = (1 - smooth) * rates / scaling.factor + smooth * rates
    stretched = torch.where(wavelength > low, rates / scaling.factor, between)
    return torch.where(wavelength < high, rates, stretched)
