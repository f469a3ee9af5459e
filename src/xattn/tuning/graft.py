"""Cross-attention for a language model that was trained without it.

The model keeps every weight that it has. What is new begins at nothing: a gate at zero, or an
output of zeros, so that the first logits are the model's own, bit by bit.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import UsageError, is_whole, require
from xattn.model import Model, load
from xattn.models.formats.graft import grafted, moved_name
from xattn.models.layers import Attention, RMSNorm
from xattn.models.lent import (
    HiddenStates,
    Lent,
    Module,
    OwnedByModel,
    Several,
    spec_of,
    without_cross,
)
from xattn.models.network import Network
from xattn.models.pictures import PictureEncoder
from xattn.models.projectors import Resampler
from xattn.models.texts import TextEncoder
from xattn.models.weights import Checkpoint
from xattn.placing import Where, layers_of
from xattn.spec import (
    AttentionSpec,
    DecoderSpec,
    Modality,
    Placement,
    PlacementKind,
    ProjectorKind,
    ProjectorSpec,
    ResamplerSpec,
)

EncoderLike = str | os.PathLike[str] | Model | PictureEncoder | TextEncoder
ITSELF = "itself"
PROJECTORS = "none, linear, mlp, or resampler:N with the number of positions that it leaves"
KINDS: tuple[PlacementKind, ...] = ("separate", "gated", "merged")
RESAMPLER_LAYERS = 2


def graft(
    lm: Model | str | os.PathLike[str],
    *,
    encoder: EncoderLike | Sequence[EncoderLike],
    placement: Where = "every:4",
    kind: PlacementKind = "gated",
    projector: str | Mapping[Modality, str] = "linear",
    before: bool = False,
    own_layers: bool = False,
    own_feed_forward: bool = False,
    shared: bool = False,
    qk_norm: bool = False,
    kv_heads: int | None = None,
    seed: int = 0,
    offline: bool = False,
) -> Model:
    """``lm`` with cross-attention to what ``encoder`` makes, as a model to train, save and run.

    ``lm`` is decoder-only, with weights that are not quantised; the graft shares them with it.
    ``encoder`` is ``"itself"`` (the hidden states of ``lm``: XC-Cache, Monteiro et al. 2024), a
    model with an encoder or the name of one, a :class:`~xattn.TextEncoder`, a
    :class:`~xattn.PictureEncoder`, or a list of these, one for each modality. ``placement`` says
    which layers read memories (:mod:`xattn.placing`), ``kind`` how:

    - ``"gated"``: a sub-layer of its own behind a gate that starts at zero (Flamingo);
    - ``"separate"``: one without a gate, whose output matrix starts at zero;
    - ``"merged"``: self-attention reads memories and tokens in one softmax, with its own weights,
      and a gate that starts at zero lets it.

    ``projector`` stands between an encoder and the decoder, for all modalities or for each:
    ``"none"``, ``"linear"``, ``"mlp"``, or ``"resampler:64"``, which leaves so many positions.
    ``before`` puts cross-attention before self-attention, ``own_layers`` into layers of its own, in
    front of those that the placement names (Llama 3.2 Vision); ``own_feed_forward`` adds a
    feed-forward to it; with ``shared`` all layers read the same keys and values; ``qk_norm``
    normalises queries and keys, and ``kv_heads`` is the number of heads that keys and values have.
    ``seed`` draws the new weights.

    The new weights, and no others, ask for gradients: :func:`trainable` lists them. Raises
    :class:`UsageError` where parts do not fit each other, and what :func:`xattn.load` raises.
    """
    model = lm if isinstance(lm, Model) else load(lm, offline=offline)
    decoder = _graftable(model)
    require(kind in KINDS, "kind", f"one of {', '.join(KINDS)}", kind)
    mask = layers_of(placement, decoder.layers)
    require(any(mask), "placement", "one layer or more", placement)
    given: list[Any] = list(encoder) if isinstance(encoder, list | tuple) else [encoder]
    lent = [_lent(one, model, offline) for one in given]
    projectors, memory_width = _projectors(projector, lent, decoder, kind)
    placed = Placement(
        layers=_inserted(mask) if own_layers else mask,
        kind=kind,
        instead=own_layers,
        own_feed_forward=own_feed_forward,
        before=before,
        shared=shared,
        gate=kind == "merged",
    )
    cross_attention = _cross_attention(decoder, kind, kv_heads, qk_norm)
    of_lent = tuple(spec_of(one) for one in lent)
    spec = grafted(model.spec, placed, cross_attention, memory_width, projectors, of_lent)
    with torch.device("meta"):
        network = Network(spec, hash=model.network.hash)
    for name, weight in model.network.named_parameters():
        path, _, attribute = moved_name(name, placed).rpartition(".")
        setattr(network.get_submodule(path), attribute, weight)
    _draw(network, torch.Generator().manual_seed(seed))
    for one in lent:
        if isinstance(one, HiddenStates):  # what changes the one changes the other
            one.read(without_cross(network))
    checkpoint = Checkpoint(
        spec=spec,
        weights={},
        origin=model.name,
        directory=model.path or Path(),
        tokenizer=model.asker.known_tokenizer,
        generation=model.generation_config,
        base=model.path,
    )
    return Model(network.eval(), checkpoint, Several(lent))


def trainable(model: Model) -> list[str]:
    """The weights that ask for gradients, by name."""
    return [name for name, one in model.network.named_parameters() if one.requires_grad]


def _graftable(model: Model) -> DecoderSpec:
    decoder = model.spec.decoder
    bound = "a decoder-only model"
    fits = decoder.cross_attention is None and model.spec.encoder is None
    require(fits, "lm", bound, model)
    narrow = any(not one.is_floating_point() for one in model.network.buffers())
    require(not narrow, "lm", f"{bound} whose weights are not quantised", model)
    return decoder


def _lent(encoder: EncoderLike, lm: Model, offline: bool) -> Lent:
    if isinstance(encoder, PictureEncoder | TextEncoder):
        return Module(encoder)
    if encoder == ITSELF or encoder is lm:
        return HiddenStates(lm.network, lm.asker.known_tokenizer)
    bound = "'itself', a model or its name, a TextEncoder or a PictureEncoder, or a list of these"
    require(isinstance(encoder, str | os.PathLike | Model), "encoder", bound, encoder)
    loaded = encoder if isinstance(encoder, Model) else load(encoder, offline=offline)
    return OwnedByModel(loaded.network, loaded.asker.known_tokenizer, loaded.path)


def _projectors(
    wanted: str | Mapping[Modality, str],
    lent: Sequence[Lent],
    decoder: DecoderSpec,
    kind: PlacementKind,
) -> tuple[tuple[ProjectorSpec, ...], int]:
    """The projectors, and the width of what cross-attention reads."""
    texts = {one.modality: one for one in lent}
    if isinstance(wanted, Mapping):
        strange = next((name for name in wanted if name not in texts), None)
        bound = f"for {', '.join(texts)}, which the encoders read"
        require(strange is None, "projector", bound, strange)
        chosen = {modality: wanted.get(modality, "linear") for modality in texts}
    else:
        chosen = dict.fromkeys(texts, wanted)
    bare = {one.width for modality, one in texts.items() if chosen[modality] == "none"}
    alone = set(chosen.values()) == {"none"} and kind != "merged"
    width = min(bare) if alone else decoder.width
    for one in texts.values():
        if chosen[one.modality] == "none" and one.width != width:
            raise UsageError(
                f"`projector` must be other than 'none' for {one.modality}: its encoder's states "
                f"have width {one.width}, and cross-attention reads {width}; choose one of "
                f"{PROJECTORS.removeprefix('none, ')}."
            )
    made = [
        _projector(text, texts[modality], width, decoder)
        for modality, text in chosen.items()
        if text != "none"
    ]
    return tuple(made), width


def _projector(text: str, lent: Lent, width: int, decoder: DecoderSpec) -> ProjectorSpec:
    word, _, count = str(text).partition(":")
    kinds: dict[str, ProjectorKind] = {"linear": "linear", "mlp": "mlp"}
    plain = word in kinds and not count
    fits = plain or (word == "resampler" and count.isdigit() and 1 <= int(count) <= 2**16)
    require(fits, "projector", f"one of {PROJECTORS}", text)
    own = decoder.self_attention
    return ProjectorSpec(
        modality=lent.modality,
        kind=kinds.get(word, "resampler"),
        inputs=lent.width,
        outputs=width,
        resampler=None
        if plain
        else ResamplerSpec(
            layers=RESAMPLER_LAYERS,
            latents=int(count),
            width=width,
            heads=own.heads,
            head_width=own.head_width,
            feed_forward=2 * width,
        ),
    )


def _cross_attention(
    decoder: DecoderSpec, kind: PlacementKind, kv_heads: int | None, qk_norm: bool
) -> AttentionSpec:
    own = decoder.self_attention
    if kind == "merged":
        bound = "left out for 'merged', whose attention is self-attention's"
        require(kv_heads is None, "kv_heads", bound, kv_heads)
        require(not qk_norm, "qk_norm", bound, qk_norm)
        return replace(own, rotary=False)
    heads = own.kv_heads if kv_heads is None else kv_heads
    fits = is_whole(heads, 1) and own.heads % heads == 0
    require(fits, "kv_heads", f"a divisor of the {own.heads} heads", kv_heads)
    return AttentionSpec(
        heads=own.heads,
        head_width=own.head_width,
        kv_heads=heads,
        scale=own.head_width**-0.5,
        qk_norm=decoder.norm if qk_norm else None,
    )


def _inserted(mask: Sequence[bool]) -> tuple[bool, ...]:
    """Layers of their own, each in front of one that the mask names."""
    return tuple(one for crosses in mask for one in ((True, False) if crosses else (False,)))


@torch.no_grad()
def _draw(network: Network, generator: torch.Generator) -> None:
    """New weights: matrices that keep the size of what goes through, norms of ones, shut gates."""
    decoder = network.decoder
    like = next(one for one in network.parameters() if one.device.type != "meta")
    for name, one in list(network.named_parameters()):
        if one.device.type != "meta":
            continue
        path, _, attribute = name.rpartition(".")
        module = network.get_submodule(path)
        values = _first(module, name, one, generator).to(like.device, like.dtype)
        setattr(module, attribute, nn.Parameter(values))
    if network.spec.decoder.placement.kind == "separate":
        for layer in decoder.stack:
            if layer.crosses:
                layer.cross_attn.o.weight.zero_()
                if hasattr(layer, "cross_ffn"):
                    layer.cross_ffn.down.weight.zero_()
                if not layer.attends_self:
                    layer.ffn.down.weight.zero_()


def _first(module: nn.Module, name: str, one: Tensor, generator: torch.Generator) -> Tensor:
    if name.endswith(("cross_gate", "ffn_gate", "bias")):
        return torch.zeros(one.shape)
    if isinstance(module, RMSNorm | nn.LayerNorm):
        return torch.ones(one.shape)
    assert isinstance(module, nn.Linear | Resampler | Attention), name
    return torch.randn(one.shape, generator=generator) * one.shape[-1] ** -0.5
