"""The decoder's step through the compiled kernels: what :meth:`Decoder.hidden` does, in one call.

Axes: R rows, T tokens of each, M = R * T, S positions, H heads, K head width, D model width, V
vocabulary.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from xattn.attention import Absorbed, Segment
from xattn.models.decoder import Decoder, DecoderLayer, Head
from xattn.models.layers import ACTIVATIONS, Attention, FeedForward, RMSNorm
from xattn.models.narrow import NarrowEmbedding, NarrowLinear, NarrowMatrix
from xattn.models.nibbles import NibbleMatrix
from xattn.models.positions import PositionTable, RelativeBias
from xattn.models.products import is_changed
from xattn.models.state import DecodeState, Projection, Slot
from xattn.native import Library, library, structs

NAMES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "swish": "silu",
}
"""What the kernels call an activation, where it has several names."""

FEW = 64
"""Tokens that are worth a step of kernels made for few; more are matrix products, torch's own."""
ROWS = 128
"""Rows of a token each that are: beyond, torch gains more at products than it loses at memories."""

KNOWN = (
    *(Decoder, DecoderLayer, Attention, FeedForward, RMSNorm, Head, PositionTable, RelativeBias),
    *(nn.ModuleList, nn.Linear, nn.Embedding, nn.LayerNorm),
    *(NarrowLinear, NarrowEmbedding, NarrowMatrix, NibbleMatrix),
)
"""What the kernels compute as these do; anything else, an adapter say, is run by torch."""


