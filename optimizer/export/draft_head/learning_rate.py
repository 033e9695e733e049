"""How the learning rate of a draft head goes: a linear warm-up, then a cosine to zero."""

from __future__ import annotations

import math
from typing import Final

WARM_UP_SHARE: Final = 0.05


def learning_rate_factor(share: float) -> float:
    """Factor on the learning rate. share: of all steps that are done, 0 to 1."""
    if share < WARM_UP_SHARE:
        return (share + 1e-3) / WARM_UP_SHARE
    return 0.5 * (1.0 + math.cos(math.pi * (share - WARM_UP_SHARE) / (1.0 - WARM_UP_SHARE)))
