"""The inverse: how much fits into so many bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xattn.errors import AbsorptionError, is_whole, require
from xattn.ledger.amounts import MOST_COUNT, amount_of
from xattn.ledger.plan import plan
from xattn.spec import FORMS, Form, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What fits in one form, each with the others as they were asked for."""

    form: Form
    batch: int
    """Requests; 0 where not even one fits."""
    beams: int
    sources: Mapping[str, int]
    """Sources of each kind, of the size that was asked for."""


def fit(
    spec: ModelSpec, inputs: Mapping[str, Any], budget_bytes: int, **settings: Any
) -> list[Fit]:
    """The largest batch, number of beams and number of sources that fit, for each exact form.

    ``settings`` are those of :func:`plan`; ``form`` is not among them. Forms that are not exact for
    this decoder are left out. Weights and workspace count.
    """
    require(is_whole(budget_bytes, 1), "budget_bytes", "at least 1", budget_bytes)
    found = []
    for form in FORMS:
        try:
            found.append(_in_form(spec, inputs, budget_bytes, {**settings, "form": form}))
        except AbsorptionError:
            continue
    return found


def _in_form(
    spec: ModelSpec, inputs: Mapping[str, Any], budget: int, settings: dict[str, Any]
) -> Fit:
    def total(**changed: Any) -> int:
        return plan(spec, changed.pop("inputs", inputs), **{**settings, **changed}).total_bytes

    batch = _largest(lambda n: total(batch=n) <= budget)
    beams = _largest(lambda n: total(beams=n) <= budget)
    sources = {}
    for kind, given in inputs.items():
        positions = amount_of(spec, kind, given).positions
        sources[kind] = _largest(_counted(total, inputs, kind, positions, budget))
    return Fit(form=settings["form"], batch=batch, beams=beams, sources=sources)


def _counted(
    total: Callable[..., int], inputs: Mapping[str, Any], kind: str, positions: int, budget: int
) -> Callable[[int], bool]:
    """Whether so many sources of a kind fit, the others being as they are."""
    return lambda count: total(inputs={**inputs, kind: (count, positions)}) <= budget


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, where more never fits better; 0 for none."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= MOST_COUNT and fits(high):
        low, high = high, 2 * high
    high = min(high, MOST_COUNT + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
