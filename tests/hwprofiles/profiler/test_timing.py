"""Timing of calls: a kernel is measured once it has become as fast as it will."""

from __future__ import annotations

import pytest

from hwprofiles.profiler.timing import MOST_SETTLING, measure_settled


class Clock:
    """A clock that a call moves by the next of these seconds, the last one again and again."""

    def __init__(self, *seconds: float) -> None:
        self.now_s = 0.0
        self.num_calls = 0
        self._seconds = list(seconds)

    def __call__(self) -> float:
        return self.now_s

    def work(self) -> None:
        self.num_calls += 1
        self.now_s += self._seconds.pop(0) if len(self._seconds) > 1 else self._seconds[0]


def test_a_kernel_that_becomes_faster_is_measured_again() -> None:
    cold = [2.0] * 6 + [1.2] * 6  # a call to warm up, and five to measure
    clock = Clock(*cold, 1.0)
    assert measure_settled(clock.work, budget_s=5.0, clock=clock).seconds == pytest.approx(1.0)
    assert clock.num_calls == 4 * 6  # the third was faster still, the fourth was not


def test_a_steady_kernel_is_measured_twice_and_one_that_never_settles_not_for_ever() -> None:
    steady = Clock(1.0)
    assert measure_settled(steady.work, budget_s=5.0, clock=steady).seconds == pytest.approx(1.0)
    assert steady.num_calls == 2 * 6
    falling = Clock(*(0.99**index for index in range(1000)))
    measure_settled(falling.work, budget_s=1.0, clock=falling)
    assert falling.num_calls == (1 + MOST_SETTLING) * 6
