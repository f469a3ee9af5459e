"""Training: what is learnt, by whom, and on after a crash as if there had been none."""

import json
import math
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from runs import RUN, graft_recipe, in_a_process, scratch_recipe, write_examples

import xattn
from xattn.errors import SaveError, UsageError
from xattn.tuning import journal
from xattn.tuning.batches import IGNORED, Batch, batches, memories_of, prepare
from xattn.tuning.examples import read_examples
from xattn.tuning.recipe import checked, read_recipe
from xattn.tuning.state import checkpoints
from xattn.tuning.teacher import Teacher, rate_at
from xattn.tuning.train import train
from xattn.tuning.vocabulary import make_tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    write_examples(directory / "train.jsonl", 80, 1)
    write_examples(directory / "valid.jsonl", 20, 2)
    return directory


@pytest.fixture(scope="module")
def lm(tmp_path_factory, data):
    """A language model with a tokenizer of the data's words."""
    directory = tmp_path_factory.mktemp("lm")
    tiny.make("llama", directory, num_hidden_layers=4)
    texts = (data / "train.jsonl").read_text().splitlines()
    make_tokenizer((json.loads(line)["source"] for line in texts), 90, directory)
    return directory


def rows(directory):
    return [
        (row.step, row.loss, row.learning_rate, row.validation_loss)
        for row in journal.read(directory / "log.csv")
    ]


