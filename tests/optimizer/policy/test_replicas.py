"""How full replicas are, where to go, and how many a load needs."""

from __future__ import annotations

import pytest

from optimizer.policy.replicas import (
    ROOM_RETRY_S,
    ReplicaLoad,
    ScalingRule,
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
