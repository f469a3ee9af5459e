"""CTranslate2 directories, written by CTranslate2's own converter from tiny random models.

What xattn makes of them is compared with the transformers model they were converted from, and with
CTranslate2 itself where it has quantised the weights.
"""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
from converted import TOKENS, Converter, convert
from tiny import TINY, VOCAB, hf_memory_inputs

from xattn.errors import CorruptCheckpointError, UnsupportedModelError
from xattn.memory import Memory, MemoryKey, Span
from xattn.models.build import build
from xattn.models.formats import ctranslate2 as format_
from xattn.models.formats.ctranslate2.binary import TYPES, ModelFile
from xattn.models.network import Network
from xattn.models.resolve import resolve


def network_of(directory: Path) -> Network:
    return build(format_.read(directory, "tiny"))


def logits_of(network: Network, inputs: torch.Tensor | None, targets: torch.Tensor) -> torch.Tensor:
    """Teacher-forced logits of one source and one target."""
    if inputs is None:
        state = network.start([[]])
    else:
        encode = network.encode_tokens if inputs.dim() == 2 else network.encode_mel
        states_SD = encode(inputs.tolist() if inputs.dim() == 2 else inputs)[0]
        key = MemoryKey(
            source="x", modality="text", preprocessing="none", encoder="tiny", dtype="float32"
        )
        spans = [Span(n, n + 1, "characters") for n in range(len(states_SD))]
        state = network.start([[Memory(states_SD=states_SD, key=key, spans=spans)]])
    with torch.no_grad():
        return network.score(targets, state)[0]


def reference(model: Any, name: str, targets: torch.Tensor) -> tuple[Any, torch.Tensor]:
    with torch.no_grad():
        if TINY[name].decoder_only:
            return None, model(targets).logits[0]
        inputs, named = hf_memory_inputs(name, 1, 9)
        return inputs, model(**named(inputs), decoder_input_ids=targets).logits[0]


FAMILIES = ["t5", "t5-v1.1-untied-wide-heads", "bart", "mbart", "m2m_100", "whisper", "llama"]
TARGETS = torch.tensor([[2, 17, 55, 8, 90, 31, 4]])