def test_it_learns(data, tmp_path):
    outcome = train(scratch_recipe(tmp_path, data, steps=60, evaluate_every=20))
    found = rows(tmp_path)
    assert [row[0] for row in found] == list(range(1, 61))
    assert found[-1][1] < 0.8 * found[0][1]
    validated = {row[0]: row[3] for row in found if row[3] is not None}
    assert outcome.best_step == min(validated, key=validated.__getitem__)
    assert outcome.best_loss == validated[outcome.best_step]
    model = xattn.load(outcome.directory)
    answer = model.generate("one two three", max_new_tokens=12)
    assert answer.tokens
    # The loss that was told is that of the model that was kept.
    examples = read_examples(str(data / "valid.jsonl"), tmp_path)
    items = prepare(model, examples, most_source=512, most_target=256).items
    teacher, lost, learnt = Teacher(model.network), 0.0, 0
    with torch.no_grad():
        for some in batches(items, 128, 0):
            batch = Batch(items=some)
            memories = memories_of(model, batch, frozen=True)
            lost += float(teacher(memories, batch.tokens_RT, batch.targets_RT))
            learnt += batch.learnt
    assert lost / learnt == pytest.approx(outcome.best_loss, abs=1e-5)
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_the_loss_is_transformers_own(tmp_path):
    """Teacher-forced cross-entropy, and its gradients."""
    theirs = tiny.make("bart", tmp_path)
    model = xattn.load(tmp_path)
    for weight in model.network.parameters():
        weight.requires_grad_(True)
    source, target = [5, 9, 12, 7], [8, 30, 41, 2]
    labels = torch.tensor([target])
    wanted = theirs(input_ids=torch.tensor([source]), labels=labels).loss
    memory = model.prepare(source).memory(model.network.states_of_tokens([source])[0])
    fed = torch.tensor([[2, *target[:-1]]])
    found = Teacher(model.network)([[memory]], fed, labels) / 4
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    wanted.backward()
    found.backward()
    ours = model.network.get_parameter("encoder.layers.0.ffn.up.weight").grad
    torch.testing.assert_close(
        ours, theirs.model.encoder.layers[0].fc1.weight.grad, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("times", [{}, {"accumulate": 2, "dropout": 0.2}])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(times, data, tmp_path):
    settings = {"steps": 14, "save_every": 3, "evaluate_every": 1, **times}
    whole = train(scratch_recipe(tmp_path / "whole", data, **settings))
    recipe = scratch_recipe(tmp_path / "killed", data, **settings)
    with in_a_process(recipe) as process:
        for line in process.stdout:
            if line.startswith("step 8"):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert 3 <= int(checkpoints(tmp_path / "killed")[-1].name[-2:]) < 14
    again = train(recipe)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    for name in ("steps", "best_loss", "best_step"):
        assert getattr(again, name) == getattr(whole, name)
    first, second = (
        xattn.load(tmp_path / name / "model").network.state_dict() for name in ("whole", "killed")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_killed_at_ten_random_steps(data, tmp_path):
    settings = {"steps": 40, "save_every": 2, "evaluate_every": 1, "dropout": 0.1}
    train(scratch_recipe(tmp_path / "whole", data, **settings))
    recipe, draw, kills = scratch_recipe(tmp_path / "killed", data, **settings), random.Random(4), 0
    while kills < 10:
        wait = draw.randint(1, 5)
        with in_a_process(recipe) as process:
            for seen, _ in enumerate(process.stdout):
                if seen == wait:
                    time.sleep(draw.random() * 0.1)
                    process.kill()
                    break
        kills += process.returncode == -signal.SIGKILL
        if checkpoints(tmp_path / "killed") and process.returncode == 0:
            break
    train(recipe)
    assert kills >= 8
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_a_frozen_encoder_encodes_once(data, lm, tmp_path):
    """From the second epoch on everything is in the store, and the loss is the same."""
    settings = {"epochs": 3, "evaluate_every": 100}
    kept = train(graft_recipe(tmp_path / "kept", data, lm, "itself", **settings))
    anew = train(graft_recipe(tmp_path / "anew", data, lm, "itself", remember=False, **settings))
    sources = {json.loads(line)["source"] for file in ("train", "valid")
               for line in (data / f"{file}.jsonl").read_text().splitlines()}  # fmt: skip
    assert kept.encoder_passes == len(sources)
    assert anew.encoder_passes == 3 * 80 + 20
    for one, other in zip(rows(tmp_path / "kept"), rows(tmp_path / "anew"), strict=True):
        assert one[1] == pytest.approx(other[1], abs=1e-5)
    # A second run finds them all.
    shutil.rmtree(tmp_path / "kept" / "checkpoints")
    assert (
        train(graft_recipe(tmp_path / "kept", data, lm, "itself", **settings)).encoder_passes == 0
    )


@pytest.mark.parametrize(
    ("method", "some"),
    [("new", ["cross_attn", "projectors"]), ("gates", ["cross_gate"]), ("full", ["ffn.up"])],
)
def test_only_what_is_chosen_learns(method, some, data, lm, tmp_path):
    outcome = train(graft_recipe(tmp_path / "run", data, lm, "itself", method=method, steps=3))
    before, after = xattn.load(lm).network, xattn.load(outcome.directory).network
    theirs = dict(before.named_parameters())
    for name, weight in after.named_parameters():
        changed = name in theirs and not torch.equal(weight, theirs[name])
        assert not changed or method == "full", name
    assert method != "full" or not torch.equal(
        after.get_parameter("decoder.layers.0.ffn.up.weight"),
        theirs["decoder.layers.0.ffn.up.weight"],
    )
    assert all(any(part in name for name, _ in after.named_parameters()) for part in some)
    assert after.get_parameter("decoder.layers.1.cross_gate").abs() > 0


def test_checkpointed_activations_change_no_number(data, tmp_path):
    for name, kept in (("kept", False), ("again", True)):
        recipe = scratch_recipe(tmp_path / name, data, steps=4, checkpoint_activations=kept)
        train(recipe)
    for one, other in zip(rows(tmp_path / "kept"), rows(tmp_path / "again"), strict=True):
        assert one[1] == pytest.approx(other[1], abs=1e-6)


def test_bfloat16_learns_too(data, tmp_path):
    train(scratch_recipe(tmp_path, data, steps=40, precision="bfloat16"))
    found = rows(tmp_path)
    assert found[-1][1] < 0.9 * found[0][1]


@pytest.mark.parametrize("kind", ["gated", "separate", "merged"])
@pytest.mark.parametrize("method", ["new", "full"])
def test_grafts_learn_in_bfloat16(data, lm, tmp_path, kind, method):
    recipe = graft_recipe(
        tmp_path, data, lm, "itself", precision="bfloat16", method=method, steps=3
    )
    part = recipe.model.model_copy(update={"kind": kind})
    outcome = train(recipe.model_copy(update={"model": part}))
    assert math.isfinite(outcome.loss)
    assert outcome.loss < rows(tmp_path)[0][1] + 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"path": "x", "kv_heads": 2}}, "must not have kv_heads beside path"),
        ({"training": {"steps": 2, "method": "lora"}}, "must have a model.path with method 'lora'"),
        ({"preference": {"loss": "ipo", "label_smoothing": 0.1}}, "no label_smoothing with ipo"),
    ],
)
def test_what_would_do_nothing_is_refused(data, tmp_path, change, said):
    given = scratch_recipe(tmp_path, data).model_dump(mode="json")
    with pytest.raises(UsageError, match=said):
        checked(given | change)


def test_what_is_misspelt_is_said_first(data, tmp_path):
    given = scratch_recipe(tmp_path, data).model_dump(mode="json")
    given["modle"] = given.pop("model")
    with pytest.raises(UsageError, match=r"there is no field 'modle'\. Did you mean 'model'\?"):
        checked(given)


