"""A guess of the cloud has to be likely, and on a busy server worth its time."""

from __future__ import annotations

import pytest

from optimizer.policy.cloud_drafts import MIN_REACH, BusyShare, DraftLoad


def test_an_idle_server_guesses_whatever_may_count() -> None:
    load = DraftLoad(pass_s=1.0)
    assert load.pays(MIN_REACH, 0.001)
    assert not load.pays(MIN_REACH / 2, 0.001)


def test_a_busy_server_guesses_what_saves_more_than_it_costs() -> None:
    load = DraftLoad(busy=1.0)
    for _ in range(100):
        load.passed(0.002)
    # A step of 10 ms: a pass of 2 ms and a row of 1 ms are worth a chance of three tenths.
    assert load.pays(0.31, 0.01)
    assert not load.pays(0.29, 0.01)
    assert not load.pays(0.16, 0.01)
    load.busy = 0.5
    assert load.pays(0.16, 0.01)


def test_how_busy_a_server_is_follows_from_its_steps() -> None:
    idle, full = DraftLoad(), DraftLoad()
    for at in range(100):
        idle.stepped(0.005, at * 0.05)
        full.stepped(0.05, at * 0.05)
    assert abs(idle.busy - 0.1) < 0.01
    assert full.busy > 0.99


def test_what_a_pass_takes_is_a_fading_mean() -> None:
    load = DraftLoad()
    load.passed(0.004)
    assert load.pass_s == 0.004
    load.passed(0.008)
    assert 0.004 < load.pass_s < 0.005


def test_the_busy_share_weighs_time_and_not_steps() -> None:
    """Three steps on end and a pause: a third of the time, though most steps follow at once."""
    load = BusyShare()
    now = 0.0
    for _ in range(100):
        for pause_s in (0.0, 0.0, 0.06):
            now += pause_s + 0.01
            load.stepped(0.01, now)
    assert load.share == pytest.approx(1 / 3, abs=0.03)


def test_a_busy_share_fades_within_seconds() -> None:
    load = BusyShare()
    for at in range(1, 401):
        load.stepped(0.01, 0.01 * at)
    assert load.share > 0.95
    for at in range(1, 31):
        load.stepped(0.01, 4.0 + 0.1 * at)
    assert load.share == pytest.approx(0.1, abs=0.06)
