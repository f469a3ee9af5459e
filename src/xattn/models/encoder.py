"""The one encoder, for text and for audio, from the same sub-layers as the decoder.

Sources go through it one behind the other, without padding: whatever is not attention treats every
position alike, and attention treats all sources of one length together.

Axes: P positions of all sources, N sources of one length, S their positions, H heads, D model
width, F log-mel frames, M mel bins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xattn.attention import Materialized, attend_alone
from xattn.models.layers import Attention, FeedForward, empty_embedding, make_norm, saturate
from xattn.models.positions import PositionTable, RelativeBias
from xattn.spec import AudioStemSpec, EncoderSpec

TOGETHER = 4096
"""Positions that go through an encoder in one pass, unless one source alone has more."""


def packs(lengths: Sequence[int]) -> list[list[int]]:
    """Which sources go through an encoder together: those of one length are neighbours."""
    found: list[list[int]] = []
    room = 0
    for n in sorted(range(len(lengths)), key=lengths.__getitem__):
        room -= lengths[n]
        if room < 0 or not found:
            found.append([])
            room = TOGETHER - lengths[n]
        found[-1].append(n)
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Pack:
    """What the attention of every layer needs to know of sources that go together."""

    lengths: Sequence[int]
    """Positions of each source, in the order in which they follow each other."""
    bias_1HSS: Tensor | None
    """Relative-position bias of the longest, queries last one first, if the model has one."""

    def alike(self) -> Iterator[tuple[slice, int]]:
        """Positions of neighbours of one length, and that length."""
        start = 0
        for length, sources in groupby(self.lengths):
            stop = start + length * len(list(sources))
            yield slice(start, stop), length
            start = stop


class EncoderLayer(nn.Module):
    """Bidirectional self-attention and feed-forward."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.norm_first = spec.norm_place == "before"
        self._dropout = 0.0
        self.self_norm = make_norm(spec.norm, spec.width)
        self.self_attn = Attention(spec.self_attention, spec.width, spec.width)
        self.ffn_norm = make_norm(spec.norm, spec.width)
        self.ffn = FeedForward(spec.feed_forward, spec.width)

    def forward(self, x_PD: Tensor, pack: Pack) -> Tensor:
        """[P, D] -> [P, D]."""
        if self.norm_first:
            x_PD = saturate(x_PD + self._dropped(self._attend(self.self_norm(x_PD), pack)))
            return saturate(x_PD + self._dropped(self.ffn(self.ffn_norm(x_PD))))
        x_PD = self.self_norm(saturate(x_PD + self._dropped(self._attend(x_PD, pack))))
        return self.ffn_norm(saturate(x_PD + self._dropped(self.ffn(x_PD))))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self._dropout) if self.training and self._dropout else x

    def _attend(self, h_PD: Tensor, pack: Pack) -> Tensor:
        attention, h_1PD = self.self_attn, h_PD.unsqueeze(0)
        q_PHK = attention.queries(h_1PD).squeeze(0)
        k_GPK, v_GPK = attention.keys(h_1PD).squeeze(0), attention.values(h_1PD).squeeze(0)
        outs = []
        for places, length in pack.alike():
            q_NSHK = q_PHK[places].unflatten(0, (-1, length))
            k_NGSK, v_NGSK = (
                x_GPK[:, places].unflatten(1, (-1, length)).transpose(0, 1)
                for x_GPK in (k_GPK, v_GPK)
            )
            segment = Materialized(k_NGSK=k_NGSK, v_NGSK=v_NGSK)
            outs.append(
                _attend(q_NSHK, segment, attention.spec.scale, pack.bias_1HSS).flatten(0, 1)
            )
        return attention.output(outs[0] if len(outs) == 1 else torch.cat(outs))


def _attend(
    q_NSHK: Tensor, segment: Materialized, scale: float, bias_1HSS: Tensor | None
) -> Tensor:
    if bias_1HSS is None:
        return attend_alone(q_NSHK, segment, scale=scale)
    S = q_NSHK.shape[1]
    bias = bias_1HSS[:, :, bias_1HSS.shape[2] - S :, :S]
    return attend_alone(q_NSHK.flip(1), segment, scale=scale, bias_NHWS=bias).flip(1)


class AudioStem(nn.Module):
    """Whisper's stem (Radford et al. 2022): ``[N, M, F]`` log-mel -> ``[N, F/2, D]``."""

    def __init__(self, spec: AudioStemSpec, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(spec.mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)

    def forward(self, mel_NMF: Tensor) -> Tensor:
        """[N, M, F] -> [N, F/2, D]."""
        x_NDS = F.gelu(self.conv2(F.gelu(self.conv1(mel_NMF))))
        return x_NDS.transpose(1, 2).contiguous()  # once, and not in every layer


class Encoder(nn.Module):
    """Token ids or log-mel frames -> states ``[N, S, D]``."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self._checkpoints = False
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

    def prepare_training(self, *, dropout: float, checkpoints: bool) -> None:
        """As :meth:`Decoder.prepare_training <xattn.models.decoder.Decoder.prepare_training>`."""
        self._checkpoints = checkpoints
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            layer._dropout = dropout

    def forward(self, inputs: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Ids ``[P]`` of one or more sources, or log-mel frames ``[N, M, F]``, -> ``[P, D]``.

        ``lengths`` are the positions of each source of text, one behind the other; those of one
        length are fast where they are neighbours.
        """
        if self.spec.audio is not None:
            x_NSD = self.stem(inputs)
            lengths, x_PD = [x_NSD.shape[1]] * len(x_NSD), x_NSD.flatten(0, 1)
        else:
            lengths, x_PD = lengths or [len(inputs)], self.embed(inputs)
            if self.spec.embed_scale != 1.0:
                x_PD = x_PD * self.spec.embed_scale
        longest = max(lengths)
        if self.spec.position.kind in ("learned", "sinusoidal"):
            table_SD = self.positions(torch.arange(longest, device=x_PD.device))
            x_PD = x_PD + torch.cat([table_SD[:length] for length in lengths])
        if self.spec.embedding_norm:
            x_PD = self.embed_norm(x_PD)
        bias_1HSS = None
        if self.spec.position.kind == "relative":
            bias_1HSS = self.relative_bias.reversed_queries(longest, x_PD.dtype)
        pack = Pack(lengths=lengths, bias_1HSS=bias_1HSS)
        for layer in self.layers:
            if self._checkpoints and torch.is_grad_enabled():
                x_PD = checkpoint(layer, x_PD, pack, use_reentrant=False)
            else:
                x_PD = layer(x_PD, pack)
        return self.final_norm(x_PD) if self.spec.final_norm else x_PD
