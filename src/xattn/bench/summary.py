"""Figures from rounds: medians, spreads, ratios, straight lines."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """A median, and where the middle eight tenths lie."""

    median: float
    p10: float
    p90: float


class Line(NamedTuple):
    """``y = intercept + slope x``, and how much of the variance it explains."""

    intercept: float
    slope: float
    r_squared: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    p10, middle, p90 = np.percentile(values, (10, 50, 90))
    return Spread(float(middle), float(p10), float(p90))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The ratio of the medians; the spread is that of the ratios within each round."""
    each = [a / b for a, b in zip(numerators, denominators, strict=True)]
    _, p10, p90 = spread(each)
    return Spread(float(np.median(numerators) / np.median(denominators)), p10, p90)


def straight_line(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """Least squares, weighted so that every point counts by its relative error."""
    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    slope, intercept = np.polyfit(x, y, 1, w=1.0 / y)
    residual = (y - (intercept + slope * x)) / y
    total = (y - np.average(y, weights=1.0 / y**2)) / y
    return Line(float(intercept), float(slope), float(1 - (residual**2).sum() / (total**2).sum()))
