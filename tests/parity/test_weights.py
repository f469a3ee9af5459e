"""Checkpoints in, checkpoints out, and what is said of broken ones."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from xattn.errors import CheckpointError, CorruptCheckpointError, TensorError, UnsafeCheckpointError
from xattn.models.build import build
from xattn.models.families import family_of
from xattn.models.formats import huggingface


@pytest.mark.parametrize("name", tiny.TINY)
def test_weights_go_back_under_their_own_names(pairs, name):
    pair = pairs(name)
    table = family_of(json.loads((pair.directory / "config.json").read_text())).table
    exported = table.to_hf(dict(pair.ours.named_parameters()))
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
    assert pair.ours.spec.parameters == sum(distinct.values())


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


def test_pickle_only_is_refused_with_the_way_out(broken):
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError, match=r"pytorch_model\.bin.*save_pretrained"):
        huggingface.read(broken, "broken")


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
