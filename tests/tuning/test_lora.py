"""Adapters: nothing at first, their own weights alone after, and exact on every path."""

import copy
import json

import pytest
import tiny
import torch
from pairs import random_tokens
from runs import scratch_recipe, write_examples

import xattn
from xattn.cli import main
from xattn.errors import CorruptCheckpointError, UsageError
from xattn.models.adapters import is_adapted
from xattn.store import MemoryStore
from xattn.tuning import lora
from xattn.tuning.recipe import checked
from xattn.tuning.train import train

SOURCE = list(range(5, 16))


@pytest.fixture
def model(tmp_path):
    tiny.make("t5", tmp_path)
    return xattn.load(tmp_path)


def opened(model, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if ".lora_" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))


def opened_one(model, adapter):
    """One adapter as if it was trained; others stay what they are."""
    generator = torch.Generator().manual_seed(len(adapter) + ord(adapter[0]))
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if ".lora_" in name and f".{adapter}." in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))


def logits(model, form="materialized"):
    state = model.network.start([[model.encode(SOURCE)]], form=form)
    return model.network.step(random_tokens(1, 5), state)


@pytest.mark.parametrize("preset", lora.PRESETS)
def test_it_changes_nothing_at_first(preset, model):
    before, key = logits(model), model.encode(SOURCE).key
    names = lora.add_adapter(model, preset=preset)
    assert names
    assert all(preset == "all" or f"{preset}_attn" in name for name in names)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    opened(model)
    assert (logits(model) - before).abs().max() > 1e-2
    assert model.encode(SOURCE).key == key
    lora.use_adapters(model)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    lora.remove(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("form", ["materialized", "absorbed"])
def test_merged_and_apart_are_one(form, model):
    lora.add_adapter(model, preset="all")
    opened(model)
    apart = logits(model, form)
    torch.testing.assert_close(apart, logits(model), atol=1e-4, rtol=1e-4)
    lora.merge(model)
    torch.testing.assert_close(logits(model, form), apart, atol=1e-4, rtol=1e-4)
    lora.unmerge(model)
    torch.testing.assert_close(logits(model, form), apart, atol=1e-4, rtol=1e-4)
    lora.remove(model, keep_merged=True)
    assert lora.adapters(model) == []
    torch.testing.assert_close(logits(model, form), apart, atol=1e-4, rtol=1e-4)


def test_what_it_computes_is_a_low_rank_sum(model):
    attention = next(model.network.decoder.stack).cross_attn
    x, weight = torch.randn(2, 3, 32), attention.q.weight
    lora.add_adapter(model, preset="cross", rank=4, alpha=12)
    opened(model)
    layer = attention.q
    added = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 12 / 4
    wanted = (x @ (weight + added).T).unflatten(-1, (4, -1))
    torch.testing.assert_close(attention.queries(x), wanted, atol=1e-5, rtol=1e-5)


def test_several_adapters_are_kept_and_used_by_name(model, tmp_path):
    found = {}
    for name, seed in (("one", 1), ("two", 2)):
        lora.add_adapter(model, preset="cross", name=name)
        lora.use_adapters(model, name)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for path, weight in model.network.named_parameters():
                if f".{name}." in path:
                    weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        found[name] = logits(model)
        lora.save_adapter(model, tmp_path / name, name)
    assert (found["one"] - found["two"]).abs().max() > 1e-2
    lora.remove(model)
    for name in ("two", "one"):
        lora.load_adapter(model, tmp_path / name, name)
    for name, wanted in found.items():
        lora.use_adapters(model, name)
        torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-5)


def two_adapters(model):
    """Two that differ, and neither of them in use."""
    for name, seed in (("one", 1), ("two", 2)):
        lora.add_adapter(model, preset="all", name=name)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for path, weight in model.network.named_parameters():
                if f".{name}." in path:
                    weight.add_(0.4 * torch.randn(weight.shape, generator=generator))
    lora.use_adapters(model)


SETTINGS = {"max_new_tokens": 8, "min_new_tokens": 8}


def alone(model, name, memory=SOURCE, **more):
    lora.use_adapters(model, *([] if name is None else [name]))
    found = model.generate(memory, **SETTINGS, **more).tokens
    lora.use_adapters(model)
    return found


