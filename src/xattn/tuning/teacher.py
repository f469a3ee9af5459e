"""What a model that learns is asked, and how wrong it is.

Axes: R rows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xattn.errors import UsageError
from xattn.memory import Memory
from xattn.model import Model
from xattn.models.formats import read_checkpoint
from xattn.models.formats.graft import moved_name
from xattn.models.network import Network
from xattn.tuning.batches import IGNORED
from xattn.tuning.recipe import Training

GATES = ("cross_gate", "ffn_gate")


class Teacher(nn.Module):
    """A network that is fed the truth and told what should have come next."""

    def __init__(self, network: Network, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.network, self.label_smoothing = network, label_smoothing

    def forward(
        self,
        memories: Sequence[Sequence[Memory]],
        tokens_RT: Tensor,
        targets_RT: Tensor,
        *,
        by_row: bool = False,
    ) -> Tensor:
        """The sum over all that is learnt of the cross-entropy, float32.

        ``by_row`` gives the log-probability of what is learnt in each row ``[R]`` instead.
        """
        hidden_RTD = self.hidden(memories, tokens_RT)
        wanted_RT = (targets_RT != IGNORED).to(hidden_RTD.device)
        logits = self.network.decoder.logits(hidden_RTD[wanted_RT])
        targets = targets_RT.to(logits.device)[wanted_RT]
        if by_row:
            chosen = logits.log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
            rows = wanted_RT.nonzero()[:, 0]
            return chosen.new_zeros(len(tokens_RT)).index_add(0, rows, chosen)
        smooth = self.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smooth)

    def hidden(self, memories: Sequence[Sequence[Memory]], tokens_RT: Tensor) -> Tensor:
        """Hidden states ``[R, T, D]``, all tokens at once."""
        state = self.network.start(memories)
        state.cache.keeps = False
        return self.network.decoder.hidden(tokens_RT.to(self.network.device), state)


def choose(model: Model, method: str) -> list[str]:
    """Let the weights that ``method`` trains ask for gradients, and no others; their names.

    Raises :class:`UsageError` where there are none.
    """
    chosen = _chosen(model, method)
    for name, weight in model.network.named_parameters():
        weight.requires_grad_(name in chosen)
    if not chosen:
        raise UsageError(f"`method` is {method!r}, and {model.name} has no such weights.")
    return sorted(chosen)


def _chosen(model: Model, method: str) -> set[str]:
    names = [name for name, _ in model.network.named_parameters()]
    choices: dict[str, Callable[[], Iterable[str]]] = {
        "full": lambda: names,
        "decoder": lambda: _without_encoder(model.network),
        "gates": lambda: [name for name in names if name.endswith(GATES)],
        "new": lambda: new_weights(model),
        "lora": lambda: [name for name in names if ".lora_" in name],
    }
    return set(choices[method]())


def _without_encoder(network: Network) -> list[str]:
    """All weights that no memory depends on: a table that both sides read is the encoder's."""
    encoder = () if network.encoder is None else network.encoder.parameters()
    theirs = {id(weight) for weight in encoder}
    return [name for name, weight in network.named_parameters() if id(weight) not in theirs]


def new_weights(model: Model) -> list[str]:
    """Weights of a graft that its language model has not."""
    if model.base_path is None:
        raise UsageError(
            f"`method` 'new' trains what a graft added, and {model.name} is none; choose 'full', "
            "'decoder' or 'lora'."
        )
    base, placement = read_checkpoint(model.base_path, model.name), model.spec.decoder.placement
    theirs = {moved_name(name, placement) for name in base.weights}
    return [name for name, _ in model.network.named_parameters() if name not in theirs]


def optimiser(model: Model, training: Training) -> torch.optim.AdamW:
    """AdamW over what asks for gradients; matrices decay, and nothing else."""
    weights = [one for one in model.network.parameters() if one.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate,
        betas=training.betas,
    )


def rate_at(training: Training, step: int, steps: int) -> float:
    """Share of the learning rate in step ``step`` of ``steps``, from 0."""
    import math

    warm = min(1.0, (step + 1) / training.warmup) if training.warmup else 1.0
    if training.schedule == "constant":
        return warm
    if training.schedule == "inverse-sqrt":
        return warm * min(1.0, math.sqrt(max(1, training.warmup) / (step + 1)))
    done = min(1.0, max(0, step - training.warmup) / max(1, steps - training.warmup))
    if training.schedule == "linear":
        return warm * (1.0 - done)
    return warm * 0.5 * (1.0 + math.cos(math.pi * done))
