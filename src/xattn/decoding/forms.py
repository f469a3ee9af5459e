"""The form that the memories of one call are read in, where the caller leaves it open.

Only forms that lose nothing are chosen from, and only where they differ by float32's rounding
alone: with other numbers, tokens would depend on the form.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from xattn.costs import Cost, Rates, Reading, cost
from xattn.decoding.batch import plan
from xattn.decoding.request import Request
from xattn.decoding.settings import Settings
from xattn.models.network import Network, identity_of
from xattn.models.pins import Pins
from xattn.models.products import is_plain
from xattn.models.state import Projection
from xattn.spec import Form, is_narrow

EXACT: tuple[Form, ...] = ("materialized", "absorbed")
"""The forms that ``auto`` chooses from; of equally quick ones, the first."""

FEW_POSITIONS, POSITIONS_PER_STEP = 1024, 8
"""Below both of these, the second for each step to come, there is nothing to gain.

Projecting a position takes about as long as 0.006 steps of the whole decoder, whatever its size:
both grow with the layers and the square of the width.
"""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A form, and why it is that one."""

    form: Form
    why: str
    costs: tuple[Cost, ...] = ()
    """Of each form that was compared; none where nothing had to be."""


def choose(
    network: Network,
    requests: Sequence[Request],
    settings: Settings,
    rates: Callable[[], Rates],
    pins: Pins | None = None,
) -> Form:
    """The form for all memories of one call; ``rates`` are asked for only if they matter.

    Projections that are there already, pinned or given, say the form. Raises what decoding the
    requests would raise.
    """
    given = _projected(requests, pins)
    if given is not None:
        return given
    readings = readings_of(requests, settings)
    if not readings or obstacle_to_choice(network) is not None:
        return "materialized"
    steps = max(plan(network.spec, requests, settings).limits)
    return decide(network, readings, steps, rates).form


def decide(
    network: Network, readings: Sequence[Reading], steps: int, rates: Callable[[], Rates]
) -> Choice:
    """The form in which these memories are sooner read for ``steps`` tokens."""
    obstacle = obstacle_to_choice(network)
    if obstacle is not None:
        return Choice(form="materialized", why=obstacle)
    positions = sum(reading.positions for reading in readings)
    least = min(FEW_POSITIONS, POSITIONS_PER_STEP * steps)
    if positions < least:
        why = f"Fewer than {least} positions for {steps} steps: too short for a difference"
        return Choice(form="materialized", why=why)
    decoder, found = network.spec.decoder, rates()
    costs = tuple(cost(decoder, readings, form, found, steps=steps) for form in EXACT)
    best = min(costs, key=lambda one: one.seconds)
    return Choice(form=best.form, why=_because(*costs), costs=costs)


def obstacle_to_choice(network: Network) -> str | None:
    """Why there is but one form to choose, or None where there are two."""
    decoder = network.spec.decoder
    if decoder.cross_attention is None:
        return "The decoder has no cross-attention: it goes on from keys and values"
    if decoder.cross_attention.absorption_obstacle is not None:
        return f"Absorption is not exact: {decoder.cross_attention.absorption_obstacle}"
    if network.device.type != "cpu":
        return f"The model is on {network.device}, and rates are those of a CPU"
    if network.dtype != torch.float32:
        name = str(network.dtype).removeprefix("torch.")
        return f"In {name} the forms round differently, and tokens would depend on the form"
    for number, layer in enumerate(network.decoder.stack):
        if layer.crosses and not (is_plain(layer.reader.k) and is_plain(layer.reader.v)):
            return (
                f"Layer {number} does not project with plain weights (int8, or an adapter), and "
                "tokens would depend on the form"
            )
    return None


def readings_of(requests: Sequence[Request], settings: Settings) -> list[Reading]:
    """The distinct memories of these requests, each with those who share it."""
    positions: dict[str, int] = {}
    rows: Counter[str] = Counter()
    prompts: Counter[str] = Counter()
    tokens = 1 + (settings.prompt_lookup_num_tokens or 0)  # of each row, in one step
    for request in requests:
        for item in request.memories:
            if isinstance(item, Projection):
                continue
            name = identity_of(item)
            positions[name] = len(item)
            rows[name] += max(settings.num_beams, settings.num_return_sequences) * tokens
            prompts[name] += len(request.prompt)
    return [
        Reading(positions=count, rows=rows[name], prompt_tokens=prompts[name])
        for name, count in positions.items()
        if count
    ]


def _projected(requests: Sequence[Request], pins: Pins | None) -> Form | None:
    """The form in which most positions are projected already; None where none are."""
    found: Counter[Form] = Counter()
    for item in (item for request in requests for item in request.memories):
        if isinstance(item, Projection):
            found[item.form] += sum(map(len, item.memories))
        elif pins is not None:
            for form in pins.forms_of(item):
                if not is_narrow(form):
                    found[form] += len(item)
    return found.most_common(1)[0][0] if found else None


def _because(materialized: Cost, absorbed: Cost) -> str:
    """Both sides of the comparison, in words."""
    return (
        f"Materialized: {_ms(materialized.projection_seconds)} to project, then "
        f"{_ms(materialized.step_seconds)} a step, {_ms(materialized.seconds)} in all; absorbed: "
        f"{_ms(absorbed.step_seconds)} a step, {_ms(absorbed.seconds)} in all "
        f"({materialized.steps} steps)"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
