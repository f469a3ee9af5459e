"""The one decoder. Families differ in its spec, never in its code.

Axes: R rows, T tokens, S positions, N memories, H heads, K head width, D model width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xattn.attention import Materialized, Segment, attend, attend_alone, combine, narrow
from xattn.models.adapters import rows_with
from xattn.models.clock import Clock
from xattn.models.layers import Attention, FeedForward, empty_embedding, make_norm, saturate
from xattn.models.narrow import NarrowEmbedding, NarrowMatrix
from xattn.models.positions import PositionTable, RelativeBias, Rotary, rotate
from xattn.models.state import Asking, DecodeState
from xattn.spec import DecoderSpec, Form, is_absorbed, is_narrow

Angles = tuple[Tensor, Tensor]
QueryProbe = Callable[[int, Asking], None]
"""Called with a layer's number and what it asks of memories."""


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention where and as the placement says, feed-forward."""

    def __init__(self, spec: DecoderSpec, index: int) -> None:
        super().__init__()
        placement = self._placement = spec.placement
        self.index = index
        self._slot = sum(not (placement.instead and one) for one in placement.layers[:index])
        self._dropout = 0.0
        self.norm_first = spec.norm_place == "before"
        self.crosses = placement.layers[index]
        self.goes_on = spec.cross_attention is None
        if self.attends_self:
            self.self_norm = make_norm(spec.norm, spec.width)
            self.self_attn = Attention(spec.self_attention, spec.width, spec.width)
        if self.crosses and not self.merges:
            assert spec.cross_attention is not None
            self.cross_norm = make_norm(spec.norm, spec.width)
            self.cross_attn = Attention(spec.cross_attention, spec.width, spec.memory_width)
        self.ffn_norm = make_norm(spec.norm, spec.width)
        self.ffn = FeedForward(spec.feed_forward, spec.width)
        if self.crosses and placement.own_feed_forward:
            self.cross_ffn_norm = make_norm(spec.norm, spec.width)
            self.cross_ffn = FeedForward(spec.feed_forward, spec.width)
        gates = placement.gates if self.crosses else 0
        self.cross_gate = nn.Parameter(torch.empty(1)) if gates else None
        self.ffn_gate = nn.Parameter(torch.empty(1)) if gates == 2 else None
        """Of the feed-forward that belongs to cross-attention."""

    @property
    def crosses_first(self) -> bool:
        """Cross-attention comes before self-attention."""
        return self._placement.before

    @property
    def merges(self) -> bool:
        """Memories are read in the softmax of self-attention."""
        return self.crosses and self._placement.kind == "merged"

    @property
    def reader(self) -> Attention:
        """The attention that reads memories, of a layer that cross-attends."""
        return self.self_attn if self.merges else self.cross_attn

    @property
    def attends_self(self) -> bool:
        """It has self-attention, and not cross-attention instead."""
        return not (self._placement.instead and self._placement.layers[self.index])

    def forward(
        self,
        x_RTD: Tensor,
        state: DecodeState,
        bias: Tensor | None,
        angles: Angles | None,
        probe: QueryProbe | None,
        clock: Clock | None = None,
    ) -> Tensor:
        """[R, T, D] -> [R, T, D]; writes the new keys and values into ``state``."""
        if self.crosses_first:
            x_RTD = self._cross(x_RTD, state, probe, clock)
        if self.attends_self:
            x_RTD = self._around(
                x_RTD, self.self_norm, lambda h: self._attend_self(h, state, bias, angles, probe)
            )
            if clock is not None:
                clock.end("self-attention")
        if not self.crosses_first:
            x_RTD = self._cross(x_RTD, state, probe, clock)
        if self.attends_self:
            x_RTD = self._around(x_RTD, self.ffn_norm, self.ffn)
        elif self.crosses:
            x_RTD = self._around(
                x_RTD, self.ffn_norm, self.ffn, self.ffn_gate, state.reading_rows_R11
            )
        if clock is not None:
            clock.end("feed-forward")
        return x_RTD

    def project(
        self, states_NSD: Tensor, mask_NS: Tensor | None, form: Form, scales_NS: Tensor | None
    ) -> Segment | None:
        """The memories as this layer reads them; None if it does not cross-attend."""
        if not self.crosses:
            return None
        return self.reader.project(states_NSD, mask_NS, form, scales_NS)

    def _around(
        self,
        x: Tensor,
        norm: nn.Module,
        sublayer: Callable[[Tensor], Tensor],
        gate: Tensor | None = None,
        rows_R11: Tensor | None = None,
    ) -> Tensor:
        """A residual: all of it, or as much as the gate is open, and in some rows only."""
        added = sublayer(norm(x) if self.norm_first else x)
        if self.training and self._dropout:
            added = F.dropout(added, self._dropout)
        if gate is not None:
            added = added * gate.tanh()
        if rows_R11 is not None:
            added = added * rows_R11
        x = saturate(x + added)
        return x if self.norm_first else norm(x)

    def _cross(
        self, x_RTD: Tensor, state: DecodeState, probe: QueryProbe | None, clock: Clock | None
    ) -> Tensor:
        """Cross-attention, and its feed-forward; with a gate or that, only where a row reads."""
        if not self.crosses or self.merges:
            return x_RTD
        plain = self.cross_gate is None and not self._placement.own_feed_forward
        rows_R11 = None if plain else state.reading_rows_R11
        x_RTD = self._around(
            x_RTD,
            self.cross_norm,
            lambda h: self._attend_memories(h, state, probe),
            self.cross_gate,
            rows_R11,
        )
        if self._placement.own_feed_forward:
            x_RTD = self._around(
                x_RTD, self.cross_ffn_norm, self.cross_ffn, self.ffn_gate, rows_R11
            )
        if clock is not None:
            clock.end("cross-attention")
        return x_RTD

    def _attend_self(
        self,
        h_RTD: Tensor,
        state: DecodeState,
        bias: Tensor | None,
        angles: Angles | None,
        probe: QueryProbe | None,
    ) -> Tensor:
        attention = self.self_attn
        q_RTHK, k_RGTK = attention.queries(h_RTD), attention.keys(h_RTD)
        if angles is not None:
            q_RTHK = rotate(q_RTHK, angles)
            k_RGTK = rotate(k_RGTK.transpose(1, 2), angles).transpose(1, 2)
        k_RGCK, v_RGCK = state.cache.write(self._slot, k_RGTK, attention.values(h_RTD))
        cache = Materialized(k_NGSK=k_RGCK, v_NGSK=v_RGCK)
        scale = attention.spec.scale
        if not (self.goes_on or self.merges) or not (state.slots or probe):
            return attention.output(attend_alone(q_RTHK, cache, scale=scale, bias_NHWS=bias))
        # A memory is one more segment of the same softmax.
        own = attend(q_RTHK, cache, scale=scale, bias_NHWS=bias)
        if probe is not None:
            probe(self.index, Asking(q_RTHK, own[1], k_RGCK))
        out_RTHK = combine([own, *state.memory_parts(q_RTHK, self.index, scale)])[0]
        if self.cross_gate is not None:
            out_RTHK = own[0] + self.cross_gate * (out_RTHK - own[0])
        return attention.output(out_RTHK)

    def _attend_memories(
        self, h_RTD: Tensor, state: DecodeState, probe: QueryProbe | None
    ) -> Tensor:
        attention = self.cross_attn
        q_RTHK = attention.queries(h_RTD)
        if probe is not None:
            probe(self.index, Asking(q_RTHK))
        return attention.output(state.attend_memories(q_RTHK, self.index, attention.spec.scale))


class Decoder(nn.Module):
    """Embeddings, layers and vocabulary head, with all that is remembered passed in as a state."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.clock: Clock | None = None
        """Counts the seconds of each part, where one asks for it."""
        self._checkpoints = False
        self.embed = empty_embedding(spec.vocab_size, spec.width)
        position = spec.position
        if position.kind in ("learned", "sinusoidal"):
            self.positions = PositionTable(position, spec.width)
        if position.kind == "relative":
            self.relative_bias = RelativeBias(
                position, spec.self_attention.heads, bidirectional=False
            )
        self.rotary = (
            Rotary(position, spec.self_attention.head_width) if position.kind == "rotary" else None
        )
        if spec.embedding_norm:
            self.embed_norm = make_norm(spec.norm, spec.width)
        self.layers = nn.ModuleList(DecoderLayer(spec, i) for i in range(spec.layers))
        if spec.placement.shared:
            self._share_projections()
        if spec.final_norm:
            self.final_norm = make_norm(spec.norm, spec.width)
        self.head = Head(spec)

    @property
    def stack(self) -> Iterator["DecoderLayer"]:
        """The layers, from the first."""
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            yield layer

    @property
    def any_weight(self) -> Tensor:
        """A weight that is neither narrow nor kept wide: of the model's device and number type."""
        weight = next(self.stack).ffn_norm.weight
        assert isinstance(weight, Tensor)
        return weight

    def prepare_training(self, *, dropout: float, checkpoints: bool) -> None:
        """How it behaves in training mode: what is dropped of each residual, and whether layers
        keep their inputs only, and run again for gradients (Chen et al. 2016)."""
        self._checkpoints = checkpoints
        for layer in self.stack:
            layer._dropout = dropout

    def project(
        self, states_NSD: Tensor, mask_NS: Tensor | None, form: Form
    ) -> tuple[Segment | None, ...]:
        """The memories as each layer reads them; None for layers that do not cross-attend."""
        scales_NS = None
        if is_absorbed(form):
            self.spec.require_absorbable()
            if is_narrow(form):  # once, for all layers
                states_NSD, scales_NS = narrow(states_NSD)
        if not self.spec.placement.shared:
            return tuple(
                layer.project(states_NSD, mask_NS, form, scales_NS) for layer in self.stack
            )
        first = next((layer for layer in self.stack if layer.crosses), None)
        for_all = None if first is None else first.project(states_NSD, mask_NS, form, scales_NS)
        return tuple(for_all if layer.crosses else None for layer in self.stack)

    def _share_projections(self) -> None:
        """Let all layers make keys and values as the first that cross-attends does."""
        first, *others = [layer.cross_attn for layer in self.stack if layer.crosses]
        for attention in others:
            attention.k, attention.v = first.k, first.v
            if first.spec.qk_norm is not None:
                attention.k_norm = first.k_norm

    def hidden(
        self,
        tokens_RT: Tensor,
        state: DecodeState,
        counts: Sequence[int] | None = None,
        probe: QueryProbe | None = None,
        positions_RT: Tensor | None = None,
    ) -> Tensor:
        """Run ``tokens_RT`` after what ``state`` has seen; returns hidden states ``[R, T, D]``.

        They stand at ``positions_RT``, or one after the other. ``counts`` gives the valid tokens of
        each row, the rest being padding on the right; None means all. The state is advanced.
        """
        R, T = tokens_RT.shape
        clock = self.clock
        if clock is not None:
            clock.begin()
        state.cache.settle()
        state.cache.reserve(T)
        places_RT = _counted(state.lengths, T, tokens_RT.device)
        if positions_RT is None and not any(state.offsets):
            positions_RT = places_RT
        elif positions_RT is None:
            starts = [a + b for a, b in zip(state.offsets, state.lengths, strict=True)]
            positions_RT = _counted(starts, T, tokens_RT.device)
        x_RTD = self.embed(tokens_RT)
        if self.spec.embed_scale != 1.0:
            x_RTD = x_RTD * self.spec.embed_scale
        if self.spec.position.kind in ("learned", "sinusoidal"):
            x_RTD = x_RTD + self.positions(positions_RT)
        if self.spec.embedding_norm:
            x_RTD = self.embed_norm(x_RTD)
        bias = self._self_bias(places_RT, state, T)
        angles = None if self.rotary is None else self.rotary.angles(positions_RT, x_RTD.dtype)
        if clock is not None:
            clock.end("vocabulary")
        with rows_with(state.adapters):
            for layer in self.stack:
                if self._checkpoints and torch.is_grad_enabled():
                    given = (x_RTD, state, bias, angles, probe)
                    x_RTD = checkpoint(layer, *given, use_reentrant=False)
                else:
                    x_RTD = layer(x_RTD, state, bias, angles, probe, clock)
        state.cache.advance([T] * R if counts is None else counts)
        return self.final_norm(x_RTD) if self.spec.final_norm else x_RTD

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V], float32."""
        if self.clock is None:
            return self.head(hidden, self.embed)
        self.clock.begin()
        logits = self.head(hidden, self.embed)
        self.clock.end("vocabulary")
        return logits

    def logits_of(self, hidden_RD: Tensor, tokens: Sequence[int]) -> Tensor:
        """[R, D] -> [R, V], float32: the logits of some tokens, and -inf for all others."""
        ids = torch.tensor(tokens, dtype=torch.long, device=hidden_RD.device)
        full_RV = hidden_RD.new_full(
            (len(hidden_RD), self.spec.vocab_size), float("-inf"), dtype=torch.float32
        )
        return full_RV.index_copy_(1, ids, self.head.of(hidden_RD, self.embed, ids))

    def _self_bias(self, places_RT: Tensor, state: DecodeState, tokens: int) -> Tensor | None:
        """Causal mask and relative bias as one, ``[R|1, H|1, T, C]``; None if nothing is hidden."""
        relative = self.spec.position.kind == "relative"
        single = tokens == 1 and state.cache.uniform
        if single and not relative:
            return None
        keys_C = torch.arange(max(state.lengths) + tokens, device=places_RT.device)
        dtype = self.any_weight.dtype
        bias = self.relative_bias(places_RT, keys_C).to(dtype) if relative else None
        if single:
            return bias
        hidden_RTC = keys_C[None, None, :] > places_RT[:, :, None]
        causal = torch.zeros(hidden_RTC.shape, dtype=dtype, device=keys_C.device)
        causal = causal.masked_fill_(hidden_RTC, float("-inf")).unsqueeze(1)
        return causal if bias is None else bias + causal


def _counted(starts: Sequence[int], tokens: int, device: torch.device) -> Tensor:
    """Places of new tokens: ``[1, T]`` where all rows agree on the first, else ``[R, T]``."""
    agreed = starts[:1] if len(set(starts)) <= 1 else starts
    return torch.tensor(agreed, device=device)[:, None] + torch.arange(tokens, device=device)


class Head(nn.Module):
    """The vocabulary head; its matrix is the embedding table where the spec ties them."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.scale = spec.head_scale
        self.weight = (
            None if spec.head_tied else nn.Parameter(torch.empty(spec.vocab_size, spec.width))
        )
        self.matrix: NarrowMatrix | None = None
        """Stands for ``weight`` in a model whose weights are int8."""
        self.bias = nn.Parameter(torch.empty(spec.vocab_size)) if spec.head_bias else None

    def forward(self, hidden: Tensor, embedding: nn.Module) -> Tensor:
        """[..., D] -> [..., V], float32."""
        table = self._table(embedding)
        if isinstance(table, NarrowMatrix):
            return table.product(hidden * self.scale, self.bias)
        return F.linear(hidden * self.scale, table, self.bias).float()

    def of(self, hidden: Tensor, embedding: nn.Module, ids: Tensor) -> Tensor:
        """[..., D] -> [..., I], float32: the logits of the tokens ``ids [I]`` alone."""
        table = self._table(embedding)
        if isinstance(table, NarrowMatrix):
            return table.product_of(hidden * self.scale, self.bias, ids)
        bias_I = None if self.bias is None else self.bias[ids]
        return F.linear(hidden * self.scale, table[ids], bias_I).float()

    def _table(self, embedding: nn.Module) -> Tensor | NarrowMatrix:
        """The matrix ``[V, D]``."""
        if self.weight is not None:
            return self.weight
        if self.matrix is not None:
            return self.matrix
        if isinstance(embedding, NarrowEmbedding):
            return embedding.matrix
        assert isinstance(embedding.weight, Tensor)
        return embedding.weight