@pytest.mark.parametrize("form", ["materialized", "absorbed"])
def test_each_request_has_its_own(form, model):
    two_adapters(model)
    names = ["one", None, "two", "one"]
    wanted = [alone(model, name, form=form) for name in names]
    assert len(set(wanted)) == 3
    memory = model.encode(SOURCE)
    found = model.generate_batch([memory] * 4, adapters=names, form=form, **SETTINGS)
    assert [one.tokens for one in found] == wanted
    assert model.generate(memory, adapter="two", form=form, **SETTINGS).tokens == wanted[2]
    beams = model.generate(memory, adapter="one", num_beams=3, form=form, **SETTINGS)
    assert beams.tokens == alone(model, "one", memory, num_beams=3, form=form)
    lora.use_adapters(model, "one")
    assert model.generate(memory, form=form, **SETTINGS).tokens == wanted[0]
    found = model.generate_batch([memory] * 2, adapters=[None, "two"], form=form, **SETTINGS)
    assert [one.tokens for one in found] == [wanted[0], wanted[2]]


def test_an_engine_decodes_several_adapters_at_once(model):
    two_adapters(model)
    names = ["one", None, "two", "one", "two", None]
    wanted = {name: alone(model, name) for name in set(names)}
    passes = model.counters.encoder_passes
    with xattn.Engine(model) as engine:
        tickets = [engine.submit(SOURCE, adapter=name, **SETTINGS) for name in names]
        found = [ticket.result().tokens for ticket in tickets]
    assert found == [wanted[name] for name in names]
    assert model.counters.encoder_passes == passes + 1
    with xattn.Engine(model) as engine, pytest.raises(UsageError, match="one of one, two"):
        engine.submit(SOURCE, adapter="three")
    lora.use_adapters(model, "one", "two")
    with xattn.Engine(model) as engine, pytest.raises(UsageError, match="one adapter at most"):
        engine.submit(SOURCE)


def test_adapters_of_requests_are_refused_where_they_cannot_be(model):
    with pytest.raises(UsageError, match="none, for there is none"):
        model.generate(SOURCE, adapter="one")
    two_adapters(model)
    lora.use_adapters(model, "one", "two")
    with pytest.raises(UsageError, match="given for each request"):
        model.generate_batch([SOURCE, SOURCE], adapters=["one", None])
    both = model.generate(SOURCE, **SETTINGS).tokens
    assert both != alone(model, "one")
    with pytest.raises(UsageError, match="`adapters` must be as long"):
        model.generate_batch([SOURCE], adapters=["one", None])


