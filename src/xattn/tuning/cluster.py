"""Trials of a sweep side by side, where there is a Ray cluster."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xattn.errors import MissingExtraError
from xattn.tuning.recipe import Recipe
from xattn.tuning.sweep import RunAll
from xattn.tuning.train import Outcome, train


def on_ray(threads: int | None = None, base: Path = Path()) -> RunAll:
    """What runs recipes on the cluster that ``RAY_ADDRESS`` names, or on one of this machine.

    Each trial has ``threads`` cores (1, if not given). Directories and data, relative to ``base``,
    must be where all machines see them. Raises :class:`MissingExtraError` without ray.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "cluster", "trials side by side") from error

    def run_all(recipes: Sequence[Recipe]) -> Iterator[Outcome]:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        remote: Any = ray.remote(num_cpus=threads or 1, max_retries=2)(_train)
        given = [one.model_dump(mode="json") for one in recipes]
        waiting = [remote.remote(one, threads or 1, str(base.absolute())) for one in given]
        return (ray.get(one) for one in waiting)

    return run_all


def _train(given: dict[str, Any], threads: int, base: str) -> Outcome:
    import torch

    from xattn.tuning.recipe import checked

    torch.set_num_threads(threads)
    return train(checked(given), base=Path(base))
