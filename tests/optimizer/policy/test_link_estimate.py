"""Rate and round trip from crossings alone, outages and noise included."""

from __future__ import annotations

import random

import pytest

from optimizer.policy.link_estimate import WINDOW, LinkEstimate, observe

RTT_S = 0.04
RATE = 50_000.0


def crossing_s(num_bytes: int) -> float:
    return RTT_S + num_bytes / RATE


def test_two_sizes_give_rate_and_round_trip() -> None:
    estimate = LinkEstimate()
    for num_bytes in (2_000, 200, 200, 400):
        estimate = observe(estimate, num_bytes, crossing_s(num_bytes))
    assert estimate.rtt_s == pytest.approx(RTT_S)
    assert estimate.up_bytes_per_s == pytest.approx(RATE)
    assert estimate.expected_s(1_000) == pytest.approx(crossing_s(1_000))


def test_equal_sizes_leave_the_rate_unknown_but_not_the_crossing() -> None:
    estimate = LinkEstimate()
    for _ in range(10):
        estimate = observe(estimate, 200, crossing_s(200))
    assert estimate.up_bytes_per_s == float("inf")
    assert estimate.expected_s(200) == pytest.approx(crossing_s(200))


def test_the_rate_survives_steps_that_say_nothing_of_it() -> None:
    estimate = LinkEstimate()
    for num_bytes in (4_000, 200, 200, *[200] * (2 * WINDOW)):
        estimate = observe(estimate, num_bytes, crossing_s(num_bytes))
    assert estimate.up_bytes_per_s == pytest.approx(RATE)


def test_outages_move_neither_figure() -> None:
    rng = random.Random(0)
    estimate = LinkEstimate()
    for index in range(40):
        num_bytes = rng.choice((150, 300, 1_900))
        outage_s = 3.0 if index % 8 == 5 else 0.0
        estimate = observe(estimate, num_bytes, crossing_s(num_bytes) + outage_s)
    assert estimate.rtt_s == pytest.approx(RTT_S, rel=0.01)
    assert estimate.up_bytes_per_s == pytest.approx(RATE, rel=0.01)


def test_noise_is_in_what_is_usual_at_worst() -> None:
    rng = random.Random(1)
    estimate = LinkEstimate()
    for _ in range(WINDOW):
        num_bytes = rng.choice((150, 300, 1_900))
        estimate = observe(estimate, num_bytes, crossing_s(num_bytes) + rng.uniform(0, 0.02))
    assert estimate.up_bytes_per_s == pytest.approx(RATE, rel=0.2)
    assert RTT_S < estimate.rtt_s < estimate.late_s < RTT_S + 0.022
