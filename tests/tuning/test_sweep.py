"""Sweeps: the same budget for all, on where they were, and an advice that its numbers bear out."""

import csv
import json
from dataclasses import replace

import pytest
from runs import scratch_recipe, write_examples

import xattn
from xattn.errors import UsageError
from xattn.tuning.recipe import checked
from xattn.tuning.report import recommendation, report
from xattn.tuning.sweep import (
    Cost,
    Summary,
    Trial,
    cost_of,
    read_trials,
    search,
    summarised,
    sweep,
    trial_recipe,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    write_examples(directory / "train.jsonl", 40, 1)
    write_examples(directory / "valid.jsonl", 10, 2)
    return directory


def recipe(directory, data, **more):
    given = scratch_recipe(directory, data, steps=4, evaluate_every=100).model_dump(mode="json")
    given["model"]["scratch"]["decoder_layers"] = 3
    given["evaluation"] = {
        "data": str(data / "valid.jsonl"),
        "metrics": ["exact", "bleu", "chrf", "wer"],
        "most_tokens": 12,
    }
    return checked(given | more)


def test_each_placement_is_a_run_of_its_own_and_is_not_run_again(data, tmp_path):
    said = []
    found = sweep(
        recipe(tmp_path, data), ["every:1", "single", "0,2"], finalists=2, finalist_seeds=2,
        say=said.append,
    )  # fmt: skip
    assert len(found.trials) == 5
    assert sum(one.seeds == 2 for one in found.placements) == 2
    by_name = {one.placement: one for one in found.placements}
    assert by_name["0,2"].mask == (True, False, True)
    full = by_name["every:1"].cost
    assert by_name["single"].cost.bytes_per_position == full.bytes_per_position / 3
    assert by_name["single"].cost.parameters < full.parameters
    assert by_name["single"].cost.flops_per_token < full.flops_per_token
    for trial in found.trials:
        model = xattn.load(trial.directory)
        assert model.spec.decoder.placement.layers == trial.mask
        assert set(trial.scores) == {"exact", "bleu", "chrf", "wer"}
        assert trial.loss > 0
    again = sweep(recipe(tmp_path, data), ["every:1", "single", "0,2"], finalists=2,
                  finalist_seeds=2)  # fmt: skip
    assert again.trials == found.trials
    assert again == found
    assert again.trials == tuple(read_trials(tmp_path))


def test_a_trial_that_was_killed_is_gone_on_with(data, tmp_path):
    """A run whose trial was not written down is there, and is found done."""
    from xattn.tuning.train import train

    train(trial_recipe(recipe(tmp_path, data), "last:1", 0))
    said = []
    found = sweep(recipe(tmp_path, data), ["last:1"], say=said.append)
    assert "going on from step 4" in said
    assert found.trials[0].placement == "last:1"


def test_optuna_tries_masks_and_goes_on(data, tmp_path):
    first = search(recipe(tmp_path, data), 2)
    assert 1 <= len(first.trials) <= 2
    more = search(recipe(tmp_path, data), 4)
    assert {trial.placement for trial in first.trials} <= {t.placement for t in more.trials}
    assert any(one.on_front for one in more.placements)
    assert search(recipe(tmp_path, data), 4) == more


def test_trials_of_another_recipe_do_not_stand_beside_these(data, tmp_path):
    sweep(recipe(tmp_path, data), ["last:1"])
    longer = recipe(tmp_path, data, training={"steps": 9, "method": "full", "batch_tokens": 128})
    with pytest.raises(UsageError, match="has trials of another recipe"):
        sweep(longer, ["last:1", "single"])


def test_a_search_that_goes_on_draws_other_masks(tmp_path):
    from xattn.tuning.searching import masks

    drawn = []
    for count in (6, 12, 18):
        masks(tmp_path, 8, count, lambda mask: drawn.append(tuple(mask)) or (sum(mask), -sum(mask)))
    assert len({*drawn}) > 12


def test_a_finished_run_that_is_called_again_has_its_loss(data, tmp_path):
    from xattn.tuning.train import train

    given = recipe(tmp_path / "run", data).model_dump(mode="json")
    del given["data"]["validation"], given["evaluation"]
    first, again = train(checked(given)), train(checked(given))
    assert again.loss == first.loss > 0


def summary(name, quality, interval, size, on_front=True):
    cost = Cost(
        layers=1,
        parameters=1,
        bytes_per_position=size,
        flops_per_token=1,
        seconds_per_token=0.001,
    )
    return Summary(
        placement=name,
        mask=(True, False),
        seeds=1 if interval is None else 3,
        quality=quality,
        interval=interval,
        cost=cost,
        on_front=on_front,
    )


def trial(name, seed, bleu, size):
    return Trial(
        placement=name,
        mask=(True,),
        seed=seed,
        loss=1.0,
        scores={"bleu": bleu},
        seconds=1.0,
        cost=summary("", 0.0, None, size).cost,
        directory="",
    )


def test_intervals_are_students_and_the_front_is_what_nothing_beats():
    trials = [trial("a", n, value, 400) for n, value in enumerate((30.0, 32.0, 31.0))]
    trials += [trial("b", 0, 29.0, 400), trial("c", 0, 30.0, 100), trial("d", 0, 20.0, 100)]
    found = summarised(trials, "bleu")
    by_name = {one.placement: one for one in found.placements}
    low, high = by_name["a"].interval
    assert (low + high) / 2 == pytest.approx(31.0)
    assert high - 31.0 == pytest.approx(4.303 * 1.0 / 3**0.5)
    assert [one.placement for one in found.placements if one.on_front] == ["a", "c"]
    assert found.best.placement == "a"


def test_the_cheapest_that_cannot_be_told_apart_is_advised():
    from xattn.tuning.sweep import Sweep

    full = summary("every:1", 31.0, (30.0, 32.0), 400)
    half = summary("every:2", 30.5, (29.5, 31.5), 200)
    few = summary("single", 25.0, (24.0, 26.0), 50)
    found = Sweep(metric="bleu", trials=(), placements=(full, half, few))
    assert found.recommended is half
    assert "50% fewer bytes" in recommendation(found)
    assert "No cheaper" in recommendation(Sweep(metric="bleu", trials=(), placements=(full, few)))
    alone = Sweep(metric="loss", trials=(), placements=(summary("x", 2.0, None, 5),))
    assert "cannot tell luck" in recommendation(alone)


def test_a_report_is_a_table_a_picture_and_a_page(data, tmp_path):
    found = sweep(recipe(tmp_path, data), ["every:1", "single"])
    files = report(found, tmp_path)
    assert [file.name for file in files] == ["sweep.csv", "sweep.png", "sweep.html"]
    rows = list(csv.DictReader(files[0].read_text().splitlines()))
    assert {row["placement"] for row in rows} == {"every:1", "single"}
    assert files[1].read_bytes()[:4] == b"\x89PNG"
    page = files[2].read_text()
    assert "single" in page
    assert "http" not in page.replace("http-equiv", "")


def test_costs_of_a_graft_are_counted(tmp_path):
    import tiny

    tiny.make("llama", tmp_path)
    lm = xattn.load(tmp_path)
    found = cost_of(xattn.graft(lm, encoder="itself", placement="single"), positions=9)
    decoder = lm.spec.decoder
    assert found.bytes_per_position == decoder.self_cache_bytes(1) / decoder.layers
    assert found.seconds_per_token > 0


@pytest.mark.parametrize(
    ("placements", "metric", "said"),
    [
        (["every:9"], "loss", "there are 3 layers"),
        ([], "loss", "one or more"),
        (["all", "all"], "loss", "all different"),
        (["all"], "rouge", "`metric` must be one of loss, exact, bleu, chrf, wer"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    placements, metric, said, data, tmp_path
):
    with pytest.raises(UsageError, match=said):
        sweep(recipe(tmp_path / "new", data), placements, metric=metric)
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_has_its_placement(data, tmp_path):
    given = recipe(tmp_path, data).model_dump(mode="json")
    given["model"] = {"path": "t5-small"}
    with pytest.raises(UsageError, match="not `path`"):
        sweep(checked(given), ["all"])


def test_trials_are_json(data, tmp_path):
    sweep(recipe(tmp_path, data), ["single"])
    [held] = json.loads((tmp_path / "table" / "trials.json").read_text())
    assert held["placement"] == "single"


def test_luck_is_not_advised():
    trials = [trial("full", n, value, 400) for n, value in enumerate((31.0, 31.1, 30.9))]
    trials += [trial("noisy", n, value, 50) for n, value in enumerate((18.0, 31.0, 20.0))]
    trials += [trial("once", 0, 33.0, 100)]
    found = summarised(trials, "bleu")
    assert (found.best.placement, found.recommended.placement) == ("full", "full")
    assert "1 placement had one seed, which tells nothing" in recommendation(found)
    trials += [trial("cheap", n, value, 60) for n, value in enumerate((30.95, 31.0, 30.9))]
    assert summarised(trials, "bleu").recommended.placement == "cheap"
    with pytest.raises(UsageError, match="`metric` must be one that trials have: loss, bleu"):
        summarised(trials, "chrf")
    lost = [replace(trial("lost", 0, 1.0, 10), loss=float("nan")), trial("there", 0, 1.0, 90)]
    assert summarised(lost, "loss").recommended.placement == "there"