def test_only_the_adapter_is_trained_and_written(tmp_path, capsys):
    write_examples(tmp_path / "train.jsonl", 40, 1)
    write_examples(tmp_path / "valid.jsonl", 10, 2)
    base = train(scratch_recipe(tmp_path / "base", tmp_path, steps=10)).directory
    given = scratch_recipe(tmp_path / "run", tmp_path, steps=20).model_dump(mode="json")
    given["model"] = {"path": str(base)}
    given["training"] |= {"method": "lora", "lora": {"preset": "cross", "rank": 4}}
    given["evaluation"] = {"data": str(tmp_path / "valid.jsonl"), "metrics": ["chrf"]}
    outcome = train(checked(given))
    assert 0 <= outcome.scores["chrf"] <= 100
    assert {one.name for one in outcome.directory.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert json.loads((outcome.directory / "adapter_config.json").read_text())["r"] == 4
    model = xattn.load(base)
    before = {name: weight.clone() for name, weight in model.network.named_parameters()}
    lora.load_adapter(model, outcome.directory)
    opened(model)
    lora.save_adapter(model, tmp_path / "adapter")
    with_it = model.generate("one two three", num_beams=1).text
    assert with_it != xattn.load(base).generate("one two three", num_beams=1).text
    asked = ["translate", "one two three", "--model", str(base), "--no-cache", "--num-beams", "1"]
    assert main([*asked, "--adapter", str(tmp_path / "adapter")]) == 0
    assert capsys.readouterr().out.strip() == with_it.strip()
    assert main([*asked, "--adapter", str(tmp_path / "nowhere")]) != 0
    assert "holds no adapter that can be read" in capsys.readouterr().err
    assert outcome.trained == sum(
        weight.numel() for name, weight in model.network.named_parameters() if ".lora_" in name
    )
    lora.remove(model)
    assert all(torch.equal(w, before[name]) for name, w in model.network.named_parameters())


def test_what_does_not_fit_is_refused(model, tmp_path):
    import tiny

    with pytest.raises(UsageError, match="`preset` must be one of cross, self, all"):
        lora.add_adapter(model, preset="everything")
    with pytest.raises(UsageError, match="`rank` must be at least 1"):
        lora.add_adapter(model, rank=0)
    lora.add_adapter(model)
    with pytest.raises(UsageError, match="that of no adapter yet"):
        lora.add_adapter(model)
    with pytest.raises(UsageError, match="of adapters: default"):
        lora.use_adapters(model, "other")
    lora.save_adapter(model, tmp_path / "adapter")
    tiny.make("llama", tmp_path / "lm")
    lm = xattn.load(tmp_path / "lm")
    with pytest.raises(UsageError, match="has no such products"):
        lora.add_adapter(lm, preset="cross")
    with pytest.raises(CorruptCheckpointError, match="holds no adapter"):
        lora.load_adapter(model, tmp_path / "nowhere", "other")
    tiny.make("t5", tmp_path / "wide", d_model=48)
    wide = xattn.load(tmp_path / "wide")
    with pytest.raises(CorruptCheckpointError, match="is another model's adapter"):
        lora.load_adapter(wide, tmp_path / "adapter")
    assert lora.adapters(wide) == []
    lora.add_adapter(wide, name="own")
    with pytest.raises(CorruptCheckpointError, match="is another model's adapter"):
        lora.load_adapter(wide, tmp_path / "adapter")
    assert lora.adapters(wide) == ["own"]
    numbers = tmp_path / "adapter" / "adapter_model.safetensors"
    numbers.write_bytes(numbers.read_bytes()[:100])
    with pytest.raises(CorruptCheckpointError, match="holds no adapter that can be read"):
        lora.load_adapter(model, tmp_path / "adapter", "other")
    with pytest.raises(UsageError, match="not quantised"):
        lora.add_adapter(xattn.load(tmp_path / "wide", quantize="int8"))


def test_merging_is_of_the_adapters_named_alone(tmp_path):
    tiny.make("t5", tmp_path)
    model = xattn.load(tmp_path)
    lora.add_adapter(model, preset="cross", name="a")
    opened_one(model, "a")
    alone = copy.deepcopy(model)
    lora.add_adapter(model, preset="self", name="b")
    opened_one(model, "b")
    lora.use_adapters(model, "b")
    with pytest.raises(UsageError, match="`names` must be of adapters: a, b, but is 'typo'"):
        lora.merge(model, "typo")
    lora.merge(model, "a")
    lora.merge(alone, "a")
    for name, merged in ((n, m) for n, m in model.network.named_modules() if is_adapted(m)):
        other = dict(alone.network.named_modules())[name]
        want = other.base_layer.weight if is_adapted(other) else other.weight
        torch.testing.assert_close(merged.base_layer.weight, want)


def test_keys_are_of_the_adapters_that_encode(lms, tmp_path):
    model = xattn.graft(copy.deepcopy(lms("llama")), encoder="itself", placement="every:2")
    bare = model.encode([5, 6, 7]).key
    for name in ("a", "b"):
        lora.add_adapter(model, preset="self", name=name)
        opened_one(model, name)
    lora.add_adapter(model, preset="cross", name="reads")
    keys = {}
    with MemoryStore(tmp_path) as store:
        model.store = store
        for names in ((), ("a",), ("b",), ("a", "b"), ("reads",)):
            lora.use_adapters(model, *names)
            memory = model.encode([5, 6, 7])
            keys[names] = memory.key
            model.store = None
            torch.testing.assert_close(model.encode([5, 6, 7]).states_SD, memory.states_SD)
            model.store = store
        model.store = None
    assert len({*keys.values()}) == 4
    assert keys[()] == keys["reads",] != bare
    with pytest.raises(UsageError, match="`adapter` 'a' changes what encodes sources"):
        model.generate([5, 6, 7], [8], adapter="a", max_new_tokens=2)
    with (
        xattn.Engine(model) as engine,
        pytest.raises(UsageError, match="`adapter` 'a' changes what encodes sources"),
    ):
        engine.submit([5, 6, 7], [8], adapter="a")
    lora.use_adapters(model)
    assert model.generate(model.encode([5, 6, 7]), [8], adapter="a", max_new_tokens=2).tokens
    lora.use_adapters(model, "a")
    assert model.generate([5, 6, 7], [8], adapter="a", max_new_tokens=2).tokens
    assert model.generate([5, 6, 7], [8], adapter="reads", max_new_tokens=2).tokens