def test_a_journal_that_begins_again_is_never_there_in_part(tmp_path, data, monkeypatch):
    train(scratch_recipe(tmp_path, data, steps=6))
    before = (tmp_path / journal.TABLE).read_text()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(SaveError), journal.Journal(tmp_path).written_from(4):
        pass
    assert (tmp_path / journal.TABLE).read_text() == before


def test_patience_ends_a_run(data, tmp_path):
    recipe = scratch_recipe(
        tmp_path, data, steps=100, patience=2, evaluate_every=2, learning_rate=0.5, clip=100.0
    )
    outcome = train(recipe)
    assert outcome.ended == "no better loss in 2 evaluations"
    assert outcome.steps < 100
    patient = recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"patience": 4})}
    )
    assert train(patient).steps > outcome.steps


def test_batches_are_of_a_size_and_of_all(data, tmp_path):
    model = xattn.load(train(scratch_recipe(tmp_path, data, steps=1)).directory)
    examples = read_examples(str(data / "train.jsonl"), tmp_path)
    items = prepare(model, examples, most_source=512, most_target=256).items
    for epoch in (None, 0, 1):
        found = list(batches(items, 200, 3, epoch))
        assert sorted(i.tokens for some in found for i in some) == sorted(i.tokens for i in items)
        for some in found:
            batch = Batch(items=some)
            longest = max(item.length for item in batch.items)
            assert len(batch.items) == 1 or longest * len(batch.items) <= 200
            assert int((batch.targets_RT != IGNORED).sum()) == batch.learnt
    first, again, other = (list(batches(items, 200, 3, epoch)) for epoch in (0, 0, 1))
    assert first == again != other


def test_prompts_are_read_and_not_learnt(lm, tmp_path):
    write_examples(tmp_path / "train.jsonl", 5, 3, prompt=True)
    model = xattn.graft(lm, encoder="itself", placement="every:2")
    examples = read_examples("train.jsonl", tmp_path)
    for item, example in zip(
        prepare(model, examples, most_source=99, most_target=99).items, examples, strict=True
    ):
        target = model.tokenizer.encode_plain(example.target).ids
        assert item.learnt == len(target) + 1
        assert list(item.tokens) == model.tokenizer.encode("Backwards:").ids + target


@pytest.mark.parametrize(
    ("schedule", "at"),
    [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5), ("inverse-sqrt", (10 / 61) ** 0.5)],
)
def test_schedules(schedule, at):
    training = checked(
        {
            "directory": "x",
            "model": {"path": "y"},
            "data": {"train": "z"},
            "training": {"steps": 110, "schedule": schedule, "warmup": 10},
        }
    ).training
    assert rate_at(training, 0, 110) == pytest.approx(0.1)
    assert rate_at(training, 9, 110) == pytest.approx(1.0)
    assert rate_at(training, 60, 110) == pytest.approx(at)


def test_a_full_disk_leaves_the_last_checkpoint(data, tmp_path):
    recipe = scratch_recipe(tmp_path / "run", data, steps=6, save_every=2, evaluate_every=100)
    train(recipe.model_copy(update={"training": recipe.training.model_copy(update={"steps": 2})}))
    before = checkpoints(tmp_path / "run")
    given = json.dumps(recipe.model_dump(mode="json"))
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", limit + RUN, given],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SaveError" in done.stderr
    assert "what was there before is as it was" in done.stderr
    assert checkpoints(tmp_path / "run") == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert train(recipe).steps == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training": {"steps": 1, "learning_rat": 1}}, "'training.learning_rat'.*'learning_rate'"),
        ({"modle": {}}, "no field 'modle'. Did you mean 'model'"),
        ({"model": {}}, "must have one of path, lm and scratch"),
        ({"model": {"lm": "x"}}, "must have an encoder with lm"),
        ({"model": {"lm": "x", "encoder": "y", "kind": "gate"}}, "model.kind.*'separate'"),
        ({"training": {}}, "must have one of epochs and steps"),
        ({"training": {"steps": 0}}, "`training.steps` must be greater than or equal to 1: 0"),
        ({"training": {"steps": 2, "learning_rate": 3}}, "learning_rate` must be less than 1: 3"),
        ({"data": {}}, "'data.train' is missing"),
        ({"trackers": ["mlflow"]}, "trackers"),
    ],
)
def test_recipes_that_are_none(change, said):
    recipe = {
        "directory": "x",
        "model": {"path": "y"},
        "data": {"train": "z"},
        "training": {"steps": 1},
    }
    with pytest.raises(UsageError, match=said):
        checked(recipe | change)


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(UsageError, match="is no TOML"):
        read_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is no JSON"),
        ("[1]", "line 2: must be a JSON object"),
        ('{"source": "a"}', "`target` must be a text, but is None"),
        ('{"source": "a", "target": ""}', "`target` must be a text"),
        ('{"target": "a"}', "one of `source` and `sources`"),
        ('{"source": "a", "target": "b", "label": 1}', "fields are .* but one is 'label'"),
        ('{"source": 3, "target": "b"}', "sources are texts"),
        ('{"source": "a", "target": "b", "prompt": 4}', "`prompt` must be a text"),
    ],
)
def test_lines_that_are_no_examples(line, said, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"source": "a", "target": "b"}\n' + line + "\n")
    with pytest.raises(UsageError, match=said):
        read_examples("train.jsonl", tmp_path)


