"""A profile's own repeats say how sure it is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hwprofiles.profiler.error_spreads import measured_errors
from hwprofiles.profiles.catalog import load_device
from hwprofiles.profiles.device import DecodePoint, Kernel
from hwprofiles.profiles.errors import sd_of_spread

DEVICE = load_device("local-epyc-2core")


def with_spreads(kernel: Kernel, *spreads: float | None) -> Kernel:
    points = tuple(
        DecodePoint(working_set_bytes=float(1 + i), bytes_per_s=1e9, spread=spread)
        for i, spread in enumerate(spreads)
    )
    return replace(kernel, decode=replace(kernel.decode, points=points))


def test_the_spread_of_one_row_is_the_median_of_its_points() -> None:
    kernel = with_spreads(DEVICE.kernels[0], 0.02, None, 0.04, 0.3)
    found = measured_errors([kernel], DEVICE.overheads, [1.0, 1.0])
    assert found.one_row == 0.04
    assert found.common is not None
    assert not found.of_runs


def common_sd(*references: float) -> float:
    common = measured_errors(DEVICE.kernels, DEVICE.overheads, references).common
    assert common is not None
    return sd_of_spread(common)


def test_a_reference_that_moved_is_a_common_error_beside_the_usual_one() -> None:
    assert common_sd(1.0, 1.0) == pytest.approx(math.sqrt(4 * 0.03**2 / 5), rel=0.01)
    seen = math.log(1.3) / 1.128
    expected = math.sqrt((4 * 0.03**2 + seen**2) / 5)
    assert common_sd(1.0, 1.3) == pytest.approx(expected, rel=0.01)


def test_the_more_references_there_are_the_more_they_count() -> None:
    few = common_sd(1.0, 1.4)
    many = common_sd(1.0, 1.4, 1.0, 1.4, 1.0)
    seen = math.log(1.4) / 2.326
    assert few < 0.5 * math.log(1.4) / 1.128
    assert many == pytest.approx(math.sqrt((4 * 0.03**2 + 4 * seen**2) / 8), rel=0.01)


def test_points_without_a_spread_say_nothing() -> None:
    kernel = with_spreads(DEVICE.kernels[0], None, None)
    assert measured_errors([kernel], DEVICE.overheads, [1.0, 1.0]).one_row is None
