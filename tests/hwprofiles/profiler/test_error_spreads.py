"""A profile's own repeats say how sure it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprofiles.profiler.error_spreads import measured_errors
from hwprofiles.profiles.catalog import load_device
from hwprofiles.profiles.device import DecodePoint, Kernel

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
    assert found.common == 0.0
    assert not found.of_runs


def test_a_reference_that_moved_is_a_common_error() -> None:
    still, moved = (
        measured_errors(DEVICE.kernels, DEVICE.overheads, [1.0, 1.0 + by]).common
        for by in (0.0, 0.1)
    )
    assert still == 0.0
    assert moved == pytest.approx(0.1 / 1.128 * 2.563, rel=0.05)


def test_points_without_a_spread_say_nothing() -> None:
    kernel = with_spreads(DEVICE.kernels[0], None, None)
    assert measured_errors([kernel], DEVICE.overheads, [1.0, 1.0]).one_row is None
