"""Masks that Optuna proposes: which layers cross-attend, freely."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xattn.errors import MissingExtraError, is_whole, require

STUDY, NAME = "study.sqlite", "placements"

Tried = Callable[[Sequence[bool]], tuple[float, float]]
"""How bad a mask is, and what it costs."""


def masks(directory: Path, layers: int, trials: int, tried: Tried) -> None:
    """Try masks until there are ``trials``, those of earlier calls among them."""
    require(is_whole(trials, 1), "trials", "at least 1", trials)
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", "training", "searching for placements") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directory.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=NAME,
        storage=f"sqlite:///{directory / STUDY}",
        directions=["minimize", "minimize"],
        load_if_exists=True,
    )
    done = [t for t in study.trials if t.state.is_finished()]
    # A sampler that goes on must not draw again what it drew before.
    study.sampler = optuna.samplers.NSGAIISampler(seed=len(done))

    def objective(trial: Any) -> tuple[float, float]:
        mask = [trial.suggest_categorical(f"layer {n}", [False, True]) for n in range(layers)]
        if not any(mask):
            raise optuna.TrialPruned
        return tried(mask)

    study.optimize(objective, n_trials=max(0, trials - len(done)))
