"""What a run needs to go on after a crash: weights, moments of the optimiser, and its place.

Numbers are safetensors and the rest is JSON: nothing is pickled. Weights that are spread over
machines are gathered, by torch, before they are written, and spread again.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from xattn.errors import CorruptCheckpointError
from xattn.tuning.whole import replacing

FOLDER, NUMBERS, PLACE = "checkpoints", "state.safetensors", "state.json"
KEPT = 2
"""Checkpoints that stay."""
_WEIGHT, _MOMENT = "weight.", "moment."
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
_EVERYWHERE = StateDictOptions(full_state_dict=True, ignore_frozen_params=True)


@dataclass(kw_only=True)
class Progress:
    """Where a run is."""

    step: int = 0
    """Updates done."""
    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that were used."""
    best_loss: float | None = None
    best_step: int = 0
    """Updates done when the loss of validation was that."""
    loss: float = float("nan")
    """Of training, in the last update."""
    without_gain: int = 0
    """Evaluations since the best."""
    seconds: float = 0.0
    tokens: int = 0
    encoder_passes: int = 0
    ended: str = ""
    """Why it is over."""
    recipe: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    """Digest of what is learnt from."""


def gathered(module: nn.Module, optimiser: Optimizer) -> dict[str, Tensor]:
    """What trains and its moments, whole, on the CPU of the first process; all take part."""
    weights, found = get_state_dict(module, optimiser, options=_WHOLE)
    moments: Any = found
    tensors: dict[str, Any] = {f"{_WEIGHT}{name}": one for name, one in weights.items()}
    for name, of_weight in moments.get("state", {}).items():
        for moment, value in of_weight.items():
            tensors[f"{_MOMENT}{name}:{moment}"] = torch.as_tensor(value)
    # Tensors that share memory, as tied ones do, cannot be written.
    return {name: one.detach().cpu().clone() for name, one in tensors.items()}


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """All weights by their names in the network, whole, on the CPU of the first process.

    All processes take part: where weights are spread over them, they are gathered.
    """
    held: Any = get_model_state_dict(
        module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return {name.removeprefix("network."): one for name, one in held.items()}


def save_state(directory: Path, progress: Progress, tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint of the run, and let the oldest go; whole or not at all."""
    place = directory / FOLDER / f"step-{progress.step:08d}"
    with replacing(place) as new:
        save_file(tensors, new / NUMBERS)
        (new / PLACE).write_text(json.dumps(asdict(progress), indent=2) + "\n")
    for old in checkpoints(directory)[:-KEPT]:
        shutil.rmtree(old)


def checkpoints(directory: Path) -> list[Path]:
    """Those of a run, the oldest first."""
    return sorted(one for one in (directory / FOLDER).glob("step-*") if (one / PLACE).is_file())


def load_state(path: Path, module: nn.Module, optimiser: Optimizer) -> Progress:
    """Go back to a checkpoint; :class:`CorruptCheckpointError` where it is of another model."""
    progress = read_progress(path)
    try:
        tensors = load_file(path / NUMBERS)
    except (OSError, SafetensorError) as error:
        raise CorruptCheckpointError(f"{path}: cannot be read: {error}.") from error
    weights = {n.removeprefix(_WEIGHT): t for n, t in tensors.items() if n.startswith(_WEIGHT)}
    _require_same(path, module, weights)
    given: dict[str, Any] = dict(weights)
    set_model_state_dict(
        module, given, options=StateDictOptions(full_state_dict=True, strict=False)
    )
    moments: dict[str, dict[str, Tensor]] = {}
    for name, held in tensors.items():
        if name.startswith(_MOMENT):
            of, _, moment = name.removeprefix(_MOMENT).rpartition(":")
            moments.setdefault(of, {})[moment] = held
    if moments:
        _, now = get_state_dict(module, optimiser, options=_EVERYWHERE)
        state: dict[str, Any] = {"state": moments, "param_groups": now["param_groups"]}
        set_optimizer_state_dict(
            module, optimiser, state, options=StateDictOptions(full_state_dict=True)
        )
    return progress


def read_progress(path: Path) -> Progress:
    """Where the run of a checkpoint was."""
    try:
        return Progress(**json.loads((path / PLACE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CorruptCheckpointError(f"{path}: cannot be read: {error}.") from error


def _require_same(path: Path, module: nn.Module, held: dict[str, Tensor]) -> None:
    expected = {n: tuple(p.shape) for n, p in module.named_parameters() if p.requires_grad}
    for name, shape in expected.items():
        if name not in held or tuple(held[name].shape) != shape:
            raise CorruptCheckpointError(
                f"{path}: has no {name!r} of shape {list(shape)}; it is the checkpoint of another "
                "model or method."
            )
