"""What a profile may say of a machine's lasting speed."""

from __future__ import annotations

import pytest

from hwprofiles.profiles.power import SustainedLoad


def load(peak: float, sustained: float) -> SustainedLoad:
    return SustainedLoad(
        source="bench",
        duration_s=60.0,
        peak_steps_per_s=peak,
        sustained_steps_per_s=sustained,
    )


@pytest.mark.parametrize(
    ("peak", "sustained", "share"), [(10, 8, 0.8), (10, 12, 1.0), (1, 0.01, 0.01)]
)
def test_the_share_that_lasts_is_at_most_all(peak: float, sustained: float, share: float) -> None:
    assert load(peak, sustained).share == pytest.approx(share)


@pytest.mark.parametrize(("peak", "sustained"), [(1e300, 1e-300), (1e300, 1e3), (100.0, 0.5)])
def test_a_speed_that_vanishes_is_a_wrong_figure(peak: float, sustained: float) -> None:
    with pytest.raises(ValueError, match="is less than 1% of peak_steps_per_s"):
        load(peak, sustained)
