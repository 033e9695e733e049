"""What a profile's own measurements say of how sure predictions from it are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

from hwprofiles.profiler.parts import digits
from hwprofiles.profiles.device import Kernel, Overheads
from hwprofiles.profiles.errors import ErrorSpreads, spread_of_sd

# Expected range of n standard normal values. Source: Tippett, "On the extreme individuals and the
# range of samples taken from a normal population", Biometrika 17 (1925).
NORMAL_RANGES: Final = {2: 1.128, 3: 1.693, 4: 2.059, 5: 2.326}

# What a machine's speed usually differs by from one moment to the next, as a standard deviation of
# the logarithm; it counts like so many differences. Two references alone say little. Ours.
USUAL_DRIFT: Final = 0.03
USUAL_WEIGHT: Final = 4


def measured_errors(
    kernels: Sequence[Kernel], overheads: Overheads, references: Sequence[float]
) -> ErrorSpreads:
    """Spreads of repeats by kind of work: medians over the points of all kernels.

    references: seconds of one kernel before and after each pass, two at least. From one moment to
    the next all times of a machine change alike; their range says how much.
    """
    one = [point.spread for kernel in kernels for point in kernel.decode.points]
    many = [point.spread for kernel in kernels for point in kernel.batch.points]
    message = overheads.message_s
    logs = [math.log(seconds) for seconds in references[-max(NORMAL_RANGES) :]]
    seen = (max(logs) - min(logs)) / NORMAL_RANGES[len(logs)]
    number = len(logs) - 1
    squares = USUAL_WEIGHT * USUAL_DRIFT**2 + number * seen**2
    drift = math.sqrt(squares / (USUAL_WEIGHT + number))
    return ErrorSpreads(
        source="bench",
        one_row=_median(one),
        many_rows=_median(many),
        message=None if message is None else message.spread,
        common=digits(spread_of_sd(drift)),
    )


def _median(spreads: Sequence[float | None]) -> float | None:
    known = [spread for spread in spreads if spread is not None]
    return digits(statistics.median(known)) if known else None
