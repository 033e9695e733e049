"""The pace of a machine: what other machines of its host do to it, which no counter shows."""

from __future__ import annotations

import pytest

from benchmarks.planning import quiet_machine
from benchmarks.planning.quiet_machine import Pace, pace_s, same_pace


def paces(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> list[float]:
    """What the fixed work takes, look by look, the last one again and again; and the waits."""
    left, waits = list(seconds), list[float]()
    monkeypatch.setattr(
        quiet_machine,
        "pace_s",
        lambda cpu, **_: left.pop(0) if len(left) > 1 else left[0],
    )
    monkeypatch.setattr(quiet_machine.time, "sleep", waits.append)
    return waits


def test_the_core_that_differs_most_counts_in_both_directions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paces(monkeypatch, 1.0, 2.0, 1.05, 3.0, 0.5, 2.1)
    pace = Pace((0, 1))
    assert pace.slowdown() == pytest.approx(1.5)
    assert pace.slowdown() == pytest.approx(0.5)
    assert same_pace(1.05)
    assert not same_pace(1.2)
    assert not same_pace(1 / 1.2)


def test_it_waits_until_the_pace_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, told = paces(monkeypatch, 1.0, 1.4, 1.3, 1.05), list[str]()
    assert Pace((None,)).wait(tell=told.append) == pytest.approx(1.05)
    assert len(waits) == 2
    assert told == ["waiting for the host: this machine takes 1.40 times as long"]


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = paces(monkeypatch, 1.0, 1.4)
    assert Pace((None,)).wait(patience_s=0.0) == pytest.approx(1.4)
    assert waits == []


def test_the_work_takes_a_while_on_this_machine() -> None:
    assert 1e-5 < pace_s(None) < 10.0
