"""Checkpoints in, checkpoints out, and what is said of broken ones."""

import json
import re

import pytest
import tiny
import torch
from pairs import memory_of
from safetensors.torch import load_file, save_file

from xattn.counts import parameters
from xattn.errors import (
    CheckpointError,
    CorruptCheckpointError,
    TensorError,
    UnsafeCheckpointError,
    UnsupportedModelError,
)
from xattn.models.build import build
from xattn.models.families import family_of
from xattn.models.formats import huggingface, read_checkpoint


@pytest.mark.parametrize("name", tiny.TINY)
def test_weights_go_back_under_their_own_names(pairs, name):
    pair = pairs(name)
    table = family_of(json.loads((pair.directory / "config.json").read_text())).table
    exported = table.to_hf(dict(pair.ours.named_parameters(remove_duplicate=False)))
    theirs = load_file(pair.directory / "model.safetensors")
    for key, tensor in theirs.items():
        if key.endswith("embed_positions.weight") and key not in exported:
            continue  # a sinusoidal table, computed here
        torch.testing.assert_close(exported[key].reshape(tensor.shape), tensor, atol=0, rtol=0)


@pytest.mark.parametrize("name", tiny.TINY)
def test_every_tensor_is_read_and_parameters_are_counted(pairs, name):
    pair = pairs(name)
    assert huggingface.read(pair.directory, name).unused == ()
    distinct = {id(p): p.numel() for p in pair.ours.parameters()}
    assert parameters(pair.ours.spec) == sum(distinct.values())


def test_shards_load_like_one_file(pairs, tmp_path):
    pair = pairs("t5")
    pair.theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    sharded = build(huggingface.read(tmp_path, "sharded"))
    for name, parameter in pair.ours.named_parameters():
        torch.testing.assert_close(
            dict(sharded.named_parameters())[name], parameter, atol=0, rtol=0
        )


@pytest.fixture
def broken(tmp_path):
    tiny.make("bart", tmp_path)
    return tmp_path


def rewrite(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_missing_tensor_is_named(broken):
    rewrite(broken, lambda t: t.pop("model.decoder.layers.1.fc1.weight"))
    with pytest.raises(
        TensorError, match=r"decoder\.layers\.1\.fc1\.weight' is missing .*\[56, 32\]"
    ):
        build(huggingface.read(broken, "broken"))


def test_misshaped_tensor_names_both_shapes(broken):
    rewrite(broken, lambda t: t.update({"model.decoder.layers.1.fc1.weight": torch.zeros(7, 32)}))
    with pytest.raises(TensorError, match=r"fc1\.weight' .*expected \[56, 32\], found \[7, 32\]"):
        build(huggingface.read(broken, "broken"))


@pytest.mark.parametrize("keep", [0, 4, 100, 3000, -1])
def test_truncated_safetensors(broken, keep):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptCheckpointError, match="not a complete safetensors file"):
        build(huggingface.read(broken, "broken"))


@pytest.mark.parametrize("name", ["bart", "t5-v1.1-untied-wide-heads", "whisper", "llama"])
def test_pickle_only_is_refused_with_a_way_out_that_works(name, tmp_path, monkeypatch):
    theirs = tiny.make(name, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError, match=r"pytorch_model\.bin: is a pickle") as caught:
        huggingface.read(tmp_path, name)
    *code, tokenizer = str(caught.value).partition("with transformers: ")[2].split("; ")
    monkeypatch.chdir(tmp_path)
    exec("; ".join(code))
    assert re.fullmatch(r"transformers\.Auto(Tokenizer|Processor)\.from_pretrained.*", tokenizer)
    ours = build(huggingface.read(tmp_path / "NEW_DIRECTORY", name))
    theirs.save_pretrained(tmp_path / "SAME")
    want = build(huggingface.read(tmp_path / "SAME", name))
    for key, value in want.named_parameters():
        torch.testing.assert_close(ours.get_parameter(key), value, atol=0, rtol=0)


def test_a_shard_whose_name_no_file_can_have_is_missing(tmp_path):
    tiny.make("t5", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {"shared.weight": "x" * 300}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptCheckpointError, match="the file is missing"):
        huggingface.read(tmp_path, "t5")


def test_missing_shard_is_named(pairs, tmp_path):
    pairs("t5").theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CorruptCheckpointError, match=shard.name):
        huggingface.read(tmp_path, "sharded")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "`model_type` must be one of"),
        ({"model_type": "barts"}, "Did you mean 'bart'"),
        ({"activation_function": "swoosh"}, "activation must be one of"),
        ({"d_model": None}, "'d_model' is missing"),
    ],
)
def test_configs_that_cannot_be_run(broken, change, message):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        build(huggingface.read(broken, "broken"))


def test_broken_json_says_where(broken):
    (broken / "config.json").write_text('{"model_type": ')
    with pytest.raises(CorruptCheckpointError, match=r"config\.json: not readable as JSON"):
        huggingface.read(broken, "broken")