class CompiledDecoder:
    """A decoder's weights as the kernels find them, as long as nobody replaces one."""

    def __init__(self, decoder: Decoder, functions: Library) -> None:
        self._decoder, self._functions = decoder, functions
        self.stamp = places_of(decoder)
        self._held: list[Any] = []  # what the structures point to
        self._struct = self._described(decoder)

    def takes(self, tokens_RT: Tensor, state: DecodeState) -> bool:
        """Few tokens, and memories that the kernels read."""
        R, T = tokens_RT.shape
        return R <= (ROWS if T == 1 else FEW // T) and _readable(state)

    def step(self, tokens_RT: Tensor, state: DecodeState) -> Tensor:
        """Feed ``[R, T]``; logits ``[R, V]`` after the last of each row. The state is advanced."""
        R, T = tokens_RT.shape
        wanted = np.arange(T - 1, R * T, T)
        _, logits_RV = self._run(tokens_RT, state, wanted)
        state.cache.advance([T] * R)
        return logits_RV

    def hidden(self, tokens_RT: Tensor, state: DecodeState) -> Tensor:
        """Feed ``[R, T]``; hidden states ``[R, D]`` after the last of each row."""
        R, T = tokens_RT.shape
        hidden_MD, _ = self._run(tokens_RT, state, np.empty(0, dtype=np.int64))
        state.cache.advance([T] * R)
        return hidden_MD.view(R, T, -1)[:, -1]

    def step_all(self, tokens_RT: Tensor, state: DecodeState) -> Tensor:
        """The same with logits ``[R, T, V]`` after every token."""
        R, T = tokens_RT.shape
        _, logits_MV = self._run(tokens_RT, state, np.arange(R * T))
        state.cache.advance([T] * R)
        return logits_MV.view(R, T, -1)

    def _run(
        self, tokens_RT: Tensor, state: DecodeState, wanted: np.ndarray[Any, Any]
    ) -> tuple[Tensor, Tensor]:
        """Hidden states after all tokens ``[R * T, D]``, and logits after those ``wanted``."""
        R, T = tokens_RT.shape
        session = state.native
        if not isinstance(session, Session):
            session = state.native = Session(state)
        state.cache.reserve(T)
        session.point_at(state)
        tokens_RT = tokens_RT.contiguous()
        step, spec = session.step, self._decoder.spec
        step.decoder = ctypes.pointer(self._struct)
        step.tokens, step.rows, step.tokens_per_row = tokens_RT.data_ptr(), R, T
        kept = self._positions(step, state, R, T)
        hidden_MD = torch.empty(R * T, spec.width)
        logits_WV = torch.empty(len(wanted), spec.vocab_size)
        step.hidden, step.logits = hidden_MD.data_ptr(), logits_WV.data_ptr()
        step.wanted, step.wanted_count = wanted.ctypes.data, len(wanted)
        step.threads = torch.get_num_threads()
        clock = self._decoder.clock
        step.times = None if clock is None else clock.address
        while needed := self._functions.step(step):
            session.grow(needed)
        del kept
        return hidden_MD, logits_WV

    def _positions(self, step: structs.Step, state: DecodeState, R: int, T: int) -> list[Tensor]:
        """What depends on where the tokens stand; the tensors must live as long as the step."""
        kind = self._decoder.spec.position.kind
        if kind not in ("learned", "sinusoidal", "rotary"):
            return []
        starts = [a + b for a, b in zip(state.offsets, state.lengths, strict=True)]
        places_RT = torch.tensor(starts)[:, None] + torch.arange(T)
        if kind != "rotary":
            positions_RTD = self._decoder.positions(places_RT)
            step.positions = positions_RTD.data_ptr()
            return [positions_RTD]
        assert self._decoder.rotary is not None
        cosines, sines = self._decoder.rotary.angles(places_RT, torch.float32)
        step.cosines, step.sines = cosines.data_ptr(), sines.data_ptr()
        return [cosines, sines]

    def _described(self, decoder: Decoder) -> structs.Decoder:
        spec = decoder.spec
        layers = (structs.Layer * spec.layers)(*map(self._layer, decoder.stack))
        head = self._head(decoder)
        head.bias = self._address(decoder.head.bias)
        described = structs.Decoder(
            layers=spec.layers,
            width=spec.width,
            vocabulary=spec.vocab_size,
            norm_first=spec.norm_place == "before",
            goes_on=spec.cross_attention is None,
            layer=layers,
            embedding=self._matrix(decoder.embed),
            head=head,
            embedding_norm=self._norm(decoder.embed_norm if spec.embedding_norm else None),
            final_norm=self._norm(decoder.final_norm if spec.final_norm else None),
            embedding_scale=spec.embed_scale,
            head_scale=spec.head_scale,
        )
        if spec.position.kind == "relative":
            # Farther keys than the last bucket begins are all in it.
            distances = torch.arange(spec.position.max_distance + 1)
            described.relative = self._address(decoder.relative_bias.weight)
            described.bucket_of = self._address(decoder.relative_bias.bucket(-distances).int())
            described.distances = len(distances)
        return described

    def _layer(self, layer: DecoderLayer) -> structs.Layer:
        ffn = layer.ffn
        described = structs.Layer(
            self_norm=self._norm(layer.self_norm),
            ffn_norm=self._norm(layer.ffn_norm),
            self_attn=self._attention(layer.self_attn),
            up=self._matrix(ffn.up),
            down=self._matrix(ffn.down),
            crosses=layer.crosses,
            crosses_first=layer.crosses_first,
            cross_gate=self._address(layer.cross_gate),
            gated=ffn.spec.gated,
            activation=structs.ACTIVATIONS.index(_activation(ffn)),
        )
        if ffn.spec.gated:
            described.gate = self._matrix(ffn.gate)
        if layer.crosses:
            described.cross_norm = self._norm(layer.cross_norm)
            described.cross_attn = self._attention(layer.cross_attn)
        return described

    def _attention(self, attention: Attention) -> structs.Attention:
        spec = attention.spec
        normed = spec.qk_norm is not None
        return structs.Attention(
            q=self._matrix(attention.q),
            k=self._matrix(attention.k),
            v=self._matrix(attention.v),
            o=self._matrix(attention.o),
            q_norm=self._norm(attention.q_norm if normed else None),
            k_norm=self._norm(attention.k_norm if normed else None),
            heads=spec.heads,
            groups=spec.kv_heads,
            width=spec.head_width,
            rotary=spec.rotary,
            scale=spec.scale,
        )

    def _norm(self, norm: nn.Module | None) -> structs.Norm:
        if norm is None:
            return structs.Norm(kind=structs.NORMS.index("none"))
        assert isinstance(norm, RMSNorm | nn.LayerNorm)
        kind = "rms" if isinstance(norm, RMSNorm) else "layer"
        return structs.Norm(
            kind=structs.NORMS.index(kind),
            weight=self._address(norm.weight),
            bias=self._address(getattr(norm, "bias", None)),
            eps=norm.eps,
        )

    def _matrix(self, module: nn.Module) -> structs.Matrix:
        bias = getattr(module, "bias", None)
        if isinstance(module, NarrowLinear | NarrowEmbedding):
            return module.matrix.described(bias)
        assert isinstance(module, nn.Linear | nn.Embedding)
        return self._wide(module.weight, bias)

    def _wide(self, weight_OI: Tensor, bias: Tensor | None) -> structs.Matrix:
        return structs.Matrix(
            weights=self._address(weight_OI),
            bias=self._address(bias),
            input=weight_OI.shape[1],
            output=weight_OI.shape[0],
            bits=32,
        )

    def _head(self, decoder: Decoder) -> structs.Matrix:
        head = decoder.head
        if head.matrix is not None:
            return head.matrix.described(None)
        if head.weight is not None:
            return self._wide(head.weight, None)
        return self._matrix(decoder.embed)

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._held.append(tensor)
        return tensor.data_ptr()


class Session:
    """What the kernels need to know of one decode state."""

    def __init__(self, state: DecodeState) -> None:
        self._held: list[Any] = []
        self.cache = structs.Cache()
        self.step = structs.Step(cache=ctypes.pointer(self.cache))
        if state.slots:
            self.step.reads = ctypes.pointer(self._reads(state))
        self._workspace = torch.empty(0, dtype=torch.uint8)

    def grow(self, needed: int) -> None:
        """A workspace of ``needed`` bytes."""
        self._workspace = torch.empty(needed, dtype=torch.uint8)
        self.step.workspace, self.step.workspace_bytes = self._workspace.data_ptr(), needed

    def point_at(self, state: DecodeState) -> None:
        """Where the self-attention cache is now."""
        kept, cache = state.cache, self.cache
        self._layers = np.array([kv.data_ptr() for kv in kept.layers_2PGCK], dtype=np.int64)
        cache.layers = self._layers.ctypes.data
        strides = kept.layers_2PGCK[0].stride()
        cache.kind_stride, cache.row_stride, cache.group_stride = strides[:3]
        self._lengths = np.array(kept.lengths, dtype=np.int32)
        self._own = np.array(kept.own, dtype=np.int32)
        cache.lengths, cache.own = self._lengths.ctypes.data, self._own.ctypes.data
        if kept.places_RC is None:
            cache.places = None
        else:
            cache.places = kept.places_RC.ctypes.data
            cache.places_stride = kept.places_RC.strides[0] // 4

    def _reads(self, state: DecodeState) -> structs.Reads:
        readers = list(_readers(state))
        projections = [reader.projection for reader in readers]
        layers = [i for i, s in enumerate(projections[0].segments) if s is not None]
        segments = [
            _segment(_of(reader.projection, layer), reader.member)
            for layer in layers
            for reader in readers
        ]
        lengths = [len(r.projection.memories[r.member]) for r in readers]
        masks = [_mask(_of(r.projection, layers[0]), r.member, r.projection) for r in readers]
        rows = [row for reader in readers for row in reader.rows]
        first = np.cumsum([0, *(len(reader.rows) for reader in readers)])
        absorbed = [_absorption(_of(projections[0], layer)) for layer in layers]
        sample = _of(projections[0], layers[0])
        self._held += [projections, masks]
        reads = structs.Reads(
            memories=len(readers),
            numbers=sample.is_narrow,
            absorbed=sample.states_NSD.shape[2] if isinstance(sample, Absorbed) else 0,
            layers=len(layers),
            segments=(structs.Segment * len(segments))(*segments),
            absorption=(structs.Absorption * len(layers))(*(a for a in absorbed if a is not None)),
            positions=self._numbers(lengths),
            masks=self._numbers([0 if mask is None else mask.data_ptr() for mask in masks]),
            first=self._numbers(first),
            rows=self._numbers(rows),
        )
        if not all(slot.is_plain for slot in state.slots):
            self._weigh(reads, readers, state)
        return reads

    def _weigh(self, reads: structs.Reads, readers: "Sequence[Reader]", state: DecodeState) -> None:
        """How rows read that do not ask memories as they are."""
        assert state.rotary is not None
        each = [(reader.slot, row) for reader in readers for row in reader.rows]
        turns = torch.tensor([slot.turns[row] for slot, row in each])
        temperatures = torch.tensor([slot.temperatures[row] for slot, row in each])
        angles = state.rotary.angles(-turns[:, None], torch.float32)
        half = angles[0].shape[-1] // 2
        turns_N2K = torch.cat([wave.flatten(1)[:, None, :half] for wave in angles], dim=1)
        turns_N2K = (turns_N2K / temperatures[:, None, None]).contiguous()
        weighed = np.array([slot.weighed_R[row] for slot, row in each], dtype=np.uint8)
        scales = np.array(state.scales, dtype=np.float32)
        self._held += [turns_N2K, weighed, scales]
        reads.turns, reads.weighed = turns_N2K.data_ptr(), weighed.ctypes.data
        if weighed.any():
            reads.scales = scales.ctypes.data

    def _numbers(self, values: Sequence[int] | np.ndarray[Any, Any]) -> int:
        array = np.array(values, dtype=np.int64)
        self._held.append(array)
        return array.ctypes.data


class Reader(NamedTuple):
    """One memory, and the rows that read it in one slot."""

    slot: Slot
    projection: Projection
    member: int
    rows: list[int]


def _readers(state: DecodeState) -> Iterator[Reader]:
    """Every memory that is read."""
    for slot, group in ((one, group) for one in state.slots for group in one):
        rows: dict[int, list[int]] = {}
        for row, member in zip(group.rows, group.members, strict=True):
            rows.setdefault(member, []).append(row)
        for member, of_memory in sorted(rows.items()):
            yield Reader(slot, group.projection, member, of_memory)


def _readable(state: DecodeState) -> bool:
    """All memories are in one form, and some layer reads them."""
    projections = state.projections
    forms = {one.form for one in projections}
    return len(forms) <= 1 and all(any(s is not None for s in p.segments) for p in projections)


def _of(projection: Projection, layer: int) -> Segment:
    segment = projection.segments[layer]
    assert segment is not None
    return segment


def _segment(segment: Segment, member: int) -> structs.Segment:
    if isinstance(segment, Absorbed):
        keys = values = segment.states_NSD[member]
        scales = (segment.scales_NS, segment.scales_NS)
        groups = (0, 0, 0)
    else:
        keys, values = segment.k_NGSK[member], segment.v_NGSK[member]
        scales = (segment.k_scales_NGS, segment.v_scales_NGS)
        groups = (keys.stride(0), values.stride(0), keys.shape[1])
    key_scales, value_scales = (None if s is None else s[member].data_ptr() for s in scales)
    return structs.Segment(
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        key_scales=key_scales,
        value_scales=value_scales,
        key_group=groups[0],
        key_stride=keys.stride(-2),
        value_group=groups[1],
        value_stride=values.stride(-2),
        scale_group=groups[2],
    )


def _mask(segment: Segment, member: int, projection: Projection) -> Tensor | None:
    """The memory's own mask; what a batch was padded with is not read at all."""
    if projection.memories[member].mask_S is None:
        return None
    assert segment.mask_NS is not None
    return segment.mask_NS[member].contiguous()


def _absorption(segment: Segment) -> structs.Absorption | None:
    if not isinstance(segment, Absorbed):
        return None
    bias = segment.v_bias_GK
    assert segment.k_weight_GKD.is_contiguous()
    assert segment.v_weight_GKD.is_contiguous()
    return structs.Absorption(
        keys=segment.k_weight_GKD.data_ptr(),
        values=segment.v_weight_GKD.data_ptr(),
        value_bias=None if bias is None else bias.data_ptr(),
    )


def compiled(decoder: Decoder) -> CompiledDecoder | None:
    """The decoder through the kernels; None where they are not to be had or do not fit it."""
    if obstacle(decoder) is not None:
        return None
    functions = library()
    return None if functions is None else CompiledDecoder(decoder, functions)


def obstacle(decoder: Decoder) -> str | None:
    """Why the kernels cannot run this decoder, or None where they can."""
    placement, cross = decoder.spec.placement, decoder.spec.cross_attention
    if placement.count and placement.kind == "merged":
        return "its cross-attention is merged with self-attention"
    if placement.count and (placement.instead or placement.own_feed_forward):
        return "its cross-attention comes instead of self-attention, or with a feed-forward"
    if placement.kind == "gated" and cross is not None and cross.o_bias:
        return "its gated cross-attention has an output bias"
    for name, module in decoder.named_modules():
        if is_changed(module):
            return f"{name or 'the decoder'} has a hook, or a forward of its own"
        if type(module) not in KNOWN:
            return f"{name} is a {type(module).__name__}"
    for name, tensor in (*decoder.named_parameters(), *decoder.named_buffers()):
        if tensor.device.type != "cpu":
            return f"it is on {tensor.device}"
        if tensor.dtype not in (torch.float32, torch.int8, torch.uint8, torch.int32):
            return f"{name} is {str(tensor.dtype).removeprefix('torch.')}"
        if not tensor.is_contiguous():
            return f"{name} is not contiguous"
    return None


def places_of(decoder: Decoder) -> tuple[int, ...]:
    """Where the weights are: changes when one is replaced, or what calling a module does."""
    others = sum(is_changed(m) or type(m) not in KNOWN for m in decoder.modules())
    return others, *(t.data_ptr() for t in (*decoder.parameters(), *decoder.buffers()))


def _activation(ffn: FeedForward) -> str:
    name = ffn.spec.activation
    assert name in ACTIVATIONS
    return NAMES.get(name, name)