@pytest.mark.parametrize("name", [*FAMILIES, "qwen2", "qwen3"])
def test_logits_equal_those_of_the_model_it_was_converted_from(name: str, tmp_path: Path) -> None:
    model = convert(name, tmp_path / "ct2")
    inputs, expected = reference(model, name, TARGETS)
    found = logits_of(network_of(tmp_path / "ct2"), inputs, TARGETS)
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("quantization", ["int8", "int8_float16", "int16", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["bart", "whisper"])
def test_quantised_weights_are_within_one_step_of_the_originals(
    name: str, quantization: str, tmp_path: Path
) -> None:
    convert(name, tmp_path / "full")
    convert(name, tmp_path / "small", quantization)
    full, small = (format_.read(tmp_path / d, "x").weights for d in ("full", "small"))
    assert full.keys() == small.keys()
    for ours, weight in full.items():
        exact, rounded = weight.load(), small[ours].load()
        assert rounded.dtype == torch.float32
        assert rounded.shape == weight.shape
        largest = exact.abs().max().item()
        step = {"int8": 1 / 254, "int16": 1 / 1000, "float16": 2**-11, "bfloat16": 2**-8}
        bound = largest * max(step.get(k, 0) for k in quantization.split("_"))
        assert (rounded - exact).abs().max().item() <= bound * 1.01, ours
    changed = sum(not torch.equal(full[n].load(), small[n].load()) for n in full)
    assert changed > 10


@pytest.mark.parametrize("quantization", ["int8", "int16", "float16"])
@pytest.mark.parametrize("name", ["t5", "bart", "mbart", "m2m_100"])
def test_quantised_models_score_as_in_ctranslate2(
    name: str, quantization: str, tmp_path: Path
) -> None:
    convert(name, tmp_path / "ct2", quantization)
    translator = ctranslate2.Translator(str(tmp_path / "ct2"), compute_type="float32")
    source, target = [11, 42, 7, 63, 2], [17, 55, 8, 90, 31]
    scored = translator.score_batch([[TOKENS[n] for n in source]], [[TOKENS[n] for n in target]])
    network = network_of(tmp_path / "ct2")
    start = network.spec.tokens.decoder_start
    # mBART-25 has no start token of its own: the caller's first token, a language, is one.
    assert (start is None) == (name == "mbart")
    fed = target if start is None else [start, *target]
    logits = logits_of(network, torch.tensor([source]), torch.tensor([fed])).log_softmax(-1)
    expected = [*fed[1:], network.spec.tokens.eos[0]]
    found = logits[torch.arange(len(expected)), torch.tensor(expected)]
    assert torch.allclose(found, torch.tensor(scored[0].log_probs), atol=1e-4)


def marian(directory: Path) -> Any:
    """Marian's padding token is last, its embedding is zero, and decoding starts from it."""
    import transformers

    torch.manual_seed(3)
    arguments = {**TINY["marian"].arguments, "pad_token_id": VOCAB - 1, "eos_token_id": 0}
    config = transformers.MarianConfig(**{**arguments, "decoder_start_token_id": VOCAB - 1})
    model = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.model.shared.weight[-1] = 0
        model.final_logits_bias.normal_()
    model.save_pretrained(directory.with_name("hf"))
    Converter.tokens = ["</s>", "<s>", "<unk>", *[f"t{n}" for n in range(VOCAB - 4)], "<pad>"]
    Converter(str(directory.with_name("hf"))).convert(str(directory))
    return model


def test_marian_starts_from_a_token_with_a_zero_embedding(tmp_path: Path) -> None:
    model = marian(tmp_path / "ct2")
    checkpoint = format_.read(tmp_path / "ct2", "x")
    assert checkpoint.spec.tokens.decoder_start == VOCAB - 1
    assert checkpoint.spec.tokens.eos == (0,)
    assert checkpoint.generation["suppress_tokens"] == [VOCAB - 1]
    inputs = torch.tensor([[11, 42, 7, 63, 0]])
    targets = torch.tensor([[VOCAB - 1, 55, 8, 90, 31]])
    with torch.no_grad():
        expected = model(input_ids=inputs, decoder_input_ids=targets).logits[0, :, :-1]
    found = logits_of(build(checkpoint), inputs, targets)[:, :-1]
    assert (found - expected).abs().max() < 1e-4


def test_positions_that_ctranslate2_computes_itself(tmp_path: Path) -> None:
    from ctranslate2.specs import transformer_spec

    spec = transformer_spec.TransformerSpec.from_config(2, 4, pre_norm=True)
    _fill(spec, np.random.default_rng(5))
    tokens = ["<unk>", "<s>", "</s>", *[f"t{n}" for n in range(VOCAB - 3)]]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.validate()
    spec.optimize()
    (tmp_path / "ct2").mkdir()
    spec.save(str(tmp_path / "ct2"))
    network = network_of(tmp_path / "ct2")
    translator = ctranslate2.Translator(str(tmp_path / "ct2"))
    source, target = [11, 42, 7, 63, 2], [17, 55, 8, 90, 31]
    scored = translator.score_batch([[tokens[n] for n in source]], [[tokens[n] for n in target]])
    logits = logits_of(network, torch.tensor([source]), torch.tensor([[1, *target]])).log_softmax(
        -1
    )
    found = logits[torch.arange(6), torch.tensor([*target, 2])]
    assert torch.allclose(found, torch.tensor(scored[0].log_probs), atol=1e-4)


def _fill(spec: Any, random: np.random.Generator, width: int = 32, inner: int = 48) -> None:
    """Random weights of the right shape for every variable of a spec that needs one."""
    shapes = {
        "embeddings_0/weight": (VOCAB, width),
        "embeddings/weight": (VOCAB, width),
        "projection/weight": (VOCAB, width),
        "ffn/linear_0/weight": (inner, width),
        "ffn/linear_1/weight": (width, inner),
        "self_attention/linear_0/weight": (3 * width, width),
        "self_attention/linear_1/weight": (width, width),
        "attention/linear_0/weight": (width, width),
        "attention/linear_1/weight": (2 * width, width),
        "attention/linear_2/weight": (width, width),
        "gamma": (width,),
        "beta": (width,),
    }

    def fill(owner: Any, name: str, value: Any) -> None:
        if value is None:
            ending = max((e for e in shapes if name.endswith(e)), key=len)
            weights = random.standard_normal(shapes[ending]) * width**-0.5
            setattr(owner, name.rpartition("/")[2], weights.astype(np.float32))

    spec._visit(fill)


def test_whisper_settings(tmp_path: Path) -> None:
    convert("whisper", tmp_path / "ct2")
    config = json.loads((tmp_path / "ct2" / "config.json").read_text())
    config |= {"suppress_ids": [-1, 4, 9], "suppress_ids_begin": [5], "alignment_heads": [[1, 3]]}
    (tmp_path / "ct2" / "config.json").write_text(json.dumps(config))
    checkpoint = format_.read(tmp_path / "ct2", "x")
    spec = checkpoint.spec
    assert checkpoint.generation == {"suppress_tokens": [4, 9], "begin_suppress_tokens": [5]}
    assert spec.alignment_heads == ((1, 3),)
    assert (spec.tokens.eos, spec.tokens.decoder_start) == ((60,), 61)
    assert spec.encoder is not None
    assert spec.encoder.audio is not None
    assert (spec.encoder.audio.mel_bins, spec.encoder.audio.frames) == (8, 60)
    assert not spec.decoder.self_attention.k_bias


@pytest.mark.slow
def test_the_packaged_whisper_encodes_as_in_ctranslate2() -> None:
    path = resolve("whisper-tiny.en", offline=True)
    generator = torch.Generator().manual_seed(5)
    mel_NMF = torch.randn(1, 80, 3000, generator=generator)
    theirs = ctranslate2.models.Whisper(str(path), compute_type="float32")
    view = ctranslate2.StorageView.from_array(mel_NMF.numpy())
    expected = torch.from_numpy(np.array(theirs.encode(view, to_cpu=True)))
    checkpoint = format_.read(path, "whisper-tiny.en")
    assert checkpoint.tokenizer is not None
    assert (
        checkpoint.tokenizer.id_of("<|startoftranscript|>") == checkpoint.spec.tokens.decoder_start
    )
    assert (build(checkpoint).encode_mel(mel_NMF) - expected).abs().max() < 1e-3


def test_a_key_bias_that_is_not_zero_is_kept(tmp_path: Path) -> None:
    convert("bart", tmp_path / "ct2")
    spec = format_.read(tmp_path / "ct2", "x").spec
    assert spec.decoder.cross_attention is not None
    assert spec.decoder.self_attention.k_bias
    assert spec.decoder.cross_attention.k_bias


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alignment_heads", [[0, 4]]),
        ("alignment_heads", [7]),
        ("alignment_heads", "heads"),
        ("suppress_ids", [VOCAB]),
        ("suppress_ids", ["a"]),
        ("suppress_ids_begin", 5),
        ("layer_norm_epsilon", "small"),
        ("layer_norm_epsilon", -1),
    ],
)
def test_a_config_out_of_bounds_is_named(key: str, value: Any, tmp_path: Path) -> None:
    convert("whisper", tmp_path / "ct2")
    config = json.loads((tmp_path / "ct2" / "config.json").read_text())
    (tmp_path / "ct2" / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CorruptCheckpointError, match=rf"config\.json.*{key}"):
        format_.read(tmp_path / "ct2", "x")


