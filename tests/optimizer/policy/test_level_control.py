"""The controller on scripted links: falls at once, climbs slowly, never swings, and gives up."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from optimizer.errors import PolicyError
from optimizer.policy.level_control import Controller, ControlState, Rung
from protos.sizes import ONE_ROW_OVERHEAD_BYTES

DEADLINE_S = 0.1
RTT_S, LOCAL_S = 0.03, 0.03  # 40 ms are left for the bytes
RUNGS = tuple(
    Rung(name=name, bytes_per_row=size)
    for name, size in (("lossless", 1944), ("q1", 300), ("q2", 240), ("q3", 190), ("q4", 140))
)


@dataclass
class Run:
    states: list[ControlState]
    late: list[bool]

    @property
    def moves(self) -> list[str]:
        return [state.reason for state in self.states if state.reason]

    def share_in_time(self, first: int = 0) -> float:
        late = self.late[first:]
        return 1 - sum(late) / len(late)


def drive(
    rate_at: Callable[[int], float],
    num_steps: int,
    *,
    noise_s: float = 0.0,
    start: int = 0,
    rungs: tuple[Rung, ...] = RUNGS,
    extra_s: Callable[[int], float] = lambda step: 0.0,
) -> Run:
    """Steps over a link whose rate, in bytes a second, is a function of the step's number."""
    rng = random.Random(7)
    controller = Controller(deadline_s=DEADLINE_S, rungs=rungs, start=start)
    state = controller.begin()
    run = Run([], [])
    for index in range(num_steps):
        num_bytes = ONE_ROW_OVERHEAD_BYTES + int(rungs[state.rung].bytes_per_row)
        wire_s = RTT_S + num_bytes / rate_at(index) + rng.uniform(0, noise_s) + extra_s(index)
        step_s = LOCAL_S + wire_s
        state = controller.after(state, step_s=step_s, wire_s=wire_s, uplink_bytes=num_bytes)
        run.states.append(state)
        run.late.append(step_s > DEADLINE_S)
        if state.stop:
            break
    return run


def fast(step: int) -> float:
    return 1e6


def test_on_a_fast_link_it_keeps_the_best_level_and_says_nothing() -> None:
    run = drive(fast, 200)
    assert {state.level for state in run.states} == {"lossless"}
    assert run.moves == []
    assert not any(run.late)


def test_a_link_that_turns_slow_costs_one_late_step() -> None:
    run = drive(lambda step: 1e6 if step < 20 else 8_000, 100)
    assert sum(run.late[:60]) <= 2
    assert run.states[30].level in ("q1", "q2")
    assert "down to" in run.moves[0]
    assert "a step took" in run.moves[0]


def test_it_falls_as_far_as_it_has_to_in_one_move() -> None:
    """Two sizes have been seen, so the rate is known: no rung in between is tried."""
    run = drive(lambda step: 40_000 if step < 5 else 5_500, 12)
    fallen = [state.level for state in run.states]
    assert fallen[-1] in ("q3", "q4")
    assert len(run.moves) <= 3


def test_a_link_that_recovers_gets_its_quality_back_rung_by_rung() -> None:
    run = drive(lambda step: 5_000 if step < 30 else 1e6, 300, start=2)
    assert run.states[29].level == "q4"
    assert run.states[-1].level == "lossless"
    ups = [index for index, state in enumerate(run.states) if state.reason.startswith("up")]
    assert len(ups) == 4
    assert all(second - first >= 12 for first, second in itertools.pairwise(ups))


def test_between_two_rungs_it_does_not_swing() -> None:
    """At 7,000 bytes a second q2 (280) just fits, and q1 (340) is just late."""
    run = drive(lambda step: 7_800, 2_000, start=2)
    assert run.share_in_time() >= 0.98
    assert len(run.moves) <= 12


@pytest.mark.parametrize("noise_s", [0.005, 0.01, 0.02])
def test_noise_alone_makes_it_move_ever_less(noise_s: float) -> None:
    run = drive(lambda step: 9_000, 3_000, noise_s=noise_s, start=1)
    moves = [index for index, state in enumerate(run.states) if state.reason]
    assert run.share_in_time(100) >= 0.95
    assert sum(index >= 1_500 for index in moves) <= 12


def test_a_ramp_is_followed_down_and_up() -> None:
    def ramp(step: int) -> float:
        return 60_000 - 55_000 * (1 - abs(step - 300) / 300)

    run = drive(ramp, 600)
    assert run.share_in_time() >= 0.95
    assert run.states[300].level in ("q3", "q4")
    assert run.states[-1].rung < run.states[300].rung


def test_outages_are_late_steps_and_nothing_more() -> None:
    run = drive(lambda step: 20_000, 500, start=2, extra_s=lambda s: 2.0 if s % 50 == 49 else 0.0)
    assert run.share_in_time() == pytest.approx(0.98, abs=0.005)
    assert not run.states[-1].stop


def test_it_stops_when_even_the_smallest_level_is_late() -> None:
    run = drive(lambda step: 1_000, 400)
    assert run.states[-1].stop
    assert len(run.states) < 40
    assert "longer than 100 ms, at the smallest level q4" in run.states[-1].reason


def test_a_slow_minority_of_steps_does_not_stop_it() -> None:
    run = drive(fast, 400, start=4, extra_s=lambda step: 0.2 if step % 3 == 0 else 0.0)
    assert not run.states[-1].stop


def test_one_rung_alone_is_a_deadline_without_a_ladder() -> None:
    run = drive(lambda step: 1_000, 100, rungs=RUNGS[:1])
    assert run.states[-1].stop
    assert len(run.moves) == 1


def test_drafts_are_cut_to_what_the_link_carries_in_time() -> None:
    controller = Controller(deadline_s=DEADLINE_S, rungs=RUNGS, start=2)
    state = controller.begin()
    assert state.max_drafts is None
    for num_bytes in (280, 2_000, 280, 1_000):
        wire_s = RTT_S + num_bytes / 30_000
        state = controller.after(
            state, step_s=wire_s + LOCAL_S, wire_s=wire_s, uplink_bytes=num_bytes
        )
    assert state.max_drafts is not None
    rows = 1 + state.max_drafts
    assert controller.expected_s(state, state.rung, rows) <= DEADLINE_S
    assert controller.expected_s(state, state.rung, rows + 1) > 0.95 * DEADLINE_S


def test_messages_that_queued_say_nothing_of_the_link() -> None:
    controller = Controller(deadline_s=DEADLINE_S, rungs=RUNGS)
    state = controller.begin()
    state = controller.after(state, step_s=0.05, wire_s=0.02, uplink_bytes=300, alone=False)
    assert state.link.crossings == ()


def test_nonsense_is_refused() -> None:
    with pytest.raises(PolicyError, match="must be above 0"):
        Controller(deadline_s=0, rungs=RUNGS)
    with pytest.raises(PolicyError, match="level number 5"):
        Controller(deadline_s=1, rungs=RUNGS, start=5)
