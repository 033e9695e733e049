"""Second choices: which are worth a frame, in which order they go, and what they teach."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edge.draft.acceptance import Acceptance
from edge.draft.best_of import BestOf
from edge.draft.drafter import Guess, Rows
from edge.generation.drafting import MAX_SECOND_CHOICES, Chain, Drafting, Place
from edge.generation.report import StepTrace


class Saying:
    """A drafter that always says the same."""

    def __init__(self, *guesses: Guess) -> None:
        self.said = guesses

    def extend(self, token_ids: Sequence[int], rows: Rows | None) -> None:
        pass

    def rollback(self, num_tokens: int) -> None:
        pass

    def guesses(self) -> tuple[Guess, ...]:
        return self.said


def answered_step(sequence: int, *, rtt_s: float = 0.05) -> StepTrace:
    return StepTrace(
        sequence=sequence,
        phase="decode",
        first_position=10,
        num_rows=1,
        num_drafts=0,
        num_new_tokens=1,
        level="lossless",
        front_s=0.002,
        encode_s=0.0,
        round_trip_s=rtt_s + 0.004,
        wire_s=rtt_s,
        cloud_codec_s=0.0,
        cloud_queue_s=0.0,
        cloud_compute_s=0.004,
        cloud_sample_s=0.0,
        batch_sessions=1,
        hidden_bytes=700,
        uplink_bytes=740,
        downlink_bytes=40,
    )


def knowing_pace(rtt_s: float = 0.05) -> Drafting:
    """A drafting that has seen one plain step."""
    drafting = Drafting(Saying(), clock=lambda: 0.0)
    drafting.answered(answered_step(0, rtt_s=rtt_s), (1,), 0.0, alone=True)
    return drafting


def place(chance: float, *others: float) -> Place:
    def guess(index: int, prior: float) -> Guess:
        return Guess(index, f"{index}-{prior}", prior)

    return Place(guess(0, chance), tuple(guess(i, p) for i, p in enumerate(others, start=1)))


def flight() -> list[Chain]:
    """One frame with two guesses, and one that begins with a third."""
    first = Chain(first_position=20, places=[place(0.5, 0.6), place(0.8, 0.9)])
    first.following = place(0.5, 0.7)
    return [first, Chain(first_position=23, base=0.2, following=place(0.5, 0.5))]


def test_they_go_from_the_last_place_to_the_first_with_their_chances() -> None:
    found = knowing_pace().second_choices(flight())
    assert [choice.position for choice in found] == [23, 22, 21]
    assert [choice.chance for choice in found] == pytest.approx(
        [0.5 * 0.8 * 0.5 * 0.7, 0.5 * 0.2 * 0.9, 0.5 * 0.6]
    )


def test_what_was_not_sent_as_a_first_choice_has_no_second() -> None:
    assert 24 not in {choice.position for choice in knowing_pace().second_choices(flight())}


def test_only_as_many_as_the_edge_can_compute_in_time_are_sent_and_the_likeliest() -> None:
    chain = Chain(first_position=20, places=[place(0.9, 0.9)] * 21)
    found = knowing_pace(rtt_s=0.0505).second_choices([chain])  # 25 rows, 21 are out
    assert [choice.position for choice in found] == [24, 23, 22, 21]
    assert knowing_pace(rtt_s=0.04).second_choices([chain]) == []


def test_nothing_is_sent_ahead_that_would_still_be_on_its_way_up_when_the_answer_comes() -> None:
    drafting = knowing_pace(rtt_s=0.01)  # five rows of the edge
    drafting.sent(1, Chain(first_position=20))

    def goes_on_from(position: int) -> bool:
        sure = place(0.99)
        return drafting.begin_ahead(Chain(first_position=position, following=sure)) is not None

    assert [goes_on_from(position) for position in (20, 23, 24, 25)] == [True, True, True, False]


def test_there_are_never_more_than_the_most() -> None:
    many = Chain(first_position=20, following=place(0.1, *[0.2] * 20))
    last = Chain(first_position=21)
    found = knowing_pace(rtt_s=1.0).second_choices([many, last])
    assert len(found) == MAX_SECOND_CHOICES


def test_a_wrong_first_choice_teaches_what_the_second_is_worth() -> None:
    drafting = knowing_pace()
    chain = Chain(first_position=20, places=[place(0.5, 0.3, 0.3)])
    right, _ = chain.places[0].others
    for sequence in range(1, 60):
        drafting.sent(sequence, chain)
        drafting.answered(answered_step(sequence), (right.token_id,), 0.0, alone=True)
    assert drafting.acceptance.probability(right) > 0.8
    assert drafting.acceptance.probability(chain.places[0].guess) < 0.1


def test_the_best_first_choice_leads_and_every_token_is_named_once() -> None:
    look_up = Saying(Guess(7, "n", 0.4), Guess(8, "nb", 0.2))
    head = Saying(Guess(9, "h", 0.6), Guess(7, "hb", 0.3))
    found = BestOf([look_up, head], Acceptance()).guesses()
    assert [(guess.token_id, guess.kind) for guess in found] == [(9, "h"), (7, "n"), (8, "nb")]


def test_two_that_agree_are_surer_than_either() -> None:
    look_up = Saying(Guess(7, "n", 0.4), Guess(8, "nb", 0.2))
    (first, second) = BestOf([look_up, Saying(Guess(7, "h", 0.5))], Acceptance()).guesses()
    assert (first.token_id, first.kind, second.token_id) == (7, "h+n", 8)
    assert first.prior == pytest.approx(1 - 0.6 * 0.5)


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
    drafting = Drafting(drafter, clock=lambda: 0.0)
    drafting.answered(answered_step(0, rtt_s=rtt_s), (1,), 0.0, alone=True)
    for _ in range(48):
        assert drafting.extend(Chain(first_position=20)) is None
    assert drafter.count == asked
