"""Frames that leave ahead of an answer: a flight of one is a step, wrong ones cost no batch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.cost.request import predict_request
from optimizer.errors import ScenarioError
from optimizer.policy.frames_ahead import MAX_IN_FLIGHT
from optimizer.search.drafts import DraftCost, draft_options
from optimizer.simulate.flights import AheadRule, DrawnFlight
from optimizer.simulate.record import Record
from optimizer.simulate.scenario import (
    Arrivals,
    DraftingScenario,
    Fault,
    FlightFrame,
    Lengths,
    Link,
    MeasuredFlight,
)
from tests.optimizer.simulate.scenes import PLAN, deployment, run, scene

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
    for drafting in (DraftingScenario(flights=(flight((1, 1)),)), DraftingScenario(ahead=True)):
        with pytest.raises(ScenarioError, match="lost server"):
            scene(drafting=drafting, faults=(lost,))
    assert not scene(faults=(lost,)).sends_ahead


def predicted_tbt_s(link: str, chances: tuple[float, ...]) -> float:
    """The planner's, with the best number of guesses in a round's first frame."""
    options = draft_options(DraftCost(kind="ngram", chances=chances))
    return min(
        predict_request(
            deployment(link), prompt_tokens=150, new_tokens=400, drafting=option.drafting
        ).tbt_s
        for option in options
    )


@pytest.mark.parametrize("link", ["wifi", "5g", "4g", "satellite"])
@pytest.mark.parametrize(
    ("chances", "within"), [((0.2,), 0.1), ((0.5,), 0.1), ((0.7,), 0.1), ((0.6, 0.4, 0.3), 0.15)]
)
def test_drawn_flights_take_what_the_planner_counts(
    link: str, chances: tuple[float, ...], within: float
) -> None:
    """By depth less exactly: an answer makes the guesses behind it surer, which the planner does
    not count."""
    group = {**ALONE, "link": Link(mix={link: 1.0}, quantile=0.5)}
    group["output_tokens"] = Lengths(median=400)
    drafting = DraftingScenario(chances=chances, length=8)
    record = run(scene(group=group, drafting=drafting, duration_s=200.0), DRAFTED)
    mean_s = sum(record.gaps_s) / len(record.gaps_s)
    assert len(record.gaps_s) > 700
    assert mean_s == pytest.approx(predicted_tbt_s(link, chances), rel=within)


RULE = AheadRule(rtt_s=0.050, row_s=0.004)


def test_right_guesses_go_on_as_answers_come() -> None:
    """No more rows under way than a round trip has time for, and one more with each answer."""
    drawn = DrawnFlight(RULE, lambda depth: 1.0, lambda: 0.5)
    first = drawn.next_frame(100)
    assert first == (1, 1, False, 0.0)
    behind = [drawn.next_frame(100) for _ in range(MAX_IN_FLIGHT - 1)]
    assert behind == [(1, 1, True, 0.0)] * (MAX_IN_FLIGHT - 1)
    assert drawn.next_frame(100) is None
    assert not drawn.answered()
    assert drawn.next_frame(100) == (1, 1, True, 0.0)
    assert drawn.next_frame(100) is None


def test_a_wrong_guess_is_known_with_its_answer_alone() -> None:
    draws = iter((0.1, 0.9, 0.1))
    drawn = DrawnFlight(RULE, lambda depth: 0.8, lambda: next(draws))
    frames = [drawn.next_frame(100) for _ in range(4)]
    assert [frame.tokens for frame in frames if frame is not None] == [1, 1, 0, 0]
    assert not drawn.answered()
    assert drawn.answered()


def test_a_guess_behind_many_without_an_answer_is_not_worth_a_frame() -> None:
    depths = []
    rule = AheadRule(rtt_s=0.050, row_s=0.004, guesses=1)

    def chance_at(depth: int) -> float:
        depths.append(depth)
        return 0.5

    drawn = DrawnFlight(rule, chance_at, lambda: 0.1)
    assert drawn.next_frame(100) == (2, 2, False, 0.0)
    assert drawn.next_frame(100) == (2, 2, True, 0.0)  # chances of 1/4 and 1/8
    assert drawn.next_frame(100) is None  # 1/16: less than 4 ms of 54
    assert not drawn.answered()
    assert drawn.next_frame(100) == (2, 2, True, 0.0)  # the first of the two is known now
    assert max(depths) == 4


def test_no_more_rows_than_the_sequence_may_have() -> None:
    drawn = DrawnFlight(AheadRule(rtt_s=0.05, row_s=0.004, guesses=3), lambda _: 1.0, lambda: 0.5)
    assert drawn.next_frame(2) == (2, 2, False, 0.0)
    assert drawn.next_frame(1) == (1, 1, True, 0.0)


def test_a_link_without_time_for_a_row_sends_nothing_ahead() -> None:
    assert AheadRule(rtt_s=0.003, row_s=0.004).most_rows == 0
    here = {**ALONE, "link": Link(mix={"lan": 1.0}, quantile=0.5)}
    drafting = DraftingScenario(acceptance=0.7)
    found, without = (
        run(scene(group=here, drafting=replace(drafting, ahead=ahead), duration_s=20.0), DRAFTED)
        for ahead in (None, False)
    )
    assert found.gaps_s == without.gaps_s


def test_a_step_without_a_draft_is_a_plain_one() -> None:
    far = {**ALONE, "link": Link(mix={"4g": 1.0}, quantile=0.5)}
    plain = run(scene(group=far, duration_s=20.0), PLAN)
    drafting = DraftingScenario(acceptance=1.0, proposal_share=0.0)
    never = run(scene(group=far, drafting=drafting, duration_s=20.0), DRAFTED)
    assert never.drafted == 0
    assert list(never.gaps_s) == pytest.approx(list(plain.gaps_s), rel=1e-9)
    half = run(
        scene(group=far, drafting=replace(drafting, proposal_share=0.5), duration_s=200.0), DRAFTED
    )
    # A flight of guesses that are all right lasts to the end of the answer, of 20 tokens.
    waits = sum(row.round_trips for row in half.requests) / len(half.requests)
    assert 2 < waits < 3.5