def test_a_tensor_that_nothing_reads_is_named(broken):
    rewrite(broken, lambda t: t.update({"model.decoder.layers.7.fc1.weight": torch.zeros(56, 32)}))
    with pytest.raises(TensorError, match=r"layers\.7\.fc1\.weight' is in the file and nothing"):
        build(huggingface.read(broken, "broken"))


def test_fewer_layers_than_the_file_has_is_no_shorter_model(tmp_path):
    tiny.make("llama", tmp_path)
    change_config(tmp_path, {"num_hidden_layers": 1})
    with pytest.raises(TensorError, match=r"layers\.1\..* nothing reads it"):
        build(huggingface.read(tmp_path, "cut"))


def test_an_untied_head_that_is_missing_is_named(tmp_path):
    tiny.make("t5", tmp_path)
    change_config(tmp_path, {"tie_word_embeddings": False})
    with pytest.raises(TensorError, match=r"'lm_head\.weight' is missing .*\[99, 32\]"):
        build(huggingface.read(tmp_path, "headless"))


def assert_loads_as_in_transformers(name, directory):
    import transformers

    theirs = getattr(transformers, tiny.TINY[name].model).from_pretrained(directory).eval()
    ours = build(huggingface.read(directory, name))
    values, named = tiny.hf_memory_inputs(name, 1, 9)
    tokens = torch.tensor([[2, 5, 9, 11]])
    with torch.no_grad():
        want = theirs(**named(values), decoder_input_ids=tokens).logits
    states = ours.encode_tokens(values.tolist()) if name != "whisper" else ours.encode_mel(values)
    got = ours.score(tokens, ours.start([[memory_of(states[0], "x")]]))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    return ours


@pytest.mark.parametrize("name", ["whisper", "t5", "bart"])
def test_a_head_of_its_own_is_used_as_transformers_uses_it(name, tmp_path):
    tiny.make(name, tmp_path)
    head = {"whisper": "proj_out.weight"}.get(name, "lm_head.weight")
    generator = torch.Generator().manual_seed(3)
    own = torch.randn(tiny.VOCAB, 32, generator=generator)
    rewrite(tmp_path, lambda tensors: tensors.update({head: own}))
    assert_loads_as_in_transformers(name, tmp_path)


@pytest.mark.parametrize("name", ["bart", "mbart", "marian", "m2m_100", "whisper"])
def test_an_untied_model_reads_three_tables(name, tmp_path):
    theirs = tiny.make(name, tmp_path, tie_word_embeddings=False)
    ours = assert_loads_as_in_transformers(name, tmp_path)
    assert parameters(ours.spec) == sum(p.numel() for p in ours.parameters())
    if name != "whisper":
        assert ours.encoder.embed.weight is not ours.decoder.embed.weight
        assert not torch.equal(ours.encoder.embed.weight, theirs.model.shared.weight)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_table_that_the_file_repeats_is_held_once(name, tmp_path):
    tiny.make(name, tmp_path)
    prefix = "model." if name == "bart" else ""

    def repeat(tensors):
        for stack in ("encoder", "decoder"):
            copy = tensors[f"{prefix}shared.weight"].clone()
            tensors[f"{prefix}{stack}.embed_tokens.weight"] = copy

    rewrite(tmp_path, repeat)
    ours = assert_loads_as_in_transformers(name, tmp_path)
    assert ours.encoder.embed.weight is ours.decoder.embed.weight
    assert parameters(ours.spec) == sum(p.numel() for p in ours.parameters())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype, tmp_path):
    tiny.make("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(tmp_path, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(UnsupportedModelError, match=r"up_proj\.weight' holds .*8"):
        build(huggingface.read(tmp_path, "quantised"))
    change_config(tmp_path, {"quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(UnsupportedModelError, match=r"quantised \(fp8\)"):
        huggingface.read(tmp_path, "quantised")


@pytest.mark.parametrize("pad", [0, 3])
def test_positions_of_m2m100_begin_after_the_padding_token(pad, tmp_path):
    theirs = tiny.make("m2m_100", tmp_path)
    change_config(tmp_path, {"pad_token_id": pad})
    theirs = type(theirs).from_pretrained(tmp_path).eval()
    ours = build(huggingface.read(tmp_path, "m2m_100"))
    source, tokens = torch.tensor([[5, 6, 7]]), torch.tensor([[2, 8, 9]])
    with torch.no_grad():
        want = theirs(input_ids=source, decoder_input_ids=tokens).logits
    memory = memory_of(ours.encode_tokens(source.tolist())[0], "x")
    torch.testing.assert_close(ours.score(tokens, ours.start([[memory]])), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("t5", {"d_ff": -1}),
        ("t5", {"d_ff": "x"}),
        ("t5", {"d_model": 0}),
        ("t5", {"layer_norm_epsilon": "x"}),
        ("t5", {"num_decoder_layers": 10**12}),
        ("bart", {"d_model": "abc"}),
        ("bart", {"decoder_attention_heads": 0}),
        ("bart", {"eos_token_id": "x"}),
        ("bart", {"encoder_layers": 0}),
        ("bart", {"encoder_layers": -1}),
        ("bart", {"tie_word_embeddings": "false"}),
        ("llama", {"rms_norm_eps": "a"}),
        ("llama", {"num_hidden_layers": 10**6}),
        ("llama", {"rope_parameters": [1]}),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}),
        ("whisper", {"num_mel_bins": None}),
        ("whisper", {"alignment_heads": 5}),
        ("whisper", {"alignment_heads": [[0, 99]]}),
    ],
    ids=str,
)
def test_config_values_that_cannot_be_are_named_with_their_place(name, change, tmp_path):
    tiny.make(name, tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    change_config(tmp_path, change)
    with pytest.raises(CheckpointError) as caught:
        build(huggingface.read(tmp_path, name))
    (key,) = change
    assert str(tmp_path) in str(caught.value)
    assert key in str(caught.value) or key == "rope_parameters"


def change_config(directory, change):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | change))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    tiny.make("bart", tmp_path)
    name = "model.encoder.layers.0.self_attn.q_proj.weight"
    rewrite(tmp_path, lambda tensors: tensors[name][3].fill_(value))
    with pytest.raises(
        CorruptCheckpointError, match=r"q_proj\.weight' holds numbers that are none"
    ):
        build(huggingface.read(tmp_path, "bart"))


