"""What a round costs, learned from rounds: each part finds the value behind the steps."""

from __future__ import annotations

import pytest

from edge.draft.round_estimator import ROW_SHARE, CloudTime, FadingMean, RoundEstimator
from tests.edge.generation.steps import step_trace


def test_a_mean_begins_with_its_first_value_and_follows_slowly() -> None:
    mean = FadingMean()
    assert mean.value == 0.0
    mean.add(10.0)
    assert mean.value == 10.0
    mean.add(0.0)
    assert mean.value == pytest.approx(9.0)


def test_the_clouds_time_is_a_line_through_frames_of_different_sizes() -> None:
    cloud = CloudTime()
    assert (cloud.row_s, cloud.step_s()) == (0.0, 0.0)
    for turn in range(200):
        num_rows = 1 + 6 * (turn % 2)
        cloud.add(num_rows, 0.004 + 0.001 * num_rows)
    assert cloud.row_s == pytest.approx(0.001, rel=0.1)
    assert cloud.step_s(1) == pytest.approx(0.005, rel=0.1)
    assert cloud.step_s(7) == pytest.approx(0.011, rel=0.1)


def test_while_all_frames_have_one_size_a_row_costs_a_share_of_the_step() -> None:
    cloud = CloudTime()
    for _ in range(50):
        cloud.add(1, 0.01)
    assert cloud.row_s == pytest.approx(ROW_SHARE * 0.01)


def test_nothing_is_known_before_the_first_answer() -> None:
    estimator = RoundEstimator()
    assert not estimator.is_known
    estimator.answered(step_trace(), 0.0, alone=True, guess_s=0.0)
    assert estimator.is_known


def test_the_drafters_time_is_no_part_of_a_row() -> None:
    estimator = RoundEstimator()
    estimator.guessed(0.5)
    trace = step_trace(num_rows=2, front_s=0.9, encode_s=0.1)
    estimator.answered(trace, 0.0, alone=True, guess_s=0.6)
    assert estimator.times.edge_row_s == pytest.approx(0.2)
    assert estimator.times.guess_s == 0.5


def test_a_frame_ahead_waits_for_its_own_session_which_is_no_queue() -> None:
    for ahead, expected_s in ((False, 0.034), (True, 0.004)):
        estimator = RoundEstimator()
        trace = step_trace(cloud_queue_s=0.03, ahead=ahead)
        estimator.answered(trace, 0.0, alone=False, guess_s=0.0)
        assert estimator.times.cloud_step_s == pytest.approx(expected_s)


def test_only_a_frame_that_was_alone_says_something_of_the_link() -> None:
    estimator = RoundEstimator()
    estimator.answered(step_trace(wire_s=0.2), 0.0, alone=True, guess_s=0.0)
    before = estimator.times.rtt_s
    estimator.answered(step_trace(wire_s=9.0), 0.1, alone=False, guess_s=0.0)
    assert estimator.times.rtt_s == before > 0.0


def test_the_rate_is_tokens_over_time_between_answers_and_never_below_plain_decoding() -> None:
    fast = RoundEstimator()
    for turn in range(100):
        fast.answered(step_trace(num_new_tokens=4), 0.02 * turn, alone=False, guess_s=0.0)
    assert fast.tokens_per_s == pytest.approx(200.0, rel=0.01)
    slow = RoundEstimator()
    for turn in range(100):
        slow.answered(step_trace(), 10.0 * turn, alone=True, guess_s=0.0)
    assert slow.tokens_per_s == pytest.approx(1.0 / slow.times.first_s)
