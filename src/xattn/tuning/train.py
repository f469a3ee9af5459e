"""The training loop: on one process or many, and on after a crash as if there had been none.

What is spread over devices and machines, and how, is accelerate's: ``accelerate launch`` starts as
many processes as its own configuration says, and each takes its share of the batches.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from xattn.errors import MissingExtraError, UsageError
from xattn.memory import Memory
from xattn.model import Model, load
from xattn.models.network import digest_of_weights
from xattn.native.process import peak_bytes
from xattn.store import MemoryStore
from xattn.tuning.batches import Batch, batches, before, encoder_is_frozen, memories_of
from xattn.tuning.dpo import Pair, Preferences, read_reference, write_reference
from xattn.tuning.examples import read_examples
from xattn.tuning.journal import Journal
from xattn.tuning.lora import add_adapter, load_adapter
from xattn.tuning.making import make, save_model
from xattn.tuning.objectives import Continuations, Lost, Objective
from xattn.tuning.recipe import Evaluation, Recipe
from xattn.tuning.scoring import score
from xattn.tuning.state import (
    Progress,
    checkpoints,
    gathered,
    load_state,
    read_progress,
    save_state,
    whole_weights,
)
from xattn.tuning.teacher import Teacher, choose, optimiser, rate_at

try:
    from accelerate import Accelerator
    from accelerate.utils import set_seed
except ImportError as error:
    raise MissingExtraError("accelerate", "training", "training") from error

MODEL, BEST, STORE = "model", "best", "memories"
DONE = "all steps are done"
ANSWERED_AT_ONCE = 32
Say = Callable[[str], None]
Some = tuple[Any, ...]
"""Items of the objective that go together."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run."""

    directory: Path
    """Of the model: ``best`` where there is a validation loss, else ``model``."""
    steps: int
    loss: float
    """Of training, in the last update."""
    best_loss: float | None
    """Of validation."""
    best_step: int
    """The update after which the loss of validation was that; 0 where there is none."""
    seconds: float
    tokens: int
    """That were learnt."""
    encoder_passes: int
    trained: int
    """Numbers that were trained."""
    peak_bytes: int
    """Of the process."""
    ended: str
    scores: dict[str, float] = field(default_factory=dict)
    """Of what the model says of held-out sources, in percent."""


