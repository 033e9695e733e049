"""Predicted beside measured, with a verdict: one function for every table of that kind.

The error of one pair is predicted / measured - 1, as everywhere in this project. A prediction held
where the median error over all pairs is within `HELD`, and nearly held within `NEAR`. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from optimizer.artifacts.prediction import PredictedRange

HELD: Final = 0.10
NEAR: Final = 0.20

Verdict = Literal["held", "nearly", "missed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedFigure:
    """One figure of one or many measurements.

    predicted: the median of the predictions. p10, p50, p90: quantiles of what was measured. error:
    the median of predicted / measured - 1. held_share: the share of pairs within `HELD`.
    predicted_p10, predicted_p90: medians of the predictions' quantiles. covered_share: the share of
    pairs measured within the prediction's p5 and p95, which is 90 % where the errors are known
    well. None where the predictions have no quantiles.
    """

    figure: str
    unit: str
    count: int
    predicted: float
    p10: float
    p50: float
    p90: float
    error: float
    held_share: float
    predicted_p10: float | None = None
    predicted_p90: float | None = None
    covered_share: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the prediction held."""
        return verdict_of(self.error)


def error_of(predicted: float, measured: float) -> float:
    """By how much a prediction is off, as a share of what was measured; measured is above 0."""
    return predicted / measured - 1


def verdict_of(error: float) -> Verdict:
    """What an error means."""
    if abs(error) <= HELD:
        return "held"
    return "nearly" if abs(error) <= NEAR else "missed"


def compared(
    figure: str, unit: str, ranges: Sequence[PredictedRange], measured: Sequence[float]
) -> ComparedFigure:
    """Pairs of one figure, of which there is at least one; every measured value is above 0. A
    range without a width is a prediction of which nobody knows how sure it is."""
    predicted = [item.p50 for item in ranges]
    errors = [error_of(*pair) for pair in zip(predicted, measured, strict=True)]
    is_known = all(item.p10 < item.p90 for item in ranges)
    covered = [item.covers(value) for item, value in zip(ranges, measured, strict=True)]
    p10, p50, p90 = np.quantile(measured, (0.1, 0.5, 0.9))
    return ComparedFigure(
        figure=figure,
        unit=unit,
        count=len(errors),
        predicted=float(np.median(predicted)),
        p10=float(p10),
        p50=float(p50),
        p90=float(p90),
        error=float(np.median(errors)),
        held_share=sum(abs(error) <= HELD for error in errors) / len(errors),
        predicted_p10=float(np.median([item.p10 for item in ranges])) if is_known else None,
        predicted_p90=float(np.median([item.p90 for item in ranges])) if is_known else None,
        covered_share=sum(covered) / len(covered) if is_known else None,
    )
