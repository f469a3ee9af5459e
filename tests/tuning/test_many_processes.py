"""Several processes learn what one learns: each its share of the batches, and one loss."""

import json
import os
import subprocess
import sys

import pytest
from runs import scratch_recipe, write_examples

from xattn.tuning import journal
from xattn.tuning.sweep import sweep
from xattn.tuning.train import train

pytestmark = pytest.mark.slow

RUN = """
import json, sys
from xattn.tuning.recipe import checked
from xattn.tuning.train import train
train(checked(json.loads(open(sys.argv[1]).read())))
"""


@pytest.fixture
def data(tmp_path):
    write_examples(tmp_path / "train.jsonl", 60, 1)
    write_examples(tmp_path / "valid.jsonl", 20, 2)
    return tmp_path


def launched(recipe, directory):
    """On two processes of this machine's CPU, started as accelerate itself starts them."""
    (directory / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json")))
    (directory / "run.py").write_text(RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [
            *command,
            "--nproc_per_node",
            "2",
            str(directory / "run.py"),
            str(directory / "recipe.json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def losses(directory):
    return [(row.loss, row.validation_loss) for row in journal.read(directory / "log.csv")]


def test_two_processes_learn_what_one_does(data):
    settings = {"steps": 8, "evaluate_every": 4, "save_every": 4, "schedule": "constant"}
    train(scratch_recipe(data / "one", data, accumulate=2, **settings))
    launched(scratch_recipe(data / "two", data, **settings), data)
    for one, two in zip(losses(data / "one"), losses(data / "two"), strict=True):
        assert two[0] == pytest.approx(one[0], abs=1e-4)
        assert two[1] == one[1] or two[1] == pytest.approx(one[1], abs=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_two_processes_go_on_together(data, dropout):
    settings = {"save_every": 4, "schedule": "constant", "dropout": dropout}
    launched(scratch_recipe(data / "whole", data, steps=8, **settings), data)
    launched(scratch_recipe(data / "parts", data, steps=4, **settings), data)
    launched(scratch_recipe(data / "parts", data, steps=8, **settings), data)
    for whole, parts in zip(losses(data / "whole"), losses(data / "parts"), strict=True):
        assert parts[0] == pytest.approx(whole[0], abs=1e-6)


def test_trials_run_side_by_side_on_ray(data):
    pytest.importorskip("ray")
    from xattn.tuning.cluster import on_ray

    recipe = scratch_recipe(data / "ray", data, steps=4)
    here = sweep(scratch_recipe(data / "here", data, steps=4), ["single", "all"])
    there = sweep(recipe, ["single", "all"], run_all=on_ray(1))
    for one, other in zip(here.trials, there.trials, strict=True):
        assert one.placement == other.placement
        assert other.loss == pytest.approx(one.loss, abs=1e-5)
