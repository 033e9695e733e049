"""The draft length: the formula, its optimum against trying every length, and when it is 0."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.policy.draft_length import RoundTimes, best_length, expected_tokens, pays

TIMES = RoundTimes(
    edge_row_s=0.002,
    guess_s=0.0005,
    rtt_s=0.05,
    up_bytes_per_s=2.5e6,
    frame_bytes=60.0,
    row_bytes=320.0,
    cloud_step_s=0.022,
    cloud_row_s=0.002,
)
probabilities = st.lists(st.floats(0.0, 1.0), max_size=12)


def test_expected_tokens_of_equal_chances_is_leviathans_equation_1() -> None:
    assert expected_tokens([0.7] * 5) == pytest.approx((1 - 0.7**6) / (1 - 0.7))


def test_expected_tokens_multiplies_the_chances_place_by_place() -> None:
    assert expected_tokens([0.9, 0.5, 0.2]) == pytest.approx(1 + 0.9 + 0.45 + 0.09)
    assert expected_tokens([]) == 1.0


def test_a_round_takes_the_sum_of_its_parts() -> None:
    assert TIMES.round_s(3) == pytest.approx(
        4 * 0.002 + 3 * 0.0005 + 0.05 + (60 + 4 * 320) / 2.5e6 + 0.022 + 3 * 0.002
    )


@given(probabilities, st.floats(0.0, 0.2), st.floats(0.0, 0.05))
def test_no_other_length_has_a_higher_rate(
    acceptance: list[float], rtt_s: float, cloud_row_s: float
) -> None:
    times = replace(TIMES, rtt_s=rtt_s, cloud_row_s=cloud_row_s)
    choice = best_length(acceptance, times)
    rates = [
        expected_tokens(acceptance[:count]) / times.round_s(count)
        for count in range(len(acceptance) + 1)
    ]
    assert choice.tokens_per_s == pytest.approx(max(rates))
    assert choice.expected_tokens == pytest.approx(expected_tokens(acceptance[: choice.num_drafts]))


def test_no_drafts_when_the_round_trip_is_short_and_rows_are_dear() -> None:
    times = replace(TIMES, rtt_s=0.0002, cloud_step_s=0.004, cloud_row_s=0.004)
    assert best_length([0.5] * 8, times).num_drafts == 0


def test_a_longer_round_trip_never_asks_for_fewer_drafts() -> None:
    lengths = [
        best_length([0.7] * 16, replace(TIMES, rtt_s=rtt_s)).num_drafts
        for rtt_s in (0.0, 0.01, 0.05, 0.1, 0.3)
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_the_limit_holds() -> None:
    assert best_length([0.95] * 16, TIMES, limit=3).num_drafts == 3


def test_one_more_draft_pays_exactly_while_it_raises_the_rate() -> None:
    acceptance = [0.6] * 16
    choice = best_length(acceptance, TIMES)
    reach = [0.6 ** (place + 1) for place in range(16)]
    assert pays(reach[choice.num_drafts - 1], TIMES, choice.tokens_per_s)
    assert not pays(reach[choice.num_drafts], TIMES, choice.tokens_per_s)