def rewritten(source: Path, target: Path, version: int) -> None:
    """The model of ``source`` as CTranslate2 wrote it when ``version`` was current (2 to 5)."""
    file, config = ModelFile(source / "model.bin"), json.loads((source / "config.json").read_text())
    whole = (source / "model.bin").read_bytes()

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    def variable(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> bytes:
        width = np.dtype(dtype).itemsize
        kind = (TYPES.index(dtype), len(data)) if version >= 4 else (width, len(data) // width)
        rank = len(shape)
        return text(name) + struct.pack(f"<B{rank}IBI", rank, *shape, *kind) + data

    settings = [
        variable(name, "int8", (len(config[name]),), config[name].encode())
        for name in ("bos_token", "eos_token", "unk_token")
    ]
    settings.append(variable("with_target_bos", "int8", (), b"\0"))
    own = {name: v for name, v in file.variables.items() if name == v.name or version < 3}
    variables = [
        variable(name, v.dtype, v.shape, whole[v.offset : v.offset + v.size_bytes])
        for name, v in own.items()
    ]
    aliases = [text(n) + text(v.name) for n, v in file.variables.items() if n not in own]
    header = struct.pack("<I", version) + text(file.spec_name) + struct.pack("<I", file.revision)
    content = [header, struct.pack("<I", len(variables + settings)), *variables, *settings]
    if version >= 3:
        content += [struct.pack("<I", len(aliases)), *aliases]
    target.mkdir()
    (target / "model.bin").write_bytes(b"".join(content))
    shutil.copy(source / "shared_vocabulary.json", target)


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_files_of_earlier_versions(version: int, tmp_path: Path) -> None:
    convert("bart", tmp_path / "new")
    rewritten(tmp_path / "new", tmp_path / "old", version)
    new, old = (format_.read(tmp_path / name, "x") for name in ("new", "old"))
    # Then, the start token was one of two, by a flag that is off here.
    assert old.spec.tokens == new.spec.tokens
    assert old.spec.tokens.decoder_start == TOKENS.index("</s>")
    # Version 2 has no aliases: what is tied is written twice.
    assert set(old.weights) - set(new.weights) == (
        {"decoder.head.weight"} if version == 2 else set()
    )
    for ours, weight in new.weights.items():
        assert torch.equal(old.weights[ours].load(), weight.load())


def test_options_that_are_not_run_are_refused(tmp_path: Path) -> None:
    from ctranslate2.specs import transformer_spec

    spec = transformer_spec.TransformerSpec.from_config(1, 4, with_relative_position=True)

    def fill_relative(owner: Any, name: str, value: Any) -> None:
        if value is None and "relative_position" in name:
            setattr(owner, name.rpartition("/")[2], np.zeros((5, 8), dtype=np.float32))

    spec._visit(fill_relative)
    _fill(spec, np.random.default_rng(5))
    tokens = ["<unk>", "<s>", "</s>", *[f"t{n}" for n in range(VOCAB - 3)]]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.validate()
    spec.optimize()
    (tmp_path / "ct2").mkdir()
    spec.save(str(tmp_path / "ct2"))
    with pytest.raises(UnsupportedModelError, match="relative_position_keys"):
        format_.read(tmp_path / "ct2", "x")
