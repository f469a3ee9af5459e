"""Placements side by side: each trained under the same budget, and what each costs to run.

A sweep is a directory with a run for each placement and seed, so that it goes on where it was::

    DIR/
      trials/every-2-seed-0/      a run of :mod:`xattn.tuning.train`
      trials.json                 what came of all
      sweep.csv  sweep.png  sweep.html
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, median, stdev
from time import perf_counter
from typing import Any

import torch

from xattn.counts import decoder_flops, parameters
from xattn.errors import CorruptCheckpointError, UsageError, require
from xattn.memory import Memory, MemoryKey, SpanTable, digest_of
from xattn.model import Model, load
from xattn.placing import layers_of, written
from xattn.tuning.recipe import Recipe
from xattn.tuning.scoring import LOWER_IS_BETTER
from xattn.tuning.train import Outcome, train, trained
from xattn.tuning.whole import replacing

TRIALS, TABLE = "trials", "trials.json"
SOURCE_POSITIONS, TIMED_TOKENS, TIMED_ROUNDS = 512, 32, 5
LOSS = "loss"
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95 percent points of Student's t, by how many were measured."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a placement costs to run, at a length of the source."""

    layers: int
    parameters: int
    bytes_per_position: int
    """Of keys and values of a memory."""
    flops_per_token: int
    """Of a step over a memory of :data:`SOURCE_POSITIONS` positions."""
    seconds_per_token: float
    """Measured on such a memory."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One placement with one seed."""

    placement: str
    """As it was asked for."""
    mask: tuple[bool, ...]
    seed: int
    loss: float
    """Of validation, or else of training."""
    scores: dict[str, float]
    seconds: float
    cost: Cost
    directory: str
    recipe: str = ""
    """Digest of what all trials of a sweep have in common."""

    def quality(self, metric: str) -> float:
        """The loss, or a score; :class:`UsageError` for one that was not measured."""
        if metric != LOSS:
            known = ", ".join([LOSS, *self.scores])
            require(metric in self.scores, "metric", f"one that trials have: {known}", metric)
            return self.scores[metric]
        return self.loss


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One placement over its seeds."""

    placement: str
    mask: tuple[bool, ...]
    seeds: int
    quality: float
    """A mean."""
    interval: tuple[float, float] | None
    """Of 95 percent (Student's t); None with one seed."""
    cost: Cost
    on_front: bool = False
    """No other is as good for fewer bytes."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What came of all trials."""

    metric: str
    trials: tuple[Trial, ...]
    placements: tuple[Summary, ...] = field(default=())

    @property
    def best(self) -> Summary:
        """The best there is, whatever it costs: among those with several seeds, if any has."""
        return min(self.sure or self.placements, key=lambda one: badness(self.metric, one.quality))

    @property
    def sure(self) -> list[Summary]:
        """Those with several seeds, of which luck can be told."""
        return [one for one in self.placements if one.interval is not None]

    @property
    def recommended(self) -> Summary:
        """The cheapest whose mean is within the best one's interval; without intervals, the best.

        Its own spread says nothing for it: the wider, the sooner it would pass for as good.
        """
        best = self.best
        alike = [one for one in self.sure if _within(self.metric, one, best)]
        return min(alike, key=lambda one: one.cost.bytes_per_position, default=best)


def _within(metric: str, one: Summary, best: Summary) -> bool:
    assert best.interval is not None
    low, high = best.interval
    return one.quality <= high if is_lower_better(metric) else one.quality >= low


def is_lower_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric == LOSS or metric in LOWER_IS_BETTER


def badness(metric: str, value: float) -> float:
    """The larger, the worse; what is no number is worst."""
    if math.isnan(value):
        return math.inf
    return value if is_lower_better(metric) else -value


Say = Callable[[str], None]
RunAll = Callable[[Sequence[Recipe]], Iterable[Outcome]]
"""Runs recipes, one after the other or side by side, and yields what came of each in order."""


def sweep(
    recipe: Recipe,
    placements: Sequence[str],
    *,
    metric: str = LOSS,
    seeds: int = 1,
    finalists: int = 0,
    finalist_seeds: int = 3,
    base: Path = Path(),
    run_all: RunAll | None = None,
    say: Say = lambda _: None,
) -> Sweep:
    """Train each placement with ``seeds`` seeds, and the best ``finalists`` with more.

    ``recipe.directory`` is the sweep's own; trials that are done are not run again. ``metric`` is
    ``loss`` or one that the recipe's evaluation has. Raises :class:`UsageError` for a placement
    that does not fit, before anything is trained.
    """
    known = [LOSS, *(recipe.evaluation.metrics if recipe.evaluation is not None else ())]
    require(metric in known, "metric", f"one of {', '.join(known)}", metric)
    require(len(placements) > 0, "placements", "one or more", list(placements))
    require(len(set(placements)) == len(placements), "placements", "all different", placements)
    layers = _layers(recipe)
    for placement in placements:
        layers_of(placement, layers)
    directory = base / Path(recipe.directory).expanduser()
    run = run_all or (lambda recipes: (train(one, base=base, say=say) for one in recipes))
    trials = _Trials(recipe, directory, layers, run, say)
    trials.run([(placement, seed) for placement in placements for seed in range(seeds)])
    if finalists:
        # By the seeds that all have, so that a sweep that is called again chooses the same.
        found = summarised([trial for trial in trials.done if trial.seed < seeds], metric)
        ordered = sorted(found.placements, key=lambda one: badness(metric, one.quality))
        names = [one.placement for one in ordered[:finalists]]
        trials.run([(name, seed) for name in names for seed in range(finalist_seeds)])
    return summarised(trials.done, metric)


def _layers(recipe: Recipe) -> int:
    """Layers of the decoder that placements are for."""
    part = recipe.model
    if part.scratch is not None:
        return part.scratch.decoder_layers
    if part.lm is None:
        raise UsageError("a sweep trains a graft (`lm`) or a model from `scratch`, not `path`.")
    return load(part.lm, offline=True).spec.decoder.layers


def trial_recipe(recipe: Recipe, placement: str, seed: int) -> Recipe:
    """The recipe of one trial; all but placement, seed and directory are the same."""
    name = re.sub(r"[^\w+]+", "-", placement).strip("-")
    model = recipe.model.model_copy(update={"placement": placement, "seed": seed})
    return recipe.model_copy(
        update={
            "directory": f"{recipe.directory}/{TRIALS}/{name}-seed-{seed}",
            "model": model,
            "training": recipe.training.model_copy(update={"seed": seed}),
        }
    )


class _Trials:
    """The trials of a sweep, those that were run before among them."""

    def __init__(self, recipe: Recipe, directory: Path, layers: int, run: RunAll, say: Say) -> None:
        self._recipe, self._directory, self._layers = recipe, directory, layers
        self._run, self._say = run, say
        self.done, self._digest = read_trials(directory), _digest(recipe)
        if any(trial.recipe != self._digest for trial in self.done):
            raise UsageError(
                f"{directory}: has trials of another recipe, which cannot stand beside these; give "
                "another `directory`, or remove this one to begin again."
            )

    def run(self, wanted: Sequence[tuple[str, int]]) -> None:
        """Those that are not done yet."""
        known = {(trial.placement, trial.seed) for trial in self.done}
        missing = [one for one in wanted if one not in known]
        recipes = [trial_recipe(self._recipe, *one) for one in missing]
        for (placement, seed), outcome in zip(missing, self._run(recipes), strict=True):
            trial = self._trial(placement, seed, outcome)
            self.done.append(trial)
            write_trials(self._directory, self.done)
            self._say(f"{placement}, seed {seed}: {trial.loss:.4f} {trial.scores or ''}")

    def _trial(self, placement: str, seed: int, outcome: Outcome) -> Trial:
        loss = outcome.loss if outcome.best_loss is None else outcome.best_loss
        return Trial(
            placement=placement,
            mask=layers_of(placement, self._layers),
            seed=seed,
            loss=loss,
            scores=outcome.scores,
            seconds=outcome.seconds,
            cost=cost_of(trained(self._recipe, outcome.directory)),
            directory=str(outcome.directory),
            recipe=self._digest,
        )


def _digest(recipe: Recipe) -> str:
    """Of all but what trials differ in, and where they are."""
    given = recipe.model_dump(mode="json", exclude={"directory", "trackers"})
    for part, names in {"model": ("placement", "seed"), "training": ("seed",)}.items():
        for name in names:
            given[part].pop(name)
    return digest_of(json.dumps(given, sort_keys=True).encode())


def cost_of(model: Model, positions: int = SOURCE_POSITIONS) -> Cost:
    """Counted, and measured on a memory of random states."""
    decoder = model.spec.decoder
    return Cost(
        layers=decoder.placement.count,
        parameters=parameters(model.spec),
        bytes_per_position=decoder.cross_bytes(1),
        flops_per_token=decoder_flops(decoder, 1, seen=TIMED_TOKENS, memories=positions, logits=1),
        seconds_per_token=_seconds_per_token(model, positions),
    )


def _seconds_per_token(model: Model, positions: int) -> float:
    """The median over rounds of a step, its memory projected before."""
    network = model.network
    memory = _random_memory(model, positions)
    projected = network.project(memory)
    token = torch.tensor([[model.spec.tokens.eos[0] if model.spec.tokens.eos else 0]])
    times = []
    for _ in range(1 + TIMED_ROUNDS):
        state = network.start([[projected]])
        begun = perf_counter()
        for _ in range(TIMED_TOKENS):
            network.step(token, state)
        times.append((perf_counter() - begun) / TIMED_TOKENS)
    return median(times[1:])


def _random_memory(model: Model, positions: int) -> Memory:
    """One that a model could have made."""
    some = model.prepare([5] * 4) if model.spec.encoder is not None else None
    width = model.spec.decoder.memory_width
    if model.spec.projectors:
        width = model.spec.projectors[0].inputs
    key = MemoryKey(
        source=f"random {positions}",
        modality=model.spec.projectors[0].modality if model.spec.projectors else "text",
        preprocessing="random",
        encoder="random" if some is None else some.key.encoder,
        dtype="float32",
    )
    generator = torch.Generator().manual_seed(0)
    return Memory(
        states_SD=torch.randn(positions, width, generator=generator),
        key=key,
        spans=SpanTable.even(positions, 1.0, "tokens"),
    )


def summarised(trials: Sequence[Trial], metric: str) -> Sweep:
    """Means over seeds, intervals, and which placements are on the front."""
    by_placement: dict[str, list[Trial]] = {}
    for trial in trials:
        by_placement.setdefault(trial.placement, []).append(trial)
    found = [_summary(some, metric) for some in by_placement.values()]
    marked = tuple(replace(one, on_front=_on_front(one, found, metric)) for one in found)
    return Sweep(metric=metric, trials=tuple(trials), placements=marked)


def _summary(trials: Sequence[Trial], metric: str) -> Summary:
    values = [trial.quality(metric) for trial in trials]
    middle = mean(values)
    interval = None
    if len(values) > 1:
        half = T_95[min(len(values), max(T_95))] * stdev(values) / math.sqrt(len(values))
        interval = (middle - half, middle + half)
    seconds = median(trial.cost.seconds_per_token for trial in trials)
    first = trials[0]
    return Summary(
        placement=first.placement,
        mask=first.mask,
        seeds=len(values),
        quality=middle,
        interval=interval,
        cost=replace(first.cost, seconds_per_token=seconds),
    )


def _on_front(one: Summary, others: Sequence[Summary], metric: str) -> bool:
    def beats(other: Summary) -> bool:
        less = other.cost.bytes_per_position - one.cost.bytes_per_position
        worse = badness(metric, other.quality) - badness(metric, one.quality)
        return less <= 0 and worse <= 0 and (less < 0 or worse < 0)

    return not any(beats(other) for other in others if other is not one)


def write_trials(directory: Path, trials: Sequence[Trial]) -> None:
    """All of them, whole or not at all."""
    with replacing(directory / "table") as new:
        (new / TABLE).write_text(json.dumps([asdict(trial) for trial in trials], indent=2) + "\n")


def read_trials(directory: Path) -> list[Trial]:
    """Those that were run; none where there is no sweep yet."""
    path = directory / "table" / TABLE
    if not path.is_file():
        return []
    try:
        held: list[dict[str, Any]] = json.loads(path.read_text())
        return [
            Trial(**{**one, "mask": tuple(one["mask"]), "cost": Cost(**one["cost"])})
            for one in held
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptCheckpointError(f"{path}: cannot be read: {error}.") from error


def search(
    recipe: Recipe,
    trials: int,
    *,
    metric: str = LOSS,
    finalists: int = 0,
    finalist_seeds: int = 3,
    base: Path = Path(),
    say: Say = lambda _: None,
) -> Sweep:
    """Let Optuna choose masks: as good as can be, with as few bytes as can be.

    Each trial is a run of the recipe, under a mask of its own; a search that is called again goes
    on. The sampler is NSGA-II (Deb et al. 2002), as Optuna has it.
    """
    from xattn.tuning.searching import masks

    layers = _layers(recipe)
    directory = base / Path(recipe.directory).expanduser()

    def tried(mask: Sequence[bool]) -> tuple[float, float]:
        name = written(mask)
        found = sweep(recipe, [name], metric=metric, base=base, say=say)
        one = next(p for p in found.placements if p.placement == name)
        return badness(metric, one.quality), float(one.cost.bytes_per_position)

    masks(directory, layers, trials, tried)
    names = sorted({trial.placement for trial in read_trials(directory)})
    return sweep(
        recipe,
        names,
        metric=metric,
        finalists=finalists,
        finalist_seeds=finalist_seeds,
        base=base,
        say=say,
    )
