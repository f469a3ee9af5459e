"""An encoder and a decoder with their weights, and the three things one does with them.

``encode`` runs the encoder, ``project`` prepares memories for the decoder, ``step`` runs the
decoder. No call does another's work, and each is counted.

Axes: R rows, T tokens, N memories or sources, S positions, D model width, V vocabulary, F log-mel
frames, M mel bins.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.attention import Materialized, Segment
from xattn.errors import UsageError, require
from xattn.memory import Hash, Memory, SpanTable, bytes_of, digest_of
from xattn.models.adapters import names_for, rows_with, settings_of_adapters
from xattn.models.blend import Again, blend
from xattn.models.compiled import CompiledDecoder, compiled, places_of
from xattn.models.decoder import Decoder
from xattn.models.encoder import Encoder, packs
from xattn.models.parallel import Parallel, Stand, layout
from xattn.models.projectors import Projector
from xattn.models.state import Asking, DecodeState, Projection, Read, Reading
from xattn.spec import FORMS, AttentionSpec, Form, ModelSpec, is_absorbed, is_narrow

PADDING_SHARE = 0.25
"""Memories are projected as one padded batch while padding stays below this share of it."""

STAMP_WHOLE = 2**22
"""Weights of so many numbers are looked at entirely before an old digest is trusted."""

Attended = Memory | Projection


@dataclass
class Counters:
    """What was really run since the model was loaded."""

    encoder_passes: int = 0
    """Sources put through the encoder."""
    projections: int = 0
    """Memories projected to a decoder's segments."""
    steps: int = 0
    """Forward passes of the decoder, whatever the number of rows."""
    recomputed: int = 0
    """Tokens of memories that went through the decoder again."""


