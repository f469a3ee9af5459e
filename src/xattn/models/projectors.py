"""Between an encoder and a decoder that were not made for each other.

Axes: S positions, L latents, D width of the encoder's states, W width of what the decoder reads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xattn.attention import Materialized, attend
from xattn.models.layers import Attention, FeedForward, RMSNorm
from xattn.spec import AttentionSpec, FeedForwardSpec, ProjectorSpec, ResamplerSpec

EPS = 1e-6


class Projector(nn.Module):
    """States ``[S, D]`` -> states ``[S, W]``, or ``[L, W]`` of a resampler."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm = RMSNorm(spec.inputs, EPS)
        self.up = nn.Linear(spec.inputs, spec.outputs)
        if spec.kind == "mlp":
            self.down = nn.Linear(spec.outputs, spec.outputs)
        if spec.resampler is not None:
            self.resampler = Resampler(spec.resampler)

    def forward(self, states_SD: Tensor, mask_S: Tensor | None = None) -> Tensor:
        """``mask_S`` says which positions there are to read."""
        x_SW = self.up(self.norm(states_SD))
        if self.spec.kind == "mlp":
            return self.down(F.gelu(x_SW))
        return self.resampler(x_SW, mask_S) if self.spec.kind == "resampler" else x_SW


class Resampler(nn.Module):
    """A Perceiver: latents read the positions and themselves (Alayrac et al. 2022, Flamingo)."""

    def __init__(self, spec: ResamplerSpec) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(spec.latents, spec.width))
        self.layers = nn.ModuleList(_ResamplerLayer(spec) for _ in range(spec.layers))
        self.norm = RMSNorm(spec.width, EPS)

    def forward(self, x_SW: Tensor, mask_S: Tensor | None) -> Tensor:
        """[S, W] -> [L, W]."""
        x_LW = self.latents
        if mask_S is not None:
            mask_S = torch.cat((mask_S, mask_S.new_ones(len(x_LW))))
        for layer in self.layers:
            x_LW = layer(x_LW, x_SW, mask_S)
        return self.norm(x_LW)


class _ResamplerLayer(nn.Module):
    def __init__(self, spec: ResamplerSpec) -> None:
        super().__init__()
        attention = AttentionSpec(
            heads=spec.heads,
            head_width=spec.head_width,
            kv_heads=spec.heads,
            scale=spec.head_width**-0.5,
        )
        self.latent_norm = RMSNorm(spec.width, EPS)
        self.state_norm = RMSNorm(spec.width, EPS)
        self.attn = Attention(attention, spec.width, spec.width)
        self.ffn_norm = RMSNorm(spec.width, EPS)
        feed_forward = FeedForwardSpec(width=spec.feed_forward, activation="gelu", bias=False)
        self.ffn = FeedForward(feed_forward, spec.width)

    def forward(self, x_LW: Tensor, x_SW: Tensor, mask_S: Tensor | None) -> Tensor:
        """Latents ``[L, W]``, once on."""
        own_1LW = self.latent_norm(x_LW).unsqueeze(0)
        read_1SW = torch.cat((self.state_norm(x_SW).unsqueeze(0), own_1LW), dim=1)
        segment = Materialized(
            k_NGSK=self.attn.keys(read_1SW),
            v_NGSK=self.attn.values(read_1SW),
            mask_NS=None if mask_S is None else mask_S.unsqueeze(0),
        )
        out_1LHK, _ = attend(self.attn.queries(own_1LW), segment, scale=self.attn.spec.scale)
        x_LW = x_LW + self.attn.output(out_1LHK).squeeze(0)
        return x_LW + self.ffn(self.ffn_norm(x_LW))
