"""What widening a frame's float16 values does with those that are no numbers."""

from __future__ import annotations

import numpy as np

from codec.arrays import widened


def test_every_float16_widens_to_its_value_without_a_warning() -> None:
    """Signalling NaNs too, which Arm processors report (`make test-arm64`)."""
    halves = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    with np.errstate(invalid="raise"):
        wide = widened(halves)
    assert wide.dtype == np.float32
    numbers = np.isfinite(halves)
    assert np.array_equal(wide[numbers].astype(np.float64), halves[numbers].astype(np.float64))
    assert np.array_equal(np.isnan(wide), np.isnan(halves))