class Network(nn.Module):
    """Encoder (if any) and decoder of one model."""

    def __init__(self, spec: ModelSpec, *, hash: Hash = "blake3") -> None:
        super().__init__()
        self.spec, self.hash = spec, hash
        self.decoder = Decoder(spec.decoder)
        self.encoder = None if spec.encoder is None else Encoder(spec.encoder)
        self.projectors = nn.ModuleDict({one.modality: Projector(one) for one in spec.projectors})
        self.counters = Counters()
        self._encoder_digest: tuple[str, str] | None = None
        self.use_kernels = True
        """Decode through the compiled kernels, where they fit this model; else by torch alone."""
        self._compiled: CompiledDecoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but what holds addresses: a copy describes its own weights to the kernels."""
        return {**vars(self), "_compiled": None}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.any_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights."""
        return self.decoder.any_weight.dtype

    @property
    def encoder_digest(self) -> str:
        """Digest over what makes memories, its spec and its weights; part of every memory's key.

        That is the encoder, or the decoder of a model that has none.

        Taken again when a weight was replaced or changed. A change behind autograd's back
        (``weight.data += …``, as adapters are merged) is seen by looking at the weights: at all
        numbers of a small model, and at one of each row and column of a larger one. After a change
        of single numbers of a larger model, call :meth:`weights_changed`.
        """
        maker: nn.Module = self.decoder if self.encoder is None else self.encoder
        # Weights alone do not say how many heads they are cut into, or what eps a norm has.
        about = f"{said(self.spec.encoder or self.spec.decoder)} {settings_of(maker)}"
        named = list(maker.state_dict(keep_vars=True).items())
        stamp = about + stamp_of(tensor for _, tensor in named)
        if self._encoder_digest is None or self._encoder_digest[0] != stamp:
            digest = digest_of_weights(about, named, self.hash)
            self._encoder_digest = (stamp, digest)
        return self._encoder_digest[1]

    def describe_again(self) -> None:
        """Let the kernels look at the decoder anew: what its layers do was changed."""
        self._compiled = None

    def weights_changed(self) -> None:
        """Take the digest again: a few numbers of a weight were changed through ``.data``."""
        self._encoder_digest = None

    @property
    def decoder_stamp(self) -> str:
        """Changes whenever a weight of the decoder does, and what it projected is stale."""
        weights = (module.state_dict(keep_vars=True) for module in (self.decoder, self.projectors))
        return stamp_of(tensor for of_module in weights for tensor in of_module.values())

    @torch.no_grad()
    def encode_tokens(self, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Token ids of N sources -> their states, ``[S, D]`` each."""
        return self.states_of_tokens(ids)

    def states_of_tokens(self, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """The same, differentiable."""
        assert self.encoder is not None
        states: dict[int, Tensor] = {}
        for pack in packs([len(row) for row in ids]):
            lengths = [len(ids[n]) for n in pack]
            ids_P = torch.tensor([number for n in pack for number in ids[n]], device=self.device)
            pieces = self.encoder(ids_P, lengths).split(lengths)
            # Each its own storage: a memory that is kept must not keep its whole pack.
            states |= zip(
                pack, (p.clone() for p in pieces) if len(pack) > 1 else pieces, strict=True
            )
        self.counters.encoder_passes += len(ids)
        return [states[n] for n in range(len(ids))]

    @torch.no_grad()
    def encode_kv(self, ids: Sequence[int], behind: Memory | None = None) -> Tensor:
        """Token ids -> the decoder's own keys and values ``[S, L * 2 * G * K]``, to go on from.

        They come after the memory that they are ``behind``, whose own they do not repeat.
        """
        state = self.start([[] if behind is None else [behind]])
        self.decoder.hidden(torch.tensor([list(ids)], device=self.device), state)
        self.counters.encoder_passes += 1
        return state.cache.only_row_SF()

    @torch.no_grad()
    def encode_hidden(self, ids: Sequence[int]) -> Tensor:
        """Token ids -> the decoder's last hidden states ``[S, D]``, for another to attend to."""
        state = self.start([[]])
        ids_1S = torch.tensor([list(ids)], device=self.device)
        self.counters.encoder_passes += 1
        return self.decoder.hidden(ids_1S, state)[0]

    @torch.no_grad()
    def encode_mel(self, mel_NMF: Tensor) -> Tensor:
        """Log-mel frames ``[N, M, F]`` -> states ``[N, F/2, D]``."""
        assert self.encoder is not None
        self.counters.encoder_passes += mel_NMF.shape[0]
        return self.encoder(mel_NMF.to(self.device, self.dtype)).unflatten(0, (len(mel_NMF), -1))

    def project(
        self, memory: Memory, *, form: Form = "materialized", adapter: str | None = None
    ) -> Projection:
        """``memory`` as this decoder reads it; :class:`AbsorptionError` if ``form`` is illegal."""
        names = names_for(self, [adapter])
        return self._project([memory], form, None if names is None else names[0])

    def start(
        self,
        attended: Sequence[Sequence[Attended]],
        *,
        form: Form = "materialized",
        most: int | None = None,
        parallel: Sequence[Parallel] | None = None,
        adapters: Sequence[str | None] | None = None,
    ) -> DecodeState:
        """A state with one row per entry of ``attended``, each attending to the memories it lists.

        Memories are told apart by key and mask, and each distinct one is projected once; a
        :class:`Projection` of one memory is taken as it is. No row is expected to see more than
        ``most`` tokens: the cache grows to that, and only then beyond. ``parallel`` says for each
        row how a decoder-only model reads several. ``adapters`` names for each row the adapter that
        it is computed with, and its memories are projected with, or None for what the model is set
        to.
        """
        depth = max((len(items) for items in attended), default=0)
        names = None if adapters is None else names_for(self, adapters)
        placed: dict[str | None, dict[str, tuple[Projection, int]]] = {}
        of_rows = [None] * len(attended) if names is None else names
        for name in dict.fromkeys(of_rows):
            rows = [items for items, own in zip(attended, of_rows, strict=True) if own == name]
            here = placed[name] = {}
            for j in range(depth):
                self._place((items[j] for items in rows if len(items) > j), here, form, name)
        readings = [
            tuple(Read(*placed[name][identity_of(item)]) for item in items)
            for items, name in zip(attended, of_rows, strict=True)
        ]
        offsets = [0] * len(readings)
        if self.spec.decoder.cross_attention is None and depth:
            ways = [Parallel()] * len(readings) if parallel is None else parallel
            laid = [_laid_out(row, how) for row, how in zip(readings, ways, strict=True)]
            readings, offsets = [row for row, _ in laid], [offset for _, offset in laid]
            turned = self.decoder.rotary is None and any(r.turn for row in readings for r in row)
            require(not turned, "positions", "'shared': only rotary keys can move", "sequence")
        self._refresh_compiled()
        where = (self.dtype, self.device)
        state = DecodeState(
            self.spec.decoder, readings, *where, offsets, self.decoder.rotary, names
        )
        state.cache.most = most
        return state

    @torch.inference_mode()
    def blend(self, state: DecodeState, prompt: Sequence[int], share: float) -> Again:
        """Make again what of a row's memories the prompt reads most; two passes of the decoder.

        ``state`` has one row, which has seen no token. See :mod:`xattn.models.blend`.
        """
        tokens_1T = torch.tensor([list(prompt)], device=self.device)
        memories = [read.memory for read in state.readings[0]]
        totals = [torch.zeros(len(memory), device=self.device) for memory in memories]
        for _, _, shares in self.shares_read(tokens_1T, state, self.reading_heads):
            for total_S, share_TAS in zip(totals, shares, strict=True):
                total_S += share_TAS.sum(dim=(0, 1))
        again = blend(self.decoder, state, totals, share)
        self.counters.recomputed += len(again)
        self.counters.steps += 1
        return again

    @torch.inference_mode()
    def step(
        self,
        tokens_RT: Tensor,
        state: DecodeState,
        counts_R: Tensor | None = None,
        *,
        only: Sequence[int] | None = None,
    ) -> Tensor:
        """Feed tokens; returns the logits ``[R, V]`` after each row's last valid one, float32.

        ``counts_R`` gives the valid tokens of each row when prompts of unequal length are padded on
        the right. With ``only`` some token ids, no other logits are computed, and those are -inf.
        """
        self.counters.steps += 1
        tokens_RT = self._ids(tokens_RT)
        counts = None if counts_R is None else counts_R.tolist()
        if counts is not None and len(set(counts)) == 1 and counts[0] == tokens_RT.shape[1]:
            counts = None
        compiled = self._compiled
        if compiled is not None and counts is None and compiled.takes(tokens_RT, state):
            if only is None:
                return compiled.step(tokens_RT, state)
            return self.decoder.logits_of(compiled.hidden(tokens_RT, state), only)
        hidden_RTD = self.decoder.hidden(tokens_RT, state, counts)
        if counts is None:
            last_RD = hidden_RTD[:, -1]
        else:
            last = torch.tensor(counts, device=self.device) - 1
            last_RD = hidden_RTD[torch.arange(len(counts), device=self.device), last]
        if only is None:
            return self.decoder.logits(last_RD)
        return self.decoder.logits_of(last_RD, only)

    @torch.inference_mode()
    def step_all(self, tokens_RT: Tensor, state: DecodeState) -> Tensor:
        """Feed tokens; returns the logits ``[R, T, V]`` after every one of them, float32."""
        self.counters.steps += 1
        tokens_RT = self._ids(tokens_RT)
        compiled = self._compiled
        if compiled is not None and compiled.takes(tokens_RT, state):
            return compiled.step_all(tokens_RT, state)
        return self.decoder.logits(self.decoder.hidden(tokens_RT, state))

    def _ids(self, tokens_RT: Tensor) -> Tensor:
        """Token ids as the decoder reads them: the kernels look at nothing but their bytes."""
        if self.device.type == "cpu" and tokens_RT.numel():
            require(not tokens_RT.is_floating_point(), "tokens_RT", "whole", tokens_RT.dtype)
            last = self.spec.decoder.vocab_size - 1
            for token in map(int, tokens_RT.aminmax()):
                require(0 <= token <= last, "tokens_RT", f"token ids from 0 to {last}", token)
        return tokens_RT.to(self.device, torch.long)

    def _refresh_compiled(self) -> None:
        """Describe the decoder to the kernels again where a weight was replaced."""
        if not self.use_kernels:
            self._compiled = None
        elif self._compiled is None or self._compiled.stamp != places_of(self.decoder):
            self._compiled = compiled(self.decoder)

    def score(self, tokens_RT: Tensor, state: DecodeState) -> Tensor:
        """Teacher-forced logits ``[R, T, V]``, differentiable, float32."""
        self.counters.steps += 1
        return self.decoder.logits(self.decoder.hidden(tokens_RT.to(self.device), state))

    @torch.no_grad()
    def cross_weights(
        self, tokens_RT: Tensor, state: DecodeState, heads: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Cross-attention weights ``[R, A, T, S]`` of the chosen (layer, head) pairs, float32.

        Computed in a pass of its own over ``tokens_RT``, with the memories of ``state`` and none of
        its tokens; decoding itself never materialises a weight.
        """
        self._require_heads(heads)
        require(self.spec.decoder.cross_attention is not None, "heads", "of cross-attention", heads)
        fresh = state.fresh()
        queries = self._probed(tokens_RT, fresh)
        scale = self._reading_attention.scale
        pieces = [
            fresh.memory_weights(queries[layer].q_RTHK, layer, [head], scale)
            for layer, head in heads
        ]
        return torch.cat(pieces, dim=2).transpose(1, 2)

    @torch.no_grad()
    def shares_read(
        self,
        tokens_1T: Tensor,
        state: DecodeState,
        heads: Sequence[tuple[int, int]],
        again: Sequence[tuple[int, int]] = (),
    ) -> Iterator[tuple[int, list[int], list[Tensor]]]:
        """What a single row reads of each of its memories, layer by layer: ``[T, A, S]``.

        With each layer come the heads asked for and, for each memory, the shares of its positions
        in all that each head reads in its softmax; to a decoder-only model its own tokens have the
        rest. ``again`` is what :meth:`blend` returned for ``state``: these positions are read from
        the row's cache. Computed as :meth:`cross_weights` does it.
        """
        self._require_heads(heads)
        probed = state if again else state.fresh()
        queries = self._probed(tokens_1T, probed)
        by_layer: dict[int, list[int]] = {}
        for layer, head in heads:
            by_layer.setdefault(layer, []).append(head)
        scale = self._reading_attention.scale
        for layer, chosen in by_layer.items():
            yield layer, chosen, probed.shares_read(queries.pop(layer), layer, chosen, scale, again)

    @property
    def _reading_attention(self) -> AttentionSpec:
        """The attention that reads memories."""
        return self.spec.decoder.cross_attention or self.spec.decoder.self_attention

    @property
    def reading_heads(self) -> list[tuple[int, int]]:
        """All (layer, head) pairs that read memories."""
        decoder = self.spec.decoder
        goes_on = decoder.cross_attention is None
        layers = [i for i, crosses in enumerate(decoder.placement.layers) if goes_on or crosses]
        return [(i, head) for i in layers for head in range(self._reading_attention.heads)]

    def _require_heads(self, heads: Sequence[tuple[int, int]]) -> None:
        most, known = self._reading_attention.heads, set(self.reading_heads)
        require(len(heads) > 0, "heads", "at least one (layer, head) pair", heads)
        for pair in heads:
            bound = f"(layer, head) pairs of layers that read memories, head below {most}"
            require(tuple(pair) in known, "heads", bound, pair)

    def _probed(self, tokens_RT: Tensor, state: DecodeState) -> dict[int, Asking]:
        """What each layer that reads memories asks of them for ``tokens_RT``, which are fed."""
        found: dict[int, Asking] = {}
        self.counters.steps += 1
        self.decoder.hidden(tokens_RT.to(self.device), state, probe=found.__setitem__)
        return found

    def _kv_segments(self, memory: Memory, form: Form) -> tuple[Segment, ...]:
        """Keys and values of each layer: views of the memory, or int8 of their own."""
        attention, L = self.spec.decoder.self_attention, self.spec.decoder.layers
        kv_SF = memory.states_SD.to(self.device, self.dtype)
        shape = (len(memory), L, 2, attention.kv_heads, attention.head_width)
        kv_L2GSK = kv_SF.view(shape).permute(1, 2, 3, 0, 4)
        mask = None if memory.mask_S is None else memory.mask_S.to(self.device).unsqueeze(0)
        wide = [
            Materialized(
                k_NGSK=kv_L2GSK[layer, 0].unsqueeze(0),
                v_NGSK=kv_L2GSK[layer, 1].unsqueeze(0),
                mask_NS=mask,
            )
            for layer in range(L)
        ]
        return tuple(segment.narrowed() for segment in wide) if is_narrow(form) else tuple(wide)

    def _place(
        self,
        items: Iterable[Attended],
        placed: dict[str, tuple[Projection, int]],
        form: Form,
        adapter: str | None,
    ) -> None:
        """Project what is not in ``placed`` yet, in batches of similar length."""
        waiting: dict[str, Memory] = {}
        for item in items:
            if isinstance(item, Projection):
                placed.setdefault(identity_of(item), (item, 0))
            elif identity_of(item) not in placed:
                waiting.setdefault(identity_of(item), item)
        alone = self.spec.decoder.cross_attention is None
        for batch in _batches(list(waiting.values()), form, alone=alone):
            projection = self._project(batch, form, adapter)
            placed.update({identity_of(memory): (projection, n) for n, memory in enumerate(batch)})

    def _adapted(self, memory: Memory) -> Memory:
        """A memory as cross-attention takes it: through the projector of its modality, if any."""
        spec = self.spec.projector_for(memory.modality)
        if spec is None:
            return memory
        require(memory.width == spec.inputs, "memory", f"of width {spec.inputs}", memory)
        states_SD = memory.states_SD.to(self.device, self.dtype)
        mask_S = None if memory.mask_S is None else memory.mask_S.to(self.device)
        states_SD = self.projectors[memory.modality](states_SD, mask_S)
        if spec.resampler is None:
            return replace(memory, states_SD=states_SD)
        bounds_S2 = SpanTable.of(memory.spans).bounds_S2
        whole_2 = torch.stack((bounds_S2[:, 0].min(), bounds_S2[:, 1].max()))
        spans = SpanTable(whole_2.expand(len(states_SD), 2), memory.spans[0].unit)
        return replace(memory, states_SD=states_SD, mask_S=None, spans=spans, source_tokens=())

    def _project(
        self, memories: Sequence[Memory], form: Form, adapter: str | None = None
    ) -> Projection:
        require(form in FORMS, "form", f"one of {', '.join(FORMS)}", form)
        memories = [self._adapted(memory) for memory in memories]
        width = self.spec.decoder.kv_width
        if self.spec.decoder.cross_attention is not None:
            width = self.spec.decoder.memory_width
        for memory in memories:
            if memory.width != width:
                raise UsageError(
                    f"{memory!r} has width {memory.width}, "
                    f"but this decoder reads memories of width {width}."
                )
        self.counters.projections += len(memories)
        if self.spec.decoder.cross_attention is None:
            if is_absorbed(form):
                self.spec.decoder.require_absorbable()
            [memory] = memories
            kv = self._kv_segments(memory, form)
            return Projection(memories=(memory,), segments=kv, form=form)
        states_NSD, mask_NS = _stack(memories, self.device, self.dtype)
        with rows_with(None if adapter is None else [adapter] * len(memories)):
            segments = self.decoder.project(states_NSD, mask_NS, form)
        return Projection(memories=tuple(memories), segments=segments, form=form)


def positions_before(attended: Sequence[Attended], how: Parallel) -> int:
    """Position that a prompt begins at after these: 0 but for memories of keys and values."""
    memories = [item if isinstance(item, Memory) else item.memories[0] for item in attended]
    return layout([Stand.of(m) for m in memories if m.holds_kv], how)[1]


def _laid_out(reading: Reading, how: Parallel) -> tuple[Reading, int]:
    """What a row reads, each memory at its place, and the position that its prompt begins at."""
    memories = [read.memory for read in reading]
    places, offset = layout([Stand.of(memory) for memory in memories], how)
    return tuple(
        read._replace(
            turn=place.turn,
            temperature=how.temperature if place.weighed else 1.0,
            scale=how.scale if place.weighed else 1.0,
        )
        for read, place in zip(reading, places, strict=True)
    ), offset


def digest_of_weights(about: str, named: Iterable[tuple[str, Tensor]], hash: Hash) -> str:
    """Digest over all numbers of the weights, their names, and what is said ``about`` them."""
    parts: list[bytes | memoryview] = [about.encode()]
    for name, weight in named:
        what = f"{name}{tuple(weight.shape)}{weight.dtype}"
        parts += [what.encode(), bytes_of(weight.cpu())]
    return digest_of(*parts, hash=hash)


def said(value: object) -> str:
    """A spec as text, but for what is as it usually is: a field that is new changes no digest."""
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    changed = ((f.name, getattr(value, f.name)) for f in fields(value))
    defaults = {f.name: f.default for f in fields(value)}
    parts = [f"{name}={said(part)}" for name, part in changed if part != defaults[name]]
    return f"{type(value).__name__}({', '.join(parts)})"


def settings_of(maker: nn.Module) -> str:
    """Classes, hooks and plain settings of a module and all within it: an adapter has a scale."""
    return repr([(name, *_settings(module)) for name, module in maker.named_modules()])


def _settings(module: nn.Module) -> tuple[str, list[tuple[str, object]], list[str]]:
    plain = [
        (name, value)
        for name, value in sorted(vars(module).items())
        if name[0] != "_" and name != "training" and type(value) in (str, int, float, bool)
    ]
    plain += [("adapters", one) for one in settings_of_adapters(module)]
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    names = [getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks]
    return type(module).__qualname__, plain, names


def stamp_of(tensors: Iterable[Tensor]) -> str:
    """Changes whenever a weight does, for the price of looking at some numbers of each."""
    weights = [weight.detach() for weight in tensors]
    places = repr([(w.data_ptr(), w._version, w.shape, w.dtype) for w in weights])
    look = torch.flatten if sum(w.numel() for w in weights) <= STAMP_WHOLE else _diagonal
    numbers = torch.cat([look(w).float() for w in weights]).cpu()
    return digest_of(places.encode(), bytes_of(numbers))


def _diagonal(weight: Tensor) -> Tensor:
    """Numbers of a weight such that each of its rows and each of its columns has one."""
    if weight.dim() < 2:
        return weight.flatten()
    flat = weight.flatten(1)
    return flat[_places(*flat.shape, weight.device)]


@functools.lru_cache(maxsize=64)
def _places(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of the numbers on a diagonal that begins again where the matrix ends."""
    along = torch.arange(max(rows, columns), device=device)
    return along % rows, along % columns


def identity_of(item: Attended) -> str:
    """What tells apart the things that rows attend to; of a projection, as long as it lives."""
    if isinstance(item, Projection):
        return f"projection-{id(item)}"
    if item.mask_S is None:
        return item.key.digest
    return f"{item.key.digest}-{digest_of(bytes_of(item.mask_S.cpu()))}"


def _batches(memories: list[Memory], form: Form, *, alone: bool) -> list[list[Memory]]:
    """Memories that are worth projecting together, in the order given.

    Absorbed memories, and those of keys and values, are read where they lie, each ``alone``, so
    that nothing is copied.
    """
    if is_absorbed(form) or alone or len(memories) == 1:
        return [[memory] for memory in memories]
    batches: list[list[Memory]] = []
    for memory in memories:
        if batches:
            lengths = [len(m) for m in (*batches[-1], memory)]
            if sum(lengths) >= (1 - PADDING_SHARE) * max(lengths) * len(lengths):
                batches[-1].append(memory)
                continue
        batches.append([memory])
    return batches


def _stack(
    memories: Sequence[Memory], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """States ``[N, S, D]`` and mask ``[N, S]``; a single memory is a view of itself."""
    if len(memories) == 1:
        (memory,) = memories
        mask = None if memory.mask_S is None else memory.mask_S.to(device).unsqueeze(0)
        return memory.states_SD.to(device, dtype).unsqueeze(0), mask
    S = max(map(len, memories))
    plain = all(len(m) == S and m.mask_S is None for m in memories)
    states_NSD = torch.zeros(len(memories), S, memories[0].width, device=device, dtype=dtype)
    mask_NS = torch.zeros(len(memories), S, dtype=torch.bool, device=device)
    for n, memory in enumerate(memories):
        states_NSD[n, : len(memory)] = memory.states_SD
        mask_NS[n, : len(memory)] = True if memory.mask_S is None else memory.mask_S
    return states_NSD, None if plain else mask_NS
