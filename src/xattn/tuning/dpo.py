"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290), for models that attend.

Data are as TRL has them, with sources: ``{"source": …, "prompt": …, "chosen": …, "rejected": …}``.
A source is encoded once, and the policy reads the chosen and the rejected answer from one memory;
so did the reference, whose log-probabilities are taken before training begins, and kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from xattn.errors import UsageError
from xattn.model import Model
from xattn.tuning.batches import Batch, Item, batches, digest_of_items, prepared
from xattn.tuning.examples import Example, lines_of, object_of, sources_of, texts_of
from xattn.tuning.objectives import Lost, Paths, Remember
from xattn.tuning.recipe import Data, Preference
from xattn.tuning.teacher import Teacher
from xattn.tuning.whole import replacing

FIELDS = ("source", "sources", "prompt", "chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class Preferred:
    """An answer that is better than another."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same as a model reads it, and what the reference says of both."""

    chosen: Item
    rejected: Item
    reference: tuple[float, float] = (0.0, 0.0)
    """Log-probabilities of the chosen and the rejected answer."""

    @property
    def length(self) -> int:
        """Positions and tokens of both."""
        return self.chosen.length + self.rejected.length


def read_preferences(paths: Paths, base: Path, limit: int | None = None) -> list[Preferred]:
    """The preferences of files with a JSON object in each line.

    Raises :class:`UsageError` that names the file and line of one that is none.
    """
    names = [paths] if isinstance(paths, str) else list(paths)
    found: list[Preferred] = []
    for file in (base / Path(name).expanduser() for name in names):
        for number, line in enumerate(lines_of(file), 1):
            if line and (limit is None or len(found) < limit):
                found.append(_preferred(line, f"{file}, line {number}"))
    if not found:
        raise UsageError(f"{', '.join(names)}: there is no preference in it.")
    return found


def _preferred(line: str, where: str) -> Preferred:
    held = object_of(line, where, FIELDS, texts=("chosen", "rejected"))
    chosen = Example(
        sources=sources_of(held, where), target=held["chosen"], prompt=held.get("prompt")
    )
    return Preferred(chosen=chosen, rejected=replace(chosen, target=held["rejected"]))


def preference_loss(
    chosen_R: Tensor, rejected_R: Tensor, lengths_R2: Tensor, preference: Preference
) -> Tensor:
    """The loss of each pair, of how much likelier the policy finds both than the reference does.

    ``sigmoid`` is DPO's, with ``label_smoothing`` conservative DPO's (Mitchell 2023); ``ipo`` is
    Azar et al. 2023 (arXiv 2310.12036), of means over tokens as its authors and TRL take it;
    ``hinge`` is SLiC's (Zhao et al. 2023, arXiv 2305.10425).
    """
    if preference.length_normalised or preference.loss == "ipo":
        chosen_R, rejected_R = chosen_R / lengths_R2[:, 0], rejected_R / lengths_R2[:, 1]
    delta_R, beta, smooth = chosen_R - rejected_R, preference.beta, preference.label_smoothing
    if preference.loss == "ipo":
        return (delta_R - 1 / (2 * beta)) ** 2
    if preference.loss == "hinge":
        return F.relu(1 - beta * delta_R)
    return -(1 - smooth) * F.logsigmoid(beta * delta_R) - smooth * F.logsigmoid(-beta * delta_R)


class Preferences:
    """To prefer one answer to another."""

    sees = ("margin", "accuracy", "kl")

    def __init__(self, preference: Preference) -> None:
        self.preference = preference

    def read(self, paths: Paths, base: Path, limit: int | None) -> list[Preferred]:
        """See :func:`read_preferences`."""
        return read_preferences(paths, base, limit)

    def texts(self, examples: Sequence[Preferred]) -> list[str]:
        """Of both answers."""
        return list(texts_of([one for p in examples for one in (p.chosen, p.rejected)]))

    def items(self, model: Model, examples: Sequence[Preferred], data: Data) -> list[Pair]:
        """Pairs both of whose answers fit."""
        both = [one for example in examples for one in (example.chosen, example.rejected)]
        made = prepared(model, both, most_source=data.most_source, most_target=data.most_target)
        found = [
            Pair(chosen=chosen, rejected=rejected)
            for chosen, rejected in zip(made[::2], made[1::2], strict=True)
            if chosen is not None and rejected is not None
        ]
        if not found:
            raise UsageError(
                f"all {len(examples)} pairs are longer than `most_source` ({data.most_source}) or "
                f"`most_target` ({data.most_target})."
            )
        return found

    def digest(self, items: Sequence[Pair]) -> str:
        """Of sources and both answers."""
        return digest_of_items([one for pair in items for one in (pair.chosen, pair.rejected)])

    def weight(self, items: Sequence[Pair]) -> int:
        """Pairs."""
        return len(items)

    def loss(self, teacher: Teacher, items: Sequence[Pair], remember: Remember) -> Lost:
        """The sum over pairs; ``kl`` is how far the policy is from the reference on what it reads.

        That is a mean over the tokens of both answers of the difference in log-probability.
        """
        policy_2R = self.logprobs(teacher, items, remember)
        reference_R2 = torch.tensor([pair.reference for pair in items], device=policy_2R.device)
        if self.preference.reference_free:
            reference_R2 = torch.zeros_like(reference_R2)
        lengths_R2 = torch.tensor(
            [(pair.chosen.learnt, pair.rejected.learnt) for pair in items], device=policy_2R.device
        )
        ratios_2R = policy_2R - reference_R2.T
        losses = preference_loss(ratios_2R[0], ratios_2R[1], lengths_R2, self.preference)
        with torch.no_grad():
            margin_R = self.preference.beta * (ratios_2R[0] - ratios_2R[1])
            seen = {
                "margin": margin_R.sum(),
                "accuracy": (margin_R > 0).float().sum(),
                "kl": (ratios_2R.sum(dim=0) / lengths_R2.sum(dim=1)).abs().sum(),
            }
        return Lost(losses.sum(), seen)

    def logprobs(self, teacher: Teacher, items: Sequence[Pair], remember: Remember) -> Tensor:
        """Log-probabilities of chosen and rejected answers ``[2, R]``, in one pass.

        Both are read from one memory.
        """
        memories = remember(Batch(items=tuple(pair.chosen for pair in items)))
        rows = [pair.chosen for pair in items] + [pair.rejected for pair in items]
        batch = Batch(items=tuple(rows))
        found_R: Tensor = teacher(
            [*memories, *memories], batch.tokens_RT, batch.targets_RT, by_row=True
        )
        return found_R.view(2, len(items))

    @torch.no_grad()
    def with_reference(
        self, teacher: Teacher, pairs: Sequence[Pair], most_tokens: int, remember: Remember
    ) -> Iterator[Pair]:
        """The pairs, with what the model as it is now says of them."""
        placed = {id(pair): n for n, pair in enumerate(pairs)}
        found: dict[int, Pair] = {}
        for some in batches(pairs, most_tokens, 0):
            both_2R = self.logprobs(teacher, some, remember)
            for pair, (chosen, rejected) in zip(some, both_2R.T.tolist(), strict=True):
                found[placed[id(pair)]] = replace(pair, reference=(chosen, rejected))
        return (found[n] for n in range(len(pairs)))


REFERENCE = "logprobs.safetensors"


def read_reference(directory: Path, digest: str) -> list[tuple[float, float]] | None:
    """What :func:`write_reference` kept of these pairs; None where it kept none, or others'."""
    path = directory / REFERENCE
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as held:
        if (held.metadata() or {}).get("pairs") != digest:
            return None
        return [(chosen, rejected) for chosen, rejected in held.get_tensor("logprobs_N2").tolist()]


def write_reference(directory: Path, digest: str, pairs: Sequence[Pair]) -> None:
    """Keep what the reference says of pairs; raises :class:`SaveError`."""
    numbers = torch.tensor([pair.reference for pair in pairs], dtype=torch.float64)
    with replacing(directory) as new:
        save_file({"logprobs_N2": numbers}, new / REFERENCE, {"pairs": digest})