def test_other_data_that_is_refused(data, lm, tmp_path):
    with pytest.raises(UsageError, match="cannot be read as lines"):
        read_examples("none.jsonl", tmp_path)
    (tmp_path / "a").write_text("one\ntwo\n")
    (tmp_path / "b").write_text("eins\n")
    with pytest.raises(UsageError, match="as many lines, but have 2 and 1"):
        read_examples(["a", "b"], tmp_path)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="no example in it"):
        read_examples("empty", tmp_path)
    model = xattn.graft(lm, encoder="itself", placement="every:2")
    examples = read_examples(str(data / "train.jsonl"), tmp_path)
    with pytest.raises(UsageError, match=r"longer than `most_source` \(1\) or"):
        prepare(model, examples, most_source=1, most_target=9)


def test_a_checkpoint_of_another_graft_is_refused(data, lm, tmp_path):
    """Of the state of a run, and of a graft's directory."""
    train(graft_recipe(tmp_path / "one", data, lm, "itself", steps=2))
    other = graft_recipe(tmp_path / "other", data, lm, "itself", steps=2)
    other = other.model_copy(update={"model": other.model.model_copy(update={"placement": "all"})})
    train(other)
    [place, *_] = checkpoints(tmp_path / "one")
    [theirs, *_] = checkpoints(tmp_path / "other")
    shutil.copyfile(theirs / "state.safetensors", place / "state.safetensors")
    shutil.copyfile(place / "state.safetensors", theirs / "state.safetensors")
    for file in ("model", "best"):
        weights = tmp_path / "one" / file / "graft.safetensors"
        weights.write_bytes((tmp_path / "other" / file / "graft.safetensors").read_bytes())
    with pytest.raises(xattn.TensorError, match="nothing reads it"):
        xattn.load(tmp_path / "one" / "model")
    tiny.make("llama", tmp_path / "short", num_hidden_layers=2)
    for file in (tmp_path / "one" / "best" / "lm").iterdir():
        if file.suffix == ".safetensors" or file.name == "config.json":
            shutil.copyfile(tmp_path / "short" / file.name, file)
    with pytest.raises(xattn.CorruptCheckpointError, match="the checkpoint of another graft"):
        xattn.load(tmp_path / "one" / "best")


def test_a_run_of_another_recipe_is_not_gone_on_with(data, tmp_path):
    train(scratch_recipe(tmp_path, data, steps=2))
    with pytest.raises(UsageError, match=r"another recipe, whose \[training\] differs"):
        train(scratch_recipe(tmp_path, data, steps=2, learning_rate=0.5))
    assert train(scratch_recipe(tmp_path, data, steps=3)).steps == 3


def test_a_run_whose_data_changed_is_not_gone_on_with(data, tmp_path):
    for file in ("train.jsonl", "valid.jsonl"):
        shutil.copyfile(data / file, tmp_path / file)
    train(scratch_recipe(tmp_path / "run", tmp_path, steps=2))
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"source": "one", "target": "two"}\n')
    with pytest.raises(UsageError, match="began with other training data"):
        train(scratch_recipe(tmp_path / "run", tmp_path, steps=4))


def test_a_tracker_that_is_not_there_is_named(data, tmp_path):
    recipe = scratch_recipe(tmp_path, data).model_copy(update={"trackers": ["trackio"]})
    with pytest.raises(UsageError, match="pip install trackio"):
        train(recipe)


def test_a_method_that_a_model_has_no_weights_for(data, tmp_path):
    with pytest.raises(UsageError, match="'new' trains what a graft added"):
        train(scratch_recipe(tmp_path, data, method="new"))
    with pytest.raises(UsageError, match="has no such weights"):
        train(scratch_recipe(tmp_path, data, method="gates"))


def test_a_directory_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="cannot be written"):
        train(scratch_recipe(tmp_path / "file", data))