@pytest.mark.parametrize("value", [[], {}, 5, "swirl"])
def test_an_activation_that_is_none_is_named(value, tmp_path):
    tiny.make("bart", tmp_path)
    change_config(tmp_path, {"activation_function": value})
    with pytest.raises(UnsupportedModelError, match="activation must be one of"):
        build(huggingface.read(tmp_path, "bart"))


@pytest.mark.parametrize("text", ["1" * 5000, "[" * 100000], ids=["digits", "nesting"])
def test_json_that_python_gives_up_on_is_named(text, tmp_path):
    tiny.make("bart", tmp_path)
    (tmp_path / "generation_config.json").write_text(f'{{"a": {text}}}')
    with pytest.raises(CorruptCheckpointError, match=r"generation_config\.json: not readable"):
        huggingface.read(tmp_path, "bart")


def test_a_file_of_a_directory_names_the_directory(tmp_path):
    tiny.make("bart", tmp_path)
    with pytest.raises(UnsupportedModelError, match=f"give its directory, {tmp_path}"):
        read_checkpoint(tmp_path / "model.safetensors", "bart")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_a_shard_outside_the_directory_is_never_opened(name, tmp_path):
    tiny.make("t5", tmp_path / "in")
    (tmp_path / "in" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"shared.weight": name}}
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptCheckpointError, match="is not in the directory itself"):
        huggingface.read(tmp_path / "in", "t5")


def test_a_t5_config_from_before_transformers_5(tmp_path):
    """Flan-T5 and v1.1 as published: tie_word_embeddings is false and says what is scaled, too."""
    tiny.make("t5-v1.1-untied-wide-heads", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["scale_decoder_outputs"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    own = torch.randn(tiny.VOCAB, 32, generator=torch.Generator().manual_seed(3))
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": own}))
    assert_loads_as_in_transformers("t5-v1.1-untied-wide-heads", tmp_path)


def test_a_whisper_config_that_scales_embeddings_scales_nothing(tmp_path):
    tiny.make("whisper", tmp_path, scale_embedding=True)
    assert_loads_as_in_transformers("whisper", tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_a_variant_that_is_not_run_is_refused(name, change, message, tmp_path):
    tiny.make(name, tmp_path)
    change_config(tmp_path, change)
    with pytest.raises(UnsupportedModelError, match=message):
        huggingface.read(tmp_path, name)


def test_heads_of_a_qwen3_that_does_not_say_are_128_wide(tmp_path):
    tiny.make("qwen3", tmp_path, head_dim=128)
    change_config(tmp_path, {"head_dim": None})
    assert build(huggingface.read(tmp_path, "qwen3")).spec.decoder.self_attention.head_width == 128


def test_the_generation_config_goes_before_the_config(tmp_path):
    tiny.make("bart", tmp_path)
    change_config(tmp_path, {"eos_token_id": 5, "decoder_start_token_id": 6, "bos_token_id": 7})
    generation = {"eos_token_id": [8, 9], "decoder_start_token_id": 10}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    tokens = huggingface.read(tmp_path, "bart").spec.tokens
    assert (tokens.eos, tokens.decoder_start, tokens.bos) == ((8, 9), 10, 7)
    (tmp_path / "generation_config.json").unlink()
    tokens = huggingface.read(tmp_path, "bart").spec.tokens
    assert (tokens.eos, tokens.decoder_start) == ((5,), 6)
