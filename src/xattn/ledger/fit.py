"""The inverse: how much fits into so many bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from xattn.errors import AbsorptionError, UsageError, is_whole, require
from xattn.ledger.amounts import MOST_COUNT, Amount
from xattn.ledger.plan import plan
from xattn.spec import FORMS, Form, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What fits in one form, each with the others as they were asked for.

    A number is 0 where not even one fits, and None where as many fit as may be asked for: what
    bounds it is not memory.
    """

    form: Form
    batch: int | None
    """Requests."""
    beams: int | None
    sources: Mapping[str, int | None]
    """Documents, tables, recordings or pictures of the size that was asked for."""


def fit(
    spec: ModelSpec, inputs: Mapping[str, Any], budget_bytes: int, **settings: Any
) -> list[Fit]:
    """The largest batch, number of beams and number of sources that fit, for each exact form.

    They are requests to an engine, which takes no more at a time. ``settings`` are those of
    :func:`plan`, but for ``form``: all are tried, and those that are not exact for this decoder
    left out. A kind of input has one amount here. Weights and workspace count.
    """
    require(is_whole(budget_bytes, 1), "budget_bytes", "at least 1", budget_bytes)
    if "form" in settings:
        raise UsageError("`form` must be left out: what fits is said for each.")
    asked = plan(spec, inputs, **settings)
    # int8 is a form of its own, and all forms are tried.
    settings |= {"dtype": asked.setting.dtype, "weights_dtype": asked.setting.weights_dtype}
    amounts: dict[str, Amount] = {one.kind: one for one in asked.amounts}
    single = len(amounts) == len(asked.amounts)
    require(single, "inputs", "one amount of each kind, to say how many fit", inputs)
    found = []
    for form in FORMS:
        try:
            found.append(_in_form(spec, amounts, budget_bytes, {**settings, "form": form}))
        except AbsorptionError:
            continue
    return found


def _in_form(
    spec: ModelSpec, amounts: Mapping[str, Amount], budget: int, settings: dict[str, Any]
) -> Fit:
    def fits(inputs: Mapping[str, Amount] = amounts, **changed: Any) -> bool:
        return plan(spec, inputs, **{**settings, **changed}, engine=True).total_bytes <= budget

    def sources_fit(kind: str, count: int) -> bool:
        return fits({**amounts, kind: replace(amounts[kind], count=count)})

    return Fit(
        form=settings["form"],
        batch=_largest(lambda n: fits(batch=n)),
        beams=_largest(lambda n: fits(beams=n)),
        sources={
            kind: _largest(partial(sources_fit, kind), MOST_COUNT // amount.pieces)
            for kind, amount in amounts.items()
        },
    )


def _largest(fits: Callable[[int], bool], most: int = MOST_COUNT) -> int | None:
    """The largest number that fits, where more never fits better; 0 for none, None where even
    ``most`` fits."""
    low, high = 0, 1
    while high < most and fits(high):
        low, high = high, min(2 * high, most)
    if high == most and fits(most):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
