"""What a refined profile is still off by: the spread of what was measured over what it predicts.

The residuals of real runs hold everything: noise, drift and what the formulas leave out. So
predictions from a refined profile have these errors, and no assumed ones beside them
(`optimizer.cost.uncertainty`). Ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.errors import ErrorKind, ErrorSpreads
from hwprofiles.profiles.scaled import REFINED
from optimizer.measured.record import MeasuredGeneration
from optimizer.measured.refiner import LEAST_OBSERVATIONS, RefinedFactor, predicted_peak_bytes
from optimizer.measured.robust import spread_of

# The answers of an hour are more alike than those of a month.
LEAST_SPREAD: Final = 0.05
KIND_OF_FACTOR: Final[Mapping[str, ErrorKind]] = {
    "front, one row": "one_row",
    "back, one row": "one_row",
    "front, prompts": "many_rows",
    "back, several rows": "many_rows",
    "watts": "power",
}


def errors_of(
    factors: Sequence[RefinedFactor],
    profile: DeviceProfile,
    generations: Sequence[MeasuredGeneration],
) -> ErrorSpreads:
    """The errors of a profile that was refined with these factors.

    Of several precisions the largest spread counts. A kind of work that was not observed has none,
    and predictions then assume what they do of any profile.
    """
    found: dict[ErrorKind, float] = {}
    for item in factors:
        kind = next((k for name, k in KIND_OF_FACTOR.items() if item.factor.startswith(name)), None)
        if kind is not None and item.ratio is not None and item.spread is not None:
            found[kind] = max(found.get(kind, LEAST_SPREAD), item.spread)
    return ErrorSpreads(
        source=REFINED,
        one_row=found.get("one_row"),
        many_rows=found.get("many_rows"),
        power=found.get("power"),
        memory=_memory_spread(profile, generations),
        of_runs=True,
    )


def _memory_spread(
    profile: DeviceProfile, generations: Sequence[MeasuredGeneration]
) -> float | None:
    """Of measured over predicted peaks, in processes that hold nothing else."""
    ratios = [
        item.peak_memory_bytes / predicted_peak_bytes(profile, item)
        for item in generations
        if item.program == "run"
    ]
    return spread_of(np.array(ratios)) if len(ratios) >= LEAST_OBSERVATIONS else None
