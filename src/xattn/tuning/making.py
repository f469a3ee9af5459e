"""From the first part of a recipe to a model, and from a trained model to a directory."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from xattn.errors import require
from xattn.inputs.tokenizers import load_tokenizer
from xattn.model import Model, load
from xattn.models.decoder import Decoder
from xattn.models.encoder import Encoder
from xattn.models.formats.native import CONFIG, VERSION, WEIGHTS
from xattn.models.lent import Several
from xattn.models.network import Network
from xattn.models.spec_json import as_json
from xattn.models.weights import Checkpoint
from xattn.placing import layers_of
from xattn.spec import (
    AttentionSpec,
    DecoderSpec,
    EncoderSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    Placement,
    PositionSpec,
    TokenSpec,
)
from xattn.tuning import lora, saving
from xattn.tuning.encoders import encoder_of
from xattn.tuning.graft import graft
from xattn.tuning.recipe import ModelPart, Scratch
from xattn.tuning.vocabulary import BOS, EOS, PAD, make_tokenizer
from xattn.tuning.whole import replacing

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "*.spm",
                   "*.model", "vocab.json", "merges.txt")  # fmt: skip


def make(part: ModelPart, directory: Path, texts: Iterable[str]) -> Model:
    """The model that a recipe names or describes.

    One that begins from nothing has its tokenizer made of ``texts``, in ``directory``, where a run
    that goes on finds it.
    """
    if part.path is not None:
        return load(part.path, offline=True)
    if part.lm is not None:
        assert part.encoder is not None
        names = [part.encoder] if isinstance(part.encoder, str) else part.encoder
        return graft(
            part.lm,
            encoder=[encoder_of(name, offline=True) for name in names],
            placement=part.placement,
            kind=part.kind or "gated",
            projector=part.projector,  # type: ignore[arg-type]
            before=part.before,
            own_layers=part.own_layers,
            own_feed_forward=part.own_feed_forward,
            shared=part.shared,
            kv_heads=part.kv_heads,
            seed=part.seed,
            offline=True,
        )
    assert part.scratch is not None
    return begin(part, part.scratch, directory, texts)


def begin(part: ModelPart, scratch: Scratch, directory: Path, texts: Iterable[str]) -> Model:
    """An encoder-decoder with random weights, and a tokenizer of its own."""
    folder = directory / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        with replacing(folder) as new:
            make_tokenizer(texts, scratch.vocabulary, new)
    tokenizer = load_tokenizer(folder, {})
    assert tokenizer is not None
    spec = spec_of(part, scratch, tokenizer.vocab_size)
    with torch.device("meta"):
        network = Network(spec)
    network.to_empty(device="cpu")
    _draw(network, torch.Generator().manual_seed(part.seed))
    checkpoint = Checkpoint(
        spec=spec, weights={}, origin=str(directory), directory=folder, tokenizer=tokenizer
    )
    return Model(network.eval(), checkpoint)


def spec_of(part: ModelPart, scratch: Scratch, vocabulary: int) -> ModelSpec:
    """What :func:`begin` makes; raises :class:`UsageError` for a placement that does not fit."""
    heads, width = scratch.heads, scratch.width
    require(width % heads == 0, "heads", f"a divisor of the width ({width})", heads)
    kv_heads = heads if scratch.kv_heads is None else scratch.kv_heads
    require(heads % kv_heads == 0, "kv_heads", f"a divisor of the {heads} heads", kv_heads)
    mask = layers_of(part.placement, scratch.decoder_layers)
    require(any(mask), "placement", "one layer or more", part.placement)
    attention = AttentionSpec(
        heads=heads, kv_heads=heads, head_width=width // heads, scale=(width // heads) ** -0.5
    )
    cross = AttentionSpec(
        heads=heads, kv_heads=kv_heads, head_width=width // heads, scale=(width // heads) ** -0.5
    )
    kind = part.kind or "separate"
    shape: dict[str, Any] = {
        "width": width,
        "self_attention": attention,
        "feed_forward": FeedForwardSpec(width=scratch.feed_forward, activation="gelu", bias=False),
        "norm": NormSpec(kind="rms"),
        "norm_place": "before",
        "position": PositionSpec(kind="sinusoidal", stored=False),
        "embed_scale": width**0.5,
    }
    decoder = DecoderSpec(
        **shape,
        layers=scratch.decoder_layers,
        vocab_size=vocabulary,
        placement=Placement(
            layers=mask,
            kind=kind,
            before=part.before,
            own_feed_forward=part.own_feed_forward,
            shared=part.shared,
            instead=part.own_layers,
        ),
        cross_attention=attention if kind == "merged" else cross,
        memory_width=width,
    )
    encoder = EncoderSpec(**shape, layers=scratch.encoder_layers, vocab_size=vocabulary)
    tokens = TokenSpec(eos=(EOS,), pad=PAD, bos=BOS, decoder_start=BOS)
    return ModelSpec(family="xattn", decoder=decoder, encoder=encoder, tokens=tokens)


def save_model(model: Model, directory: Path, weights: Mapping[str, Tensor]) -> None:
    """A graft or any other model, as :func:`xattn.load` reads it; whole or not at all.

    ``weights`` are the network's, by name. Of a model with adapters these are written alone, as
    peft writes them.
    """
    if lora.adapters(model):
        lora.save_adapter(model, directory, weights=weights)
        return
    if isinstance(model.sources, Several):
        saving.save(model, directory, weights=weights)
        return
    own = [name for name, _ in model.network.named_parameters()]
    with replacing(directory) as new:
        held = {name: weights[name].detach().cpu().contiguous() for name in own}
        save_file(held, new / WEIGHTS)
        config = {
            "version": VERSION,
            "spec": as_json(model.spec),
            "generation": dict(model.generation_config),
        }
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        for pattern in TOKENIZER_FILES:
            for file in sorted(model.directory.glob(pattern)):
                shutil.copyfile(file, new / file.name)


@torch.no_grad()
def _draw(network: Network, generator: torch.Generator) -> None:
    """Matrices that keep the size of what goes through; those that add to a residual add less."""
    stacks: list[Decoder | Encoder] = [network.decoder]
    if network.encoder is not None:
        stacks.append(network.encoder)
        # One table for both sides, as the tokenizer is.
        network.encoder.embed = network.decoder.embed
    for stack in stacks:
        depth = (2 * stack.spec.layers) ** -0.5
        for name, module in stack.named_modules():
            if isinstance(module, nn.Embedding):
                spread = module.weight.shape[1] ** -0.5
                module.weight.copy_(spread * _normal(module.weight, generator))
            elif isinstance(module, nn.Linear):
                less = depth if name.endswith((".o", ".down")) else 1.0
                spread = less * module.weight.shape[1] ** -0.5
                module.weight.copy_(spread * _normal(module.weight, generator))
            elif hasattr(module, "clear"):
                module.clear(torch.float32, torch.device("cpu"))
        for name, one in stack.named_parameters():
            if name.endswith("norm.weight"):
                one.fill_(1.0)
            elif name.endswith("gate") and one.numel() == 1:
                one.zero_()


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)
