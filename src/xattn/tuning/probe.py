"""Which of a trained model's layers need cross-attention: found without training.

Three answers, side by side. **Skip and measure**: the layer whose absence costs least is left out,
then of the rest the next, and so on; each time all are tried (backward elimination). **Entropy**:
how widely a layer reads; one that reads everything alike tells nothing of places. **Size**: how
much what it reads changes the residual that it is added to, gates included.

Axes: L layers, R rows, T tokens, A heads, S positions, H heads, K head width, D model width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from xattn.errors import UsageError, require
from xattn.memory import Memory
from xattn.model import Model
from xattn.models.decoder import DecoderLayer
from xattn.tuning.batches import Batch, prepare
from xattn.tuning.examples import Example
from xattn.tuning.scoring import METRICS, Metric, better, score
from xattn.tuning.teacher import Teacher

Measure = Metric | Literal["loss"]
"""A score of answers, or the mean cross-entropy of the truth's tokens, which needs no answers."""

SPARE_TOKENS = 16
"""That an answer may have beyond twice the truth's: one that goes astray need not go on."""
LOOKED_AT = 32
"""Examples that entropies and sizes are means over, at most."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is left when some layers do without cross-attention."""

    layers: tuple[int, ...]
    """That still cross-attend."""
    score: float
    bytes_per_position: int
    """Of keys and values of a memory, all layers that are left."""
    left_out: int | None = None
    """The layer that was left out last."""
    tried: dict[int, float] = field(default_factory=dict)
    """Scores with each of the others left out instead."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer, as it is in the whole model."""

    layer: int
    alone: float
    """The score with this one alone left out."""
    entropy: float
    """Mean over heads and tokens of the attention's entropy, as a share of the largest there is."""
    size: float | None
    """Root mean square of what cross-attention adds, over that of what it is added to; None where
    it is merged with self-attention."""
    gate: float | None = None
    """How far its gate is open, from 0 to 1; None without a gate."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was found."""

    model: str
    metric: Measure
    examples: int
    curve: tuple[Kept, ...]
    """From all layers to none."""
    layers: tuple[Layer, ...]

    @property
    def ranked(self) -> list[int]:
        """Layers, those that can be missed first."""
        order = [kept.left_out for kept in self.curve if kept.left_out is not None]
        return [*order, *self.curve[-1].layers]


