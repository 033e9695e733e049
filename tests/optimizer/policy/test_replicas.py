"""How full replicas are, where to go, and how many a load needs."""

from __future__ import annotations

import pytest

from optimizer.policy.replicas import (
    DEFAULT_DELAYS,
    ROOM_RETRY_S,
    ReplicaLoad,
    ScalingDelays,
    ScalingRule,
    ScalingState,
    least_loaded,
    retry_after_s,
)

EMPTY = ReplicaLoad(0, 10, 0, 0, 100)


def load(sessions: int = 0, waiting: int = 0, used: int = 0) -> ReplicaLoad:
    return ReplicaLoad(sessions, 10, waiting, used, 100)


def test_the_scarcer_of_places_and_memory_fills_a_replica() -> None:
    assert load(sessions=3, used=20).fullness == pytest.approx(0.3)
    assert load(sessions=3, used=80).fullness == pytest.approx(0.8)
    assert load(sessions=10, waiting=5).fullness == pytest.approx(1.5)


def test_the_least_loaded_has_the_most_room() -> None:
    assert least_loaded({"b": load(2), "a": load(1), "c": load(3)}) == "a"
    assert least_loaded({"b": EMPTY, "a": EMPTY}) == "a"
    assert least_loaded({}) is None


def test_a_replica_with_room_is_asked_at_once_and_a_full_one_later() -> None:
    assert retry_after_s(load(9)) == ROOM_RETRY_S
    assert retry_after_s(load(10)) == 1.0
    assert retry_after_s(load(10, waiting=10)) == 2.0


@pytest.mark.parametrize(
    ("fullness", "wanted"),
    [(0.0, 1), (0.7, 1), (0.1 + 0.6, 1), (0.71, 2), (1.4, 2), (1.41, 3), (9.0, 4)],
)
def test_as_many_replicas_as_are_full_to_the_target(fullness: float, wanted: int) -> None:
    assert ScalingRule(target=0.7, least=1, most=4).wanted(fullness) == wanted


RULE = ScalingRule(target=0.7, least=1, most=4)


def counts_over(fullness: list[float], delays: ScalingDelays = DEFAULT_DELAYS) -> list[int]:
    """The number of replicas after each look, one a second, from one replica on."""
    state, found = ScalingState(count=1), []
    for second, value in enumerate(fullness):
        state = state.after(float(second), value, RULE, delays)
        found.append(state.count)
    return found


def test_more_are_started_after_five_seconds_and_fewer_end_after_sixty() -> None:
    found = counts_over([1.0] * 20 + [0.0] * 80)
    assert found.index(2) == 5  # wanted from second 0 on
    # The mean of five looks wants one replica from the second look without load on.
    assert len(found) - found[::-1].index(2) == 21 + 60


def test_a_short_peak_starts_nothing_and_a_short_lull_ends_nothing() -> None:
    assert set(counts_over([0.5] * 10 + [1.0] * 5 + [0.5] * 20)) == {1}
    assert set(counts_over([1.4] * 10 + [0.0] * 40 + [1.4] * 80)[6:]) == {2}


def test_the_look_back_holds_single_looks_down() -> None:
    peaks = [0.5, 0.5, 0.5, 0.5, 1.0] * 10  # a mean of 0.6
    assert set(counts_over(peaks)) == {1}
    at_once = ScalingDelays(up_s=0.0, look_back_s=0.0)
    assert counts_over(peaks, at_once).index(2) == 4
