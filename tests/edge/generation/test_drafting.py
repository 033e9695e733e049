"""Alternatives to guesses: which are worth a frame, in which order they go, what they teach."""

from __future__ import annotations

import pytest

from edge.draft.base import Guess
from edge.generation.draft_run import DraftRun, DraftSlot
from edge.generation.drafting import MAX_ALTERNATIVES, DraftSelector
from edge.generation.step_observer import AnsweredStep
from tests.edge.draft.saying import Saying
from tests.edge.generation.steps import answered_step


def answer(sequence: int, token_id: int, *, rtt_s: float = 0.05) -> AnsweredStep:
    return answered_step(token_id, sequence=sequence, wire_s=rtt_s, round_trip_s=rtt_s + 0.004)


def after_one_step(rtt_s: float = 0.05) -> DraftSelector:
    """A drafting that has seen one plain step."""
    drafting = DraftSelector(Saying(), clock=lambda: 0.0)
    drafting.answered(answer(0, 1, rtt_s=rtt_s))
    return drafting


def slot(chance: float, *others: float) -> DraftSlot:
    def guess(index: int, prior: float) -> Guess:
        return Guess(index, f"{index}-{prior}", prior)

    return DraftSlot(guess(0, chance), tuple(guess(i, p) for i, p in enumerate(others, start=1)))


def flight() -> list[DraftRun]:
    """One frame with two guesses, and one that begins with a third."""
    first = DraftRun(first_position=20, slots=[slot(0.5, 0.6), slot(0.8, 0.9)])
    first.following = slot(0.5, 0.7)
    return [first, DraftRun(first_position=23, base=0.2, following=slot(0.5, 0.5))]


def test_they_go_from_the_last_place_to_the_first_with_their_chances() -> None:
    found = after_one_step().alternatives(flight())
    assert [choice.position for choice in found] == [23, 22, 21]
    assert [choice.chance for choice in found] == pytest.approx(
        [0.5 * 0.8 * 0.5 * 0.7, 0.5 * 0.2 * 0.9, 0.5 * 0.6]
    )


def test_what_was_not_sent_as_a_guess_has_no_alternative() -> None:
    assert 24 not in {choice.position for choice in after_one_step().alternatives(flight())}


def test_only_as_many_as_the_edge_can_compute_in_time_are_sent_and_the_likeliest() -> None:
    run = DraftRun(first_position=20, slots=[slot(0.9, 0.9)] * 21)
    found = after_one_step(rtt_s=0.0505).alternatives([run])  # 25 rows, 21 are out
    assert [choice.position for choice in found] == [24, 23, 22, 21]
    assert after_one_step(rtt_s=0.04).alternatives([run]) == []


def test_nothing_is_sent_ahead_that_would_still_be_on_its_way_up_when_the_answer_comes() -> None:
    drafting = after_one_step(rtt_s=0.01)  # five rows of the edge
    drafting.sent(1, DraftRun(first_position=20))

    def goes_on_from(position: int) -> bool:
        sure = slot(0.99)
        return drafting.begin_ahead(DraftRun(first_position=position, following=sure)) is not None

    assert [goes_on_from(position) for position in (20, 23, 24, 25)] == [True, True, True, False]


def test_there_are_never_more_than_the_most() -> None:
    many = DraftRun(first_position=20, following=slot(0.1, *[0.2] * 20))
    last = DraftRun(first_position=21)
    found = after_one_step(rtt_s=1.0).alternatives([many, last])
    assert len(found) == MAX_ALTERNATIVES


def test_a_wrong_guess_teaches_what_its_alternative_is_worth() -> None:
    drafting = after_one_step()
    run = DraftRun(first_position=20, slots=[slot(0.5, 0.3, 0.3)])
    right, _ = run.slots[0].alternatives
    for sequence in range(1, 60):
        drafting.sent(sequence, run)
        drafting.answered(answer(sequence, right.token_id))
    assert drafting.acceptance.probability(right) > 0.8
    assert drafting.acceptance.probability(run.slots[0].guess) < 0.1


@pytest.mark.parametrize(("rtt_s", "asked"), [(0.0002, 8 + 40 // 4), (0.05, 48)])
def test_on_a_short_link_guesses_that_never_pay_are_asked_for_now_and_then(
    rtt_s: float, asked: int
) -> None:
    class Counting(Saying):
        count = 0

        def guesses(self) -> tuple[Guess, ...]:
            self.count += 1
            return (Guess(1, "bad", 0.05),)

    drafter = Counting()
    drafting = DraftSelector(drafter, clock=lambda: 0.0)
    for sequence in range(5):
        drafting.answered(answer(sequence, 1, rtt_s=rtt_s))
    for _ in range(48):
        assert drafting.extend(DraftRun(first_position=20)) is None
    assert drafter.count == asked


@pytest.mark.parametrize(("rtt_s", "draws"), [(0.0002, False), (0.05, True)])
def test_on_a_short_link_guesses_that_lost_time_are_not_asked_for(
    rtt_s: float, draws: bool
) -> None:
    """They seem sure, and never come: the first ones take the time that drafting may lose."""
    drafting = DraftSelector(Saying(Guess(1, "sure", 0.97)), clock=lambda: 0.0)
    now_s = 0.0
    with_drafts = []
    for sequence in range(200):
        run = DraftRun(first_position=20 + sequence)
        guess = drafting.extend(run)
        with_drafts.append(guess is not None)
        drafting.sent(sequence, run)
        now_s += 0.004 + rtt_s + 0.002 * len(run.slots)
        step = answered_step(
            9, sequence=sequence, wire_s=rtt_s, round_trip_s=rtt_s + 0.004, at_s=now_s
        )
        drafting.answered(step)
    plain_s = 200 * (0.004 + rtt_s)
    assert not any(with_drafts[:4]) or draws
    assert any(with_drafts)
    if not draws:
        assert now_s < 1.03 * plain_s


def test_a_guess_beyond_the_vocabulary_is_no_guess() -> None:
    said = (Guess(50, "a", 0.9), Guess(7, "a", 0.9), Guess(-1, "a", 0.9))
    drafting = DraftSelector(Saying(*said), clock=lambda: 0.0, vocab_size=50)
    run = DraftRun(first_position=0)
    drafting.extend(run)
    assert run.following is not None
    assert run.following.guess.token_id == 7
    assert run.following.alternatives == ()
