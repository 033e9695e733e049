"""The book of all replicas: who is there, and limits that hold for the sum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloud.cluster.book import LIVE_S, ReplicaBook, ReplicaReport, Sight, key_name
from cloud.sessions.lifecycle import SessionKey
from optimizer.policy.replicas import ReplicaLoad


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def report(name: str, **changes: Any) -> ReplicaReport:
    made = ReplicaReport(
        name=name,
        host="127.0.0.1",
        port=5000,
        serving=True,
        load=ReplicaLoad(0, 8, 0, 0, 100),
    )
    return replace(made, **changes)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock: Clock) -> ReplicaBook:
    made = ReplicaBook(clock)
    for name in ("a", "b"):
        made.report(report(name))
    return made


def test_a_replica_hears_of_the_others_that_take_sessions(book: ReplicaBook) -> None:
    book.report(report("c", serving=False))
    assert set(book.report(report("a")).others) == {"b"}


def test_a_replica_that_is_silent_is_gone(book: ReplicaBook, clock: Clock) -> None:
    book.show("a", Sight("", {}))
    clock.now_s = LIVE_S
    book.report(report("b"))
    clock.now_s = LIVE_S + 0.1
    assert [one.name for one in book.replicas()] == ["b"]
    assert book.sights() == {}


def test_a_replica_that_leaves_is_gone_at_once(book: ReplicaBook) -> None:
    book.leave("a")
    assert [one.name for one in book.replicas()] == ["b"]


def test_a_new_book_says_that_it_may_not_know_everybody(book: ReplicaBook, clock: Clock) -> None:
    assert not book.roll().is_complete
    clock.now_s = LIVE_S
    book.report(report("a"))
    assert book.roll().is_complete
    assert "a" in {one.name for one in book.roll().replicas}


def test_what_a_replica_shows_after_its_end_is_not_kept(book: ReplicaBook) -> None:
    book.leave("a")
    book.show("a", Sight("late", {}))
    book.report(report("a"))
    assert book.sights() == {}


def test_replicas_with_an_older_and_a_newer_rate_share_one_bucket(book: ReplicaBook) -> None:
    """While an update runs, both ask in turn: a change of the rate fills nothing up."""
    assert book.take_rows("t", 100.0, 100) == 0.0
    assert book.take_rows("t", 50.0, 50) == pytest.approx(1.0)
    assert book.take_rows("t", 100.0, 100) == pytest.approx(1.5)


def test_rows_of_all_replicas_come_from_one_bucket(book: ReplicaBook, clock: Clock) -> None:
    assert book.take_rows("t", 100.0, 60) == 0.0
    assert book.take_rows("t", 100.0, 60) == pytest.approx(0.2)
    clock.now_s = 10.0
    assert book.take_rows("t", 100.0, 100) == 0.0
    assert book.take_rows("other", 1.0, 1) == 0.0


def test_a_tenants_sessions_count_on_all_replicas(book: ReplicaBook) -> None:
    assert book.may_begin("a", "t", 2, 1, "s1")
    assert book.may_begin("b", "t", 2, 1, "s2")  # before any further report
    assert not book.may_begin("a", "t", 2, 2, "s3")
    assert not book.may_begin("b", "t", 2, 2, "s3")
    assert book.may_begin("b", "other", 2, 1, "s4")
    book.report(report("a", tenants={}))  # its session has ended
    assert book.may_begin("b", "t", 2, 2, "s3")


def test_a_session_that_begins_elsewhere_does_not_count_where_it_was_kept(
    book: ReplicaBook,
) -> None:
    book.report(report("a", tenants={"t": 1}, resumable={"s1": "t"}))
    assert book.may_begin("b", "t", 1, 1, "s1")
    assert book.report(report("a", tenants={"t": 1}, resumable={"s1": "t"})).close == ("s1",)


def test_a_kept_session_makes_room_and_the_client_asks_again(book: ReplicaBook) -> None:
    book.report(report("a", tenants={"t": 1, "u": 1}, resumable={"old": "t", "foreign": "u"}))
    assert not book.may_begin("b", "t", 1, 1, "new")
    assert book.report(report("a", tenants={"u": 1}, resumable={"foreign": "u"})).close == ("old",)
    assert book.may_begin("b", "t", 1, 1, "new")


def test_a_replica_hears_what_was_taken_over_once(book: ReplicaBook) -> None:
    book.took_over("s1", "a")
    book.took_over("s1", "unknown")
    assert book.report(report("a")).close == ("s1",)
    assert book.report(report("a")).close == ()


def test_a_sessions_name_does_not_tell_its_id() -> None:
    name = key_name(SessionKey("tenant", "secret"))
    assert "secret" not in name
    assert name != key_name(SessionKey("other", "secret"))