def train(
    recipe: Recipe,
    *,
    base: Path = Path(),
    say: Say = lambda _: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Run a recipe, or go on with it where its directory has a checkpoint.

    ``base`` is what paths in it are relative to. ``say`` is told what is worth a line, ``progress``
    how many updates are done of how many. Raises :class:`UsageError` for what does not fit,
    and :class:`SaveError` where a checkpoint cannot be written; the one before stays.
    """
    directory = base / Path(recipe.directory).expanduser()
    _require_same_recipe(directory, recipe)
    outcome = _Run(recipe, base, directory, say, progress).run()
    if recipe.evaluation is None:
        return outcome
    model = trained(recipe, outcome.directory)
    return replace(outcome, scores=evaluate(model, recipe.evaluation, base))


def trained(recipe: Recipe, directory: Path) -> Model:
    """The model that a run left in ``directory``; an adapter on the model that it is for."""
    if recipe.training.method != "lora":
        return load(directory)
    assert recipe.model.path is not None
    model = load(recipe.model.path, offline=True)
    load_adapter(model, directory)
    return model


def evaluate(model: Model, evaluation: Evaluation, base: Path = Path()) -> dict[str, float]:
    """How good a model's answers to held-out sources are, by each metric."""
    examples = read_examples(evaluation.data, base, evaluation.limit)
    answers: list[str] = []
    for first in range(0, len(examples), ANSWERED_AT_ONCE):
        some = examples[first : first + ANSWERED_AT_ONCE]
        prompts: list[Any] = [one.prompt for one in some]
        if model.spec.encoder is None:
            prompts = [before(model, one) for one in some]
        found = model.generate_batch(
            [model.encode_batch(list(one.sources)) for one in some],
            prompts,
            num_beams=evaluation.num_beams,
            max_new_tokens=evaluation.most_tokens,
        )
        answers += [one.text for one in found]
    references = [one.target for one in examples]
    return {
        metric: score(metric, answers, references, tokenize=evaluation.tokenize)
        for metric in evaluation.metrics
    }


def _require_same_recipe(directory: Path, recipe: Recipe) -> None:
    """A run goes on with the recipe that it began with; only how long it lasts may change."""
    found = checkpoints(directory)
    if not found:
        return
    began, now = read_progress(found[-1]).recipe, recipe.model_dump(mode="json")
    free = ("epochs", "steps", "patience", "save_every", "evaluate_every")
    aside = ("directory", "trackers", "evaluation")
    for one in (began, now):
        for name in free:
            one.get("training", {}).pop(name, None)
        for name in aside:
            one.pop(name, None)
    if began != now:
        part = next(name for name in now if began.get(name) != now[name])
        raise UsageError(
            f"{directory}: has a run of another recipe, whose [{part}] differs; give another "
            "`directory`, or remove this one to begin again."
        )


def require_trackers(names: Sequence[str]) -> None:
    """Raise :class:`UsageError` for one whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UsageError(f"`trackers` has {name!r}, which is not installed: pip install {name}")


class _Run:
    """One run of one process."""

    def __init__(
        self,
        recipe: Recipe,
        base: Path,
        directory: Path,
        say: Say,
        told: Callable[[int, int], None],
    ) -> None:
        self.recipe, self.training, self.directory = recipe, recipe.training, directory
        self.say, self.told = say, told
        require_trackers(recipe.trackers)
        self.accelerator = Accelerator(
            log_with=list(recipe.trackers) or None,
            project_dir=str(directory),
        )
        set_seed(self.training.seed)
        objective: Any = Continuations()
        if recipe.preference is not None:
            objective = Preferences(recipe.preference)
        self.objective: Objective[Any] = objective
        examples = objective.read(recipe.data.train, base, recipe.data.limit)
        self.model = self._model(self.objective.texts(examples))
        learnt = choose(self.model, self.training.method)
        self.trained = sum(self.model.network.get_parameter(name).numel() for name in learnt)
        self.frozen = encoder_is_frozen(self.model)
        if self.frozen and self.training.remember:
            self.model.store = MemoryStore(directory / STORE)
        self.items = self._items(examples, "training")
        self.validation: Sequence[Any] = ()
        if recipe.data.validation is not None:
            held_out = objective.read(recipe.data.validation, base, None)
            self.validation = self._items(held_out, "validation")
        self.steps = self._steps()
        self.teacher, self.optimiser = self.accelerator.prepare(
            self._teacher(), optimiser(self.model, self.training)
        )
        self.progress = Progress(
            recipe=recipe.model_dump(mode="json"), data=self.objective.digest(self.items)
        )
        self.passes_before = 0
        if isinstance(objective, Preferences) and not objective.preference.reference_free:
            self.items, self.validation = (
                self._with_reference(objective, name, pairs)
                for name, pairs in (("train", self.items), ("validation", self.validation))
            )

    def _model(self, texts: Sequence[str]) -> Model:
        """The model that learns, with the adapter that does, if it is one."""
        with self.accelerator.main_process_first():  # which makes the tokenizer, if one is made
            model = make(self.recipe.model, self.directory, texts)
        if self.training.method == "lora":
            how = self.training.lora
            add_adapter(
                model, preset=how.preset, rank=how.rank, alpha=how.alpha, dropout=how.dropout
            )
        return model

    def _teacher(self) -> Teacher:
        """The network as it learns: with dropout, and as much remembered as the recipe says."""
        network, training = self.model.network, self.training
        for stack in (network.decoder, network.encoder):
            if stack is not None:
                stack.prepare_training(
                    dropout=training.dropout, checkpoints=training.checkpoint_activations
                )
        return Teacher(network, training.label_smoothing)

    def _with_reference(
        self, objective: Preferences, name: str, pairs: Sequence[Pair]
    ) -> Sequence[Pair]:
        """The pairs, with what the model says of them before it learns; kept in a file."""
        path = self.directory / f"reference-{name}"
        network = self.model.network
        digest = digest_of_weights(
            objective.digest(pairs), network.named_parameters(), network.hash
        )
        held = read_reference(path, digest)
        if held is not None:
            return [replace(p, reference=(a, b)) for p, (a, b) in zip(pairs, held, strict=True)]
        self._bare.eval()
        most = self.training.batch_tokens
        with self._precision():
            found = list(objective.with_reference(self._bare, pairs, most, self._remember))
        if found and self.accelerator.is_main_process:
            write_reference(path, digest, found)
        return found

    def _items(self, examples: Sequence[Any], what: str) -> Sequence[Any]:
        found = self.objective.items(self.model, examples, self.recipe.data)
        if len(found) < len(examples):
            missing = len(examples) - len(found)
            self.say(f"{missing} of the {what} data are too long, and left out")
        return found

    def _steps(self) -> int:
        """Updates in all."""
        if self.training.steps is not None:
            return self.training.steps
        assert self.training.epochs is not None
        total = sum(len(list(self._groups(epoch))) for epoch in range(self.training.epochs))
        return max(1, total)

    def _groups(self, epoch: int, skip: int = 0) -> Iterator[list[Some]]:
        """What each update learns from: as many batches as processes accumulate."""
        together = self.training.accumulate * self.accelerator.num_processes
        of_epoch = batches(self.items, self.training.batch_tokens, self.training.seed, epoch)
        of_epoch = islice(of_epoch, skip, None)
        while group := list(islice(of_epoch, together)):
            yield group

    def run(self) -> Outcome:
        journal = Journal(self.directory, self.objective.sees)
        main = self.accelerator.is_main_process
        found = checkpoints(self.directory)
        if found:
            data = self.progress.data
            self.progress = load_state(found[-1], self._bare, self.optimiser)
            if self.progress.data != data:
                raise UsageError(
                    f"{self.directory}: the run began with other training data than its files have "
                    "now; give another `directory`, or remove this one to begin again."
                )
            self.passes_before = self.progress.encoder_passes
            if self._goes_on():
                self.progress.ended = ""
            self.say(f"going on from step {self.progress.step}")
        if self.recipe.trackers:
            self.accelerator.init_trackers(self.directory.name)
        if not main:
            self._learn(None)
            return self._finish()
        with journal.written_from(self.progress.step):
            self._learn(journal)
        journal.draw()
        return self._finish()

    def _goes_on(self) -> bool:
        """A run that was over is to last longer: it has more steps now, or more patience."""
        if self.progress.step >= self.steps:
            return False
        patience = self.training.patience
        patient = patience is None or self.progress.without_gain < patience
        return self.progress.ended == DONE or patient

    def _learn(self, journal: Journal | None) -> None:
        """Update until the end."""
        self.teacher.train()
        begun = time.perf_counter()
        before = self.progress.seconds
        while not self._is_over():
            for group in self._groups(self.progress.epoch, self.progress.batch):
                (self.progress.loss, seen), rate = self._update(group), self._rate()
                self.progress.step += 1
                self.progress.batch += len(group)
                self.progress.tokens += sum(map(self.objective.weight, group))
                self.progress.seconds = before + time.perf_counter() - begun
                self._end_of_step()
                self.told(self.progress.step, self.steps)
                validated = self._validated()  # which may end it, too
                over = self._is_over()
                if journal is not None:
                    journal.write(self.progress, self.progress.loss, rate, validated, seen)
                told = {"loss": self.progress.loss, "learning_rate": rate}
                self._track(told | seen, validated)
                if over or self.progress.step % self.training.save_every == 0:
                    self._save()
                if over:
                    break
            else:
                self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0

    @property
    def _bare(self) -> Teacher:
        bare: Teacher = self.accelerator.unwrap_model(self.teacher)
        return bare

    def _is_over(self) -> bool:
        return bool(self.progress.ended)

    def _count_passes(self) -> None:
        now = self.model.counters.encoder_passes
        self.progress.encoder_passes = self.passes_before + now

    def _rate(self) -> float:
        return float(self.optimiser.param_groups[0]["lr"])

    def _update(self, group: list[Some]) -> tuple[float, dict[str, float]]:
        """One step of the optimiser; the mean loss in it, and means of what else was seen."""
        share = rate_at(self.training, self.progress.step, self.steps)
        for one in self.optimiser.param_groups:
            one["lr"] = self.training.learning_rate * share
        self._throw()
        total = sum(map(self.objective.weight, group))
        mine = group[self.accelerator.process_index :: self.accelerator.num_processes]
        # Processes' gradients are averaged, and each has a part of the sum.
        weight = self.accelerator.num_processes / total
        sums = torch.zeros(1 + len(self.objective.sees), device=self.accelerator.device)
        micro = -(-len(group) // self.accelerator.num_processes)
        for number in range(micro):
            # Without a batch of its own a process learns nothing from another's, but takes part.
            some, counts = (mine[number], 1.0) if number < len(mine) else (group[0], 0.0)
            last = number == micro - 1
            with nullcontext() if last else self.accelerator.no_sync(self.teacher):
                lost = self._lost(self.teacher, some)
                self.accelerator.backward(lost.loss * counts * weight)
            sums += counts * self._sums(lost)
        if self.training.clip:
            trained = [one for one in self.teacher.parameters() if one.requires_grad]
            self.accelerator.clip_grad_norm_(trained, self.training.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        found, *seen = (self.accelerator.reduce(sums, "sum") / total).tolist()
        return float(found), dict(zip(self.objective.sees, seen, strict=True))

    def _throw(self) -> None:
        """The dice of this update, which are the same whenever and wherever it is done."""
        rank, step = self.accelerator.process_index, self.progress.step
        torch.manual_seed((self.training.seed * 1_000_003 + step) * 1_009 + rank)

    def _lost(self, teacher: Teacher, some: Some) -> Lost:
        with self._precision():
            return self.objective.loss(teacher, some, self._remember)

    def _remember(self, batch: Batch) -> list[list[Memory]]:
        return memories_of(self.model, batch, frozen=self.frozen)

    def _sums(self, lost: Lost) -> torch.Tensor:
        parts = [lost.loss.detach(), *(lost.seen[name] for name in self.objective.sees)]
        return torch.stack(parts).float().to(self.accelerator.device)

    def _precision(self) -> torch.autocast:
        low = self.training.precision == "bfloat16"
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16, enabled=low)

    def _end_of_step(self) -> None:
        if self.progress.step >= self.steps:
            self.progress.ended = DONE

    def _validated(self) -> float | None:
        """The validation loss, where it is time for one; a better one keeps the model."""
        due = self.progress.step % self.training.evaluate_every == 0 or self.progress.ended
        if not self.validation or not due:
            return None
        loss = self._validation_loss()
        if self.progress.best_loss is None or loss < self.progress.best_loss:
            self.progress.best_loss, self.progress.best_step = loss, self.progress.step
            self.progress.without_gain = 0
            self._keep_model(BEST)
        else:
            self.progress.without_gain += 1
            patience = self.training.patience
            if patience is not None and self.progress.without_gain >= patience:
                self.progress.ended = f"no better loss in {patience} evaluations"
        self.say(f"step {self.progress.step}: validation loss {loss:.4f}")
        return loss

    @torch.no_grad()
    def _validation_loss(self) -> float:
        self.teacher.eval()
        sums = torch.zeros(1 + len(self.objective.sees), device=self.accelerator.device)
        parts = list(batches(self.validation, self.training.batch_tokens, 0))
        for some in parts[self.accelerator.process_index :: self.accelerator.num_processes]:
            sums += self._sums(self._lost(self._bare, some))
        self.teacher.train()
        total = self.objective.weight(self.validation)
        return float((self.accelerator.reduce(sums, "sum") / total)[0])

    def _save(self) -> None:
        self._count_passes()
        tensors = gathered(self._bare, self.optimiser)
        if self.accelerator.is_main_process:
            save_state(self.directory, self.progress, tensors)
        self.accelerator.wait_for_everyone()

    def _keep_model(self, name: str) -> None:
        alone = self.accelerator.num_processes == 1
        weights: dict[str, torch.Tensor] = dict(self.model.network.named_parameters())
        if not alone:
            weights = whole_weights(self._bare)
        if self.accelerator.is_main_process:
            save_model(self.model, self.directory / name, weights)
        self.accelerator.wait_for_everyone()

    def _track(self, values: dict[str, float], validated: float | None) -> None:
        if self.recipe.trackers:
            more = {} if validated is None else {"validation_loss": validated}
            self.accelerator.log(values | more, step=self.progress.step)

    def _finish(self) -> Outcome:
        self.teacher.eval()
        self._keep_model(MODEL)
        if self.recipe.trackers:
            self.accelerator.end_training()
        kept = BEST if self.validation else MODEL
        return Outcome(
            directory=self.directory / kept,
            steps=self.progress.step,
            loss=self.progress.loss,
            best_loss=self.progress.best_loss,
            best_step=self.progress.best_step,
            seconds=self.progress.seconds,
            tokens=self.progress.tokens,
            encoder_passes=self.progress.encoder_passes,
            trained=self.trained,
            peak_bytes=peak_bytes(),
            ended=self.progress.ended,
        )
