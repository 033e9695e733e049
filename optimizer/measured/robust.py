"""Factors from pairs of measured and predicted seconds. A tenth of wild values moves none of them.

One factor is the median of measured over predicted. Where the predictions are made of two parts, a
line is fitted: measured / first = f + a * (second / first). Its slope is Theil and Sen's estimator,
the median of the slopes of all pairs (Sen 1968, "Estimates of the regression coefficient based on
Kendall's tau"), and f the median of what is left.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

# Two parts are told apart only where their proportion varies by this much of the whole.
LEAST_SPREAD: Final = 0.15
# Few samples, and parts whose factors would be far from each other, are no evidence of two.
LEAST_SAMPLES: Final = 30
MOST_APART: Final = 5.0
# All pairs of more samples than this take long; evenly chosen ones say the same.
MOST_SAMPLES: Final = 400


class TwoFactors(NamedTuple):
    """What the two parts of a prediction have to be multiplied by."""

    first: float
    second: float


def median_ratio(measured: Values, predicted: Values) -> float:
    """The median of measured over predicted; predicted is above 0 everywhere."""
    return float(np.median(measured / predicted))


def spread_of(ratios: Values) -> float:
    """(p90 - p10) / median, as in a device profile."""
    low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
    return float((high - low) / middle) if middle > 0 else 0.0


def two_factors(measured: Values, first: Values, second: Values) -> TwoFactors:
    """Factors of both parts, [N] each; one for both where they cannot be told apart."""
    together = median_ratio(measured, first + second)
    shares = second / (first + second)
    low, high = np.quantile(shares, (0.05, 0.95))
    if len(measured) < LEAST_SAMPLES or high - low < LEAST_SPREAD:
        return TwoFactors(together, together)
    chosen = np.argsort(shares, kind="stable")
    if len(chosen) > MOST_SAMPLES:
        chosen = chosen[np.linspace(0, len(chosen) - 1, MOST_SAMPLES).astype(np.intp)]
    x, y = (second / first)[chosen], (measured / first)[chosen]
    left, right = np.triu_indices(len(x), 1)
    apart = x[right] - x[left]
    distinct = apart > LEAST_SPREAD / 2 * np.maximum(x[right], 1e-12)
    if not distinct.any():
        return TwoFactors(together, together)
    slope = float(np.median((y[right] - y[left])[distinct] / apart[distinct]))
    rest = float(np.median(y - slope * x))
    if slope <= 0 or rest <= 0 or not 1 / MOST_APART <= slope / rest <= MOST_APART:
        return TwoFactors(together, together)
    return TwoFactors(rest, slope)