def probe(
    model: Model,
    examples: Sequence[Example],
    metric: Measure,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Probe:
    """Leave out cross-attention layer by layer, and score what the model still says of examples.

    Each source is encoded once. Raises :class:`UsageError` for a model without cross-attention.
    """
    layers = crossing(model)
    if not layers:
        raise UsageError(f"{model.name} has no layer with cross-attention.")
    known = ("loss", *METRICS)
    require(metric in known, "metric", f"one of {', '.join(known)}", metric)
    require(len(examples) > 0, "examples", "at least one", len(examples))
    sources = [model.remembered(model.prepare_batch(list(one.sources))) for one in examples]

    def scored(left_out: Sequence[int]) -> float:
        with leaving_out(model, left_out):
            if metric == "loss":
                return _loss(model, examples, sources)
            return _score(model, examples, sources, metric)

    whole = scored(())
    say(f"all {len(layers)} layers: {whole:.2f}")
    curve = [Kept(layers=tuple(layers), score=whole, bytes_per_position=_bytes(model, layers))]
    gone: list[int] = []
    while len(gone) < len(layers):
        tried = {one: scored([*gone, one]) for one in layers if one not in gone}
        best = min(tried, key=lambda one: (_worse(metric, tried[one]), one))
        gone.append(best)
        left = tuple(one for one in layers if one not in gone)
        say(f"without {gone}: {tried[best]:.2f}")
        curve.append(
            Kept(
                layers=left,
                score=tried[best],
                bytes_per_position=_bytes(model, left),
                left_out=best,
                tried=tried,
            )
        )
    entropies, sizes = looked_at(model, examples[:LOOKED_AT], sources[:LOOKED_AT])
    return Probe(
        model=model.name,
        metric=metric,
        examples=len(examples),
        curve=tuple(curve),
        layers=tuple(
            Layer(
                layer=one,
                alone=curve[1].tried[one],
                entropy=entropies[one],
                size=sizes.get(one),
                gate=_gate(model, one),
            )
            for one in layers
        ),
    )


def crossing(model: Model) -> list[int]:
    """The layers that cross-attend."""
    return [layer.index for layer in model.network.decoder.stack if layer.crosses]


@contextmanager
def leaving_out(model: Model, layers: Sequence[int]) -> Iterator[None]:
    """While it lasts these layers do without cross-attention: it is neither projected nor read."""
    network, chosen = model.network, set(layers)
    skipped = [one for one in network.decoder.stack if one.index in chosen]
    strange = chosen - set(crossing(model))
    require(not strange, "layers", f"of {crossing(model)}", sorted(strange))
    try:
        for one in skipped:
            one.crosses = False
        network.describe_again()
        yield
    finally:
        for one in skipped:
            one.crosses = True
        network.describe_again()


@torch.no_grad()
def looked_at(
    model: Model, examples: Sequence[Example], sources: Sequence[Sequence[Memory]]
) -> tuple[dict[int, float], dict[int, float]]:
    """Of each layer that cross-attends, the entropy of its attention and the size of its output."""
    entropies: dict[int, list[float]] = {one: [] for one in crossing(model)}
    sizes: dict[int, list[float]] = {}
    for example, memories in zip(examples, sources, strict=True):
        tokens_1T = _fed(model, example, memories)
        network = model.network
        state = network.start([memories])
        positions = sum(map(len, memories))
        for layer, _, shares in network.shares_read(tokens_1T, state, network.reading_heads):
            share_TAS = torch.cat(shares, dim=-1).double()
            share_TAS = share_TAS / share_TAS.sum(dim=-1, keepdim=True).clamp(min=1e-12)
            nats = -(share_TAS * share_TAS.clamp(min=1e-12).log()).sum(dim=-1).mean()
            largest = torch.tensor(max(2, positions), dtype=torch.double).log()
            entropies[layer].append(float(nats / largest))
        for layer, size in _sizes(model, tokens_1T, memories).items():
            sizes.setdefault(layer, []).append(size)
    return (
        {one: sum(found) / len(found) for one, found in entropies.items()},
        {one: sum(found) / len(found) for one, found in sizes.items()},
    )


def _sizes(model: Model, tokens_1T: Tensor, memories: Sequence[Memory]) -> dict[int, float]:
    """How much each layer's cross-attention changes the residual; none where it is merged."""
    found: dict[int, float] = {}
    network = model.network
    watched = [one for one in network.decoder.stack if one.crosses and not one.merges]

    def seen(layer: DecoderLayer) -> Callable[..., Tensor]:
        cross = layer._cross

        def watching(x_RTD: Tensor, *others: Any) -> Tensor:
            after_RTD = cross(x_RTD, *others)
            found[layer.index] = _size(after_RTD - x_RTD) / max(_size(x_RTD), 1e-12)
            return after_RTD

        return watching

    for layer in watched:
        vars(layer)["_cross"] = seen(layer)
    try:
        network.decoder.hidden(tokens_1T, network.start([memories]))
    finally:
        for layer in watched:
            del vars(layer)["_cross"]
    return found


def _gate(model: Model, layer: int) -> float | None:
    [gate] = [one.cross_gate for one in model.network.decoder.stack if one.index == layer]
    return None if gate is None else float(gate.detach().tanh().abs())


def _size(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


def _fed(model: Model, example: Example, memories: Sequence[Memory]) -> Tensor:
    """The truth, as the decoder would have read it."""
    prompt = list(_start(model, example, memories))
    return torch.tensor([[*prompt, *model.tokenizer.encode_plain(example.target).ids]])


def _start(model: Model, example: Example, memories: Sequence[Memory]) -> Sequence[int]:
    if model.spec.encoder is None:
        return model.tokenizer.encode(example.prompt or "").ids
    return model.start_tokens(memories[0])


def _score(
    model: Model,
    examples: Sequence[Example],
    sources: Sequence[Sequence[Memory]],
    metric: Metric,
) -> float:
    answers = []
    for example, memories in zip(examples, sources, strict=True):
        most = 2 * len(model.tokenizer.encode_plain(example.target).ids) + SPARE_TOKENS
        answer = model.generate(list(memories), example.prompt, max_new_tokens=most)
        answers.append(answer.text)
    return score(metric, answers, [example.target for example in examples])


@torch.no_grad()
def _loss(model: Model, examples: Sequence[Example], sources: Sequence[Sequence[Memory]]) -> float:
    """Of a token, in nats."""
    lost, learnt, teacher = 0.0, 0, Teacher(model.network).eval()
    for example, memories in zip(examples, sources, strict=True):
        items = prepare(model, [example], most_source=2**20, most_target=2**20).items
        batch = Batch(items=items)
        lost += float(teacher([memories], batch.tokens_RT, batch.targets_RT))
        learnt += items[0].learnt
    return lost / learnt


def _bytes(model: Model, layers: Sequence[int]) -> int:
    """Of a position, where these layers read it."""
    decoder = model.spec.decoder
    if not decoder.placement.count:
        return 0
    each = decoder.cross_bytes(1) // max(1, decoder.placement.projections)
    return each * (min(len(layers), 1) if decoder.placement.shared else len(layers))


def _worse(metric: Measure, value: float) -> float:
    """The larger, the worse."""
    return value if metric == "loss" or better(metric, 0.0, 1.0) else -value
