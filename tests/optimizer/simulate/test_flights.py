"""Frames that leave ahead of an answer: a flight of one is a step, wrong ones cost no batch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.errors import ScenarioError
from optimizer.simulate.record import Record
from optimizer.simulate.scenario import (
    Arrivals,
    DraftingScenario,
    Fault,
    FlightFrame,
    Link,
    MeasuredFlight,
)
from tests.optimizer.simulate.scenes import PLAN, run, scene

DRAFTED = replace(PLAN, drafting="ngram")
ALONE = {
    "arrivals": Arrivals(kind="closed", think_s=1.0, fixed_think=True),
    "link": Link(mix={"lan": 1.0}),
}


def flight(*frames: tuple[int, int]) -> MeasuredFlight:
    return MeasuredFlight(frames=tuple(FlightFrame(rows=r, tokens=t) for r, t in frames))


def flown(*flights: MeasuredFlight, group: dict[str, object] = ALONE) -> Record:
    asked = scene(group=group, drafting=DraftingScenario(flights=flights), duration_s=20.0)
    return run(asked, DRAFTED)


def test_a_flight_of_one_row_is_a_plain_step() -> None:
    plain = run(scene(group=ALONE, duration_s=20.0), PLAN)
    found = flown(flight((1, 1)))
    assert list(found.gaps_s) == pytest.approx(list(plain.gaps_s), rel=1e-9)
    assert found.servers[0].rows == plain.servers[0].rows
    assert found.up_bytes == plain.up_bytes
    assert sum(found.step_parts_s) == pytest.approx(sum(plain.step_parts_s))
    assert found.step_parts_s[3:] == pytest.approx(plain.step_parts_s[3:])


def test_a_flight_of_right_guesses_brings_a_token_a_frame_in_one_round_trip() -> None:
    far = {**ALONE, "link": Link(mix={"satellite": 1.0})}
    plain = run(scene(group=far, duration_s=20.0), PLAN)
    found = flown(flight((1, 1), (1, 1), (1, 1)), group=far)
    assert sum(found.gaps_s) / len(found.gaps_s) < 0.45 * sum(plain.gaps_s) / len(plain.gaps_s)
    assert {row.tokens for row in found.requests} == {row.tokens for row in plain.requests}
    parts = sum(found.step_parts_s)  # the parts add up to the waits
    assert parts == pytest.approx(sum(found.gaps_s), rel=1e-9)
    assert all(row.outcome == "done" for row in found.requests)


def test_a_wrong_frame_costs_the_device_and_the_link_and_no_batch() -> None:
    right, wrong = flown(flight((1, 1))), flown(flight((1, 1), (3, 0)))
    tokens = sum(row.tokens for row in right.requests)
    assert sum(row.tokens for row in wrong.requests) == pytest.approx(tokens, rel=0.1)
    per_token = [
        one.servers[0].rows / sum(r.tokens for r in one.requests) for one in (right, wrong)
    ]
    assert per_token[0] == pytest.approx(per_token[1], rel=0.02)
    assert wrong.up_bytes > 1.15 * right.up_bytes  # most bytes are the prompt's
    assert wrong.down_bytes > 1.2 * right.down_bytes


def test_a_wrong_frame_before_a_right_one_does_not_hold_it_up() -> None:
    found = flown(flight((1, 1), (1, 0), (2, 2)), flight((2, 1)))
    assert all(row.outcome == "done" for row in found.requests)
    assert len(found.requests) > 3


def test_what_no_flight_can_be_is_refused() -> None:
    for rows, tokens in ((0, 0), (1, 2), (1, -1)):
        with pytest.raises(ScenarioError, match="rows"):
            FlightFrame(rows=rows, tokens=tokens)
    for frames in ((), ((1, 0), (1, 1))):
        with pytest.raises(ScenarioError, match="first frame"):
            flight(*frames)
    lost = Fault(kind="server_loss", at_s=1.0, duration_s=1.0)
    with pytest.raises(ScenarioError, match="lost server"):
        scene(drafting=DraftingScenario(flights=(flight((1, 1)),)), faults=(lost,))
