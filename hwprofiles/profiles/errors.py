"""How far what is predicted from a device profile is from what is measured, by kind of work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

ErrorKind = Literal["one_row", "many_rows", "message", "memory", "power", "common"]
Z90: Final = 1.2815515655446004  # the 90 % quantile of the standard normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSpreads:
    """Spreads, (p90 - p10) / median as everywhere in a profile. None: not known.

    one_row: steps of one row. many_rows: prompts and batches. message: the network stack and the
    wake-ups of waiting threads. memory: a process. power: energy at given times. common: all times
    of the machine alike, from one moment to the next. of_runs: they are of real runs' measured over
    predicted, so that they hold what the formulas leave out; otherwise of repeats of the profile's
    own measurements.
    """

    source: str
    one_row: float | None = None
    many_rows: float | None = None
    message: float | None = None
    memory: float | None = None
    power: float | None = None
    common: float | None = None
    of_runs: bool = False

    def spread_of(self, kind: ErrorKind) -> float | None:
        """The spread of one kind of work."""
        found: float | None = getattr(self, kind)
        return found


def sd_of_spread(spread: float) -> float:
    """Standard deviation of the logarithm of a log-normal figure with this spread."""
    return math.asinh(spread / 2) / Z90


def spread_of_sd(sd: float) -> float:
    """The inverse."""
    return 2 * math.sinh(Z90 * sd)
