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


def in_flight(*runs: DraftRun, rtt_s: float = 0.05) -> DraftSelector:
    """A drafting that has sent these, each continuing the one before, after one plain step."""
    drafting = after_one_step(rtt_s)
    for sequence, run in enumerate(runs, start=1):
        drafting.sent(sequence, run)
    return drafting


def two_frames() -> list[DraftRun]:
    """One frame with two guesses, and one that begins with a third."""
    first = DraftRun(first_position=20, slots=[slot(0.5, 0.6), slot(0.8, 0.9)])
    first.following = slot(0.5, 0.7)
    following = slot(0.5, 0.5)
    return [first, DraftRun(first_position=23, place="next", base=0.2, following=following)]


def test_they_go_from_the_last_place_to_the_first_with_their_chances() -> None:
    found = in_flight(*two_frames()).alternatives()
    assert [choice.position for choice in found] == [23, 22, 21]
    assert [choice.chance for choice in found] == pytest.approx(
        [0.5 * 0.8 * 0.5 * 0.7, 0.5 * 0.2 * 0.9, 0.5 * 0.6]
    )


def test_what_was_not_sent_as_a_guess_has_no_alternative() -> None:
    found = in_flight(*two_frames()).alternatives()
    assert 24 not in {choice.position for choice in found}


def test_only_as_many_as_the_edge_can_compute_in_time_are_sent_and_the_likeliest() -> None:
    first = DraftRun(first_position=20, following=slot(0.9, 0.9))
    run = DraftRun(first_position=21, place="next", base=0.9, slots=[slot(0.9, 0.9)] * 20)
    found = in_flight(first, run, rtt_s=0.0505).alternatives()  # 25 rows, 21 are ahead
    assert [choice.position for choice in found] == [24, 23, 22, 21]
    assert in_flight(first, run, rtt_s=0.04).alternatives() == []


def test_nothing_is_sent_ahead_that_would_still_be_on_its_way_up_when_the_answer_comes() -> None:
    def goes_on(count: int) -> bool:
        drafting = in_flight(*chain(count, 0.99), rtt_s=0.01)  # five rows of the edge
        return drafting.begin_ahead(drafting.flight[-1]) is not None

    assert [goes_on(count) for count in (1, 4, 5, 6)] == [True, True, True, False]


def test_there_are_never_more_than_the_most() -> None:
    many = DraftRun(first_position=20, following=slot(0.1, *[0.2] * 20))
    last = DraftRun(first_position=21, place="next")
    found = in_flight(many, last, rtt_s=1.0).alternatives()
    assert len(found) == MAX_ALTERNATIVES


def chain(count: int, chance: float = 0.9) -> list[DraftRun]:
    """Frames of one row each, the next one's guess at the end."""
    runs = [DraftRun(first_position=20, following=slot(chance))]
    for at in range(1, count):
        base = chance**at
        run = DraftRun(first_position=20 + at, place="next", base=base, following=slot(chance))
        runs.append(run)
    return runs


def test_where_the_first_frame_was_right_the_flight_goes_on_from_there() -> None:
    runs = chain(5)
    drafting = in_flight(*runs, rtt_s=0.0081)  # four rows of the edge
    assert drafting.begin_ahead(runs[-1]) is None
    assert not drafting.may_go_on
    drafting.answered(answer(1, 0))  # every guess is token 0
    assert drafting.may_go_on
    assert [run.base for run in drafting.flight] == pytest.approx([1.0, 0.9, 0.81, 0.729])
    more = drafting.begin_ahead(runs[-1])
    assert more is not None
    assert more.base == pytest.approx(0.729 * drafting.acceptance.probability(slot(0.9).guess))
    assert not drafting.may_go_on


def test_an_answer_that_ends_the_flight_does_not_let_it_go_on() -> None:
    wrong, last, alternative = (in_flight(*chain(count), rtt_s=0.01) for count in (5, 1, 2))
    wrong.answered(answer(1, 9))
    last.answered(answer(1, 0))
    alternative.sent(3, DraftRun(first_position=21, place="alternative", base=0.1))
    alternative.answered(answer(3, 0))
    assert not any(drafting.may_go_on for drafting in (wrong, last, alternative))


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
