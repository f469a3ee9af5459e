"""The one encoder, for text and for audio, from the same sub-layers as the decoder.

Axes: N sources, S positions, H heads, D model width, F log-mel frames, M mel bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xattn.attention import Materialized, attend
from xattn.models.layers import Attention, FeedForward, empty_embedding, make_norm, saturate
from xattn.models.positions import PositionTable, RelativeBias
from xattn.spec import AudioStemSpec, EncoderSpec

DENSE_NUMBERS = 2**20
"""The biases of a padded batch are written out up to so many; beyond, each length is alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What the attention of every layer needs to know of a batch."""

    lengths: Sequence[int]
    """Real tokens of each row."""
    mask_NS: Tensor | None
    """True at real tokens; None where all are."""
    bias_1HSS: Tensor | None
    """Relative-position bias with the queries last one first, if the model has one."""


class EncoderLayer(nn.Module):
    """Bidirectional self-attention and feed-forward."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.norm_first = spec.norm_place == "before"
        self.self_norm = make_norm(spec.norm, spec.width)
        self.self_attn = Attention(spec.self_attention, spec.width, spec.width)
        self.ffn_norm = make_norm(spec.norm, spec.width)
        self.ffn = FeedForward(spec.feed_forward, spec.width)

    def forward(self, x_NSD: Tensor, rows: Rows) -> Tensor:
        """[N, S, D] -> [N, S, D]."""
        if self.norm_first:
            x_NSD = saturate(x_NSD + self._attend(self.self_norm(x_NSD), rows))
            return saturate(x_NSD + self.ffn(self.ffn_norm(x_NSD)))
        x_NSD = self.self_norm(saturate(x_NSD + self._attend(x_NSD, rows)))
        return self.ffn_norm(saturate(x_NSD + self.ffn(x_NSD)))

    def _attend(self, h_NSD: Tensor, rows: Rows) -> Tensor:
        attention, scale = self.self_attn, self.self_attn.spec.scale
        q_NSHK, bias = attention.queries(h_NSD), rows.bias_1HSS
        segment = Materialized(
            k_NGSK=attention.keys(h_NSD), v_NGSK=attention.values(h_NSD), mask_NS=rows.mask_NS
        )
        if bias is None:
            return attention.output(attend(q_NSHK, segment, scale=scale)[0])
        q_NSHK = q_NSHK.flip(1)  # as the bias has them
        if rows.mask_NS is None or len(rows.lengths) * bias.numel() <= DENSE_NUMBERS:
            out_NSHK, _ = attend(q_NSHK, segment, scale=scale, bias_NHWS=bias)
        else:
            out_NSHK = _each_length(q_NSHK, segment, rows.lengths, scale, bias)
        return attention.output(out_NSHK.flip(1))


def _each_length(
    q_NSHK: Tensor, segment: Materialized, lengths: Sequence[int], scale: float, bias_1HSS: Tensor
) -> Tensor:
    """Attention of rows of equal length together, over their real tokens only.

    Queries, and so their bias, come last one first. Queries of padding give zeros.
    """
    pieces, S = [torch.zeros_like(q_NSHK[:1])] * len(lengths), q_NSHK.shape[1]
    for length in sorted(set(lengths)):
        alike = [n for n, other in enumerate(lengths) if other == length]
        real = Materialized(
            k_NGSK=segment.k_NGSK[alike, :, :length], v_NGSK=segment.v_NGSK[alike, :, :length]
        )
        q_ATHK, bias = q_NSHK[alike, S - length :], bias_1HSS[:, :, S - length :, :length]
        out_ATHK, _ = attend(q_ATHK, real, scale=scale, bias_NHWS=bias)
        padded_ASHK = F.pad(out_ATHK, (0, 0, 0, 0, S - length, 0))
        for n, piece in zip(alike, padded_ASHK.split(1), strict=True):
            pieces[n] = piece
    return torch.cat(pieces)


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

    def forward(self, inputs: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """``inputs`` are ids ``[N, S]``, or log-mel frames ``[N, M, F]`` for audio.

        ``lengths`` are the real tokens of each row, where padding follows them; states at padding
        are meaningless.
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
        rows = self._rows(x_NSD, lengths)
        for layer in self.layers:
            x_NSD = layer(x_NSD, rows)
        return self.final_norm(x_NSD) if self.spec.final_norm else x_NSD

    def _rows(self, x_NSD: Tensor, lengths: Sequence[int] | None) -> Rows:
        N, S = x_NSD.shape[:2]
        lengths, mask_NS, bias_1HSS = lengths or [S] * N, None, None
        if min(lengths) < S:
            places_S = torch.arange(S, device=x_NSD.device)
            mask_NS = places_S < torch.tensor(lengths, device=x_NSD.device)[:, None]
        if self.spec.position.kind == "relative":
            bias_1HSS = self.relative_bias.reversed_queries(S, x_NSD.dtype)
        return Rows(lengths=lengths, mask_NS=mask_NS, bias_1HSS=bias_1HSS)
