"""What the link does, estimated from the messages that cross it anyway: a pure function.

Model: a message of b bytes that had the link to itself took

    wire = rtt + b / rate + noise

so the slope of wire over b is 1 / rate, and the rest is the round trip. The slope is Theil and
Sen's estimator, the median of the slopes of all pairs (Sen 1968, "Estimates of the regression
coefficient based on Kendall's tau"). Up to 29 % of outliers, such as outages, do not move it. Only
pairs whose sizes differ enough count. While there are too few of them, the last slope stays. The
estimate uses a window of recent samples rather than a decaying sum: it forgets an outage after a
known number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

WINDOW: Final = 32
# Sizes closer than this share say nothing about the rate: the noise of a round trip is larger.
DISTINCT_SHARE: Final = 0.25
MIN_PAIRS: Final = 3
LATE_QUANTILE: Final = 0.8


class Crossing(NamedTuple):
    """One message and its answer: bytes up, and the seconds that neither side computed."""

    num_bytes: int
    wire_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEstimate:
    """Round trip in the median, a late round trip, and the uplink's rate, from the last crossings.

    `late_s` is the 80 % quantile of what a crossing takes beyond its bytes. `seconds_per_byte` is
    0 while the rate is unknown.
    """

    rtt_s: float = 0.0
    late_s: float = 0.0
    seconds_per_byte: float = 0.0
    crossings: tuple[Crossing, ...] = ()

    @property
    def up_bytes_per_s(self) -> float:
        """The uplink's rate; infinite while no message was slowed by its size."""
        return 1.0 / self.seconds_per_byte if self.seconds_per_byte > 0 else float("inf")

    def expected_s(self, num_bytes: float) -> float:
        """Seconds within which a message of `num_bytes` is usually answered."""
        return self.late_s + num_bytes * self.seconds_per_byte


def observe(estimate: LinkEstimate, num_bytes: int, wire_s: float) -> LinkEstimate:
    """The estimate with one more crossing. Leave out messages that queued behind others."""
    crossings = (*estimate.crossings, Crossing(num_bytes, wire_s))[-WINDOW:]
    sizes = np.array([crossing.num_bytes for crossing in crossings], dtype=np.float64)
    times = np.array([crossing.wire_s for crossing in crossings], dtype=np.float64)
    slope = _slope(sizes, times)
    if slope is None:
        slope = estimate.seconds_per_byte
    # A slope that explains more than the quickest crossing took is too steep.
    slope = min(slope, float((times / sizes).min()))
    rest_s = times - slope * sizes
    return LinkEstimate(
        rtt_s=float(np.median(rest_s)),
        late_s=float(np.quantile(rest_s, LATE_QUANTILE)),
        seconds_per_byte=slope,
        crossings=crossings,
    )


def _slope(sizes: Floats, times: Floats) -> float | None:
    """Median slope of the pairs with distinct sizes, at least 0; None when they are too few."""
    first, second = _pairs(len(sizes))
    by = sizes[second] - sizes[first]
    distinct = np.abs(by) > DISTINCT_SHARE * np.minimum(sizes[first], sizes[second])
    if np.count_nonzero(distinct) < MIN_PAIRS:
        return None
    slopes = (times[second] - times[first])[distinct] / by[distinct]
    return max(float(np.median(slopes)), 0.0)


@lru_cache(maxsize=WINDOW + 1)
def _pairs(count: int) -> tuple[Indices, Indices]:
    first, second = np.triu_indices(count, 1)
    return first, second
