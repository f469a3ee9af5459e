"""The one encoder, for text and for audio, from the same sub-layers as the decoder.

Axes: N sources, S positions, H heads, D model width, F log-mel frames, M mel bins.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xattn.attention import Materialized, attend
from xattn.models.layers import Attention, FeedForward, empty_embedding, make_norm, saturate
from xattn.models.positions import PositionTable, RelativeBias
from xattn.spec import AudioStemSpec, EncoderSpec

QUERY_BLOCK = 512
"""Queries per block where a relative bias is added, so that heads x S x S is never materialised."""


class EncoderLayer(nn.Module):
    """Bidirectional self-attention and feed-forward."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.norm_first = spec.norm_place == "before"
        self.self_norm = make_norm(spec.norm, spec.width)
        self.self_attn = Attention(spec.self_attention, spec.width, spec.width)
        self.ffn_norm = make_norm(spec.norm, spec.width)
        self.ffn = FeedForward(spec.feed_forward, spec.width)

    def forward(
        self, x_NSD: Tensor, mask_NS: Tensor | None, relative: RelativeBias | None
    ) -> Tensor:
        """[N, S, D] -> [N, S, D]."""
        if self.norm_first:
            x_NSD = saturate(x_NSD + self._attend(self.self_norm(x_NSD), mask_NS, relative))
            return saturate(x_NSD + self.ffn(self.ffn_norm(x_NSD)))
        x_NSD = self.self_norm(saturate(x_NSD + self._attend(x_NSD, mask_NS, relative)))
        return self.ffn_norm(saturate(x_NSD + self.ffn(x_NSD)))

    def _attend(
        self, h_NSD: Tensor, mask_NS: Tensor | None, relative: RelativeBias | None
    ) -> Tensor:
        attention = self.self_attn
        q_NSHK = attention.queries(h_NSD)
        segment = Materialized(
            k_NGSK=attention.keys(h_NSD), v_NGSK=attention.values(h_NSD), mask_NS=mask_NS
        )
        scale, S = attention.spec.scale, h_NSD.shape[1]
        if relative is None:
            return attention.output(attend(q_NSHK, segment, scale=scale)[0])
        keys_S = torch.arange(S, device=h_NSD.device)
        blocks = []
        for start in range(0, S, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, S)
            bias = relative(keys_S[None, start:stop], keys_S).to(h_NSD.dtype)
            q_block = q_NSHK[:, start:stop]
            blocks.append(attend(q_block, segment, scale=scale, bias_NHWS=bias)[0])
        return attention.output(torch.cat(blocks, dim=1))


class AudioStem(nn.Module):
    """Whisper's stem (Radford et al. 2022): ``[N, M, F]`` log-mel -> ``[N, F/2, D]``."""

    def __init__(self, spec: AudioStemSpec, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(spec.mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)

    def forward(self, mel_NMF: Tensor) -> Tensor:
        """[N, M, F] -> [N, F/2, D]."""
        return F.gelu(self.conv2(F.gelu(self.conv1(mel_NMF)))).transpose(1, 2)


class Encoder(nn.Module):
    """Token ids or log-mel frames -> states ``[N, S, D]``."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.audio is not None:
            self.stem = AudioStem(spec.audio, spec.width)
        else:
            assert spec.vocab_size is not None
            self.embed = empty_embedding(spec.vocab_size, spec.width)
        position = spec.position
        if position.kind in ("learned", "sinusoidal"):
            self.positions = PositionTable(position, spec.width)
        if position.kind == "relative":
            self.relative_bias = RelativeBias(
                position, spec.self_attention.heads, bidirectional=True
            )
        if spec.embedding_norm:
            self.embed_norm = make_norm(spec.norm, spec.width)
        self.layers = nn.ModuleList(EncoderLayer(spec) for _ in range(spec.layers))
        if spec.final_norm:
            self.final_norm = make_norm(spec.norm, spec.width)

    def forward(self, inputs: Tensor, mask_NS: Tensor | None = None) -> Tensor:
        """``inputs`` are ids ``[N, S]``, or log-mel frames ``[N, M, F]`` for audio.

        ``mask_NS`` is True at real tokens; states at padding are meaningless.
        """
        if self.spec.audio is not None:
            x_NSD = self.stem(inputs)
        else:
            x_NSD = self.embed(inputs)
            if self.spec.embed_scale != 1.0:
                x_NSD = x_NSD * self.spec.embed_scale
        if self.spec.position.kind in ("learned", "sinusoidal"):
            x_NSD = x_NSD + self.positions(torch.arange(x_NSD.shape[1], device=x_NSD.device))
        if self.spec.embedding_norm:
            x_NSD = self.embed_norm(x_NSD)
        relative = self.relative_bias if self.spec.position.kind == "relative" else None
        for layer in self.layers:
            x_NSD = layer(x_NSD, mask_NS, relative)
        return self.final_norm(x_NSD) if self.spec.final_norm else x_NSD
