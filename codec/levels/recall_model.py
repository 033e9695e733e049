"""What a split's rows share with the earlier rows of their session that they resemble.

Tables of this form are fitted by `optimizer.export.calibration.recall_fit` and used by
`codec.levels.recalled`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from codec.arrays import F32, U8, Arrays
from codec.errors import TablesError
from codec.session_rows import LONGEST_CONTEXT

SHARE_ONE: Final = 256  # shares are whole numbers of this part


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallModel:
    """What a split's rows share with those that they resemble; all calibrated levels share it.

    shares: [4, D] uint8, a in 256ths for contexts of 1 to 4 tokens. left: [5, D], rms of y beside
    an exact row times its share, for contexts of 0 (all of y) to 4. power: [4, D], rms of those
    earlier rows. unit: of held values.
    """

    shares: U8
    left: F32
    power: F32
    unit: float

    @classmethod
    def of(cls, arrays: Arrays, hidden_size: int) -> RecallModel | None:
        """From a tables file's arrays; None: it has none. Raises KeyError and TablesError."""
        if "recall.shares" not in arrays:
            return None
        unit = arrays["recall.unit"]
        model = cls(
            shares=arrays["recall.shares"],
            left=arrays["recall.left"],
            power=arrays["recall.power"],
            unit=float(unit[0]) if unit.shape == (1,) else 0.0,
        )
        fits = (
            model.shares.shape == model.power.shape == (LONGEST_CONTEXT, hidden_size)
            and model.left.shape == (LONGEST_CONTEXT + 1, hidden_size)
            and model.shares.dtype == np.uint8
        )
        if not fits or not model.unit > 0:
            raise TablesError(f"recall tables do not fit a hidden size of {hidden_size}")
        return model

    def arrays(self) -> Arrays:
        """The arrays, as a tables file holds them."""
        return {
            "recall.shares": self.shares,
            "recall.left": self.left,
            "recall.power": self.power,
            "recall.unit": np.array([self.unit], dtype=np.float32),
        }
