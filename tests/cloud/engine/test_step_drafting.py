"""When a drafter is asked, and what its errors and waiting frames do to it."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest

from cloud.engine.step_drafting import DraftState, StepDrafting
from protos.messages import DraftChoice, Drafts


class State:
    """What a drafter keeps of a session."""

    def __init__(self) -> None:
        self.is_due = True
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


class Session:
    """A session that notes the guesses it is told."""

    def __init__(self) -> None:
        self.draft_state: State | None = State()
        self.heard: list[int] = []

    def deliver(self, drafts: Drafts) -> None:
        self.heard.append(len(drafts.choices))


class Counting:
    """A drafter whose n-th pass brings n guesses for each session."""

    def __init__(self, *, takes_steps: bool, num_passes: int = 3) -> None:
        self.takes_steps = takes_steps
        self.asked: list[int] = []
        self.ended = 0
        self._num_passes = num_passes

    def passes(
        self, states: Sequence[DraftState], *, step_s: float
    ) -> Generator[Sequence[Drafts | None]]:
        assert step_s == 0.01
        self.asked.append(len(states))
        try:
            for count in range(1, self._num_passes + 1):
                guess = (DraftChoice(5, 0.5),)
                drafts = Drafts(first_position=9, choices=(guess,) * count, source=1)
                yield [drafts, *[None] * (len(states) - 1)]
        finally:
            self.ended += 1


def test_a_drafter_with_short_passes_is_asked_after_the_step() -> None:
    drafter, session = Counting(takes_steps=False), Session()
    drafting = StepDrafting(drafter, lambda: True)
    drafting.after_step([session], step_s=0.01)
    assert session.heard == [1, 2, 3]
    drafting.when_idle()
    assert drafter.asked == [1]


def test_a_drafter_that_takes_steps_waits_until_no_frame_does() -> None:
    waits = True
    drafter, first, second = Counting(takes_steps=True), Session(), Session()
    drafting = StepDrafting(drafter, lambda: waits)
    drafting.after_step([first], step_s=0.01)
    drafting.when_idle()
    drafting.after_step([second, first], step_s=0.01)
    assert not drafter.asked
    waits = False
    drafting.when_idle()
    assert drafter.asked == [2]
    assert (first.heard, second.heard) == ([1, 2, 3], [])
    drafting.when_idle()
    assert drafter.asked == [2]  # once an answer


def test_a_frame_that_comes_stops_it_between_two_passes_and_it_goes_on_later() -> None:
    session = Session()
    drafter = Counting(takes_steps=True)
    drafting = StepDrafting(drafter, lambda: len(session.heard) == 1)
    drafting.after_step([session], step_s=0.01)
    drafting.when_idle()
    assert (session.heard, drafter.ended) == ([1], 1)
    session.heard.append(0)  # the frame was void: no step came
    drafting.when_idle()
    assert session.heard == [1, 0, 1, 2, 3]
    assert drafter.ended == 2


def test_few_sessions_share_a_pass_the_last_ones_first() -> None:
    drafter, sessions = Counting(takes_steps=True), [Session() for _ in range(10)]
    drafting = StepDrafting(drafter, lambda: False)
    drafting.after_step(sessions, step_s=0.01)
    drafting.when_idle()
    assert drafter.asked == [4, 4, 2]
    assert [at for at, one in enumerate(sessions) if one.heard] == [0, 2, 6]


def test_a_busy_server_takes_no_steps_for_guesses_and_an_idle_one_does_again() -> None:
    now = 0.0
    drafter, session = Counting(takes_steps=True), Session()
    drafting = StepDrafting(drafter, lambda: False, lambda: now)
    for _ in range(300):
        drafting.after_step([session], step_s=0.01)
        now += 0.012
    drafting.when_idle()
    assert not drafter.asked
    for _ in range(30):
        now += 0.09
        drafting.after_step([session], step_s=0.01)
    drafting.when_idle()
    assert drafter.asked == [1]


def test_sessions_that_closed_or_run_again_meanwhile_are_left_out() -> None:
    drafter, gone, runs = Counting(takes_steps=True), Session(), Session()
    drafting = StepDrafting(drafter, lambda: False)
    drafting.after_step([gone, runs], step_s=0.01)
    gone.draft_state = None
    assert runs.draft_state is not None
    runs.draft_state.is_due = False
    drafting.when_idle()
    assert not drafter.asked


def test_an_error_ends_the_guessing_for_its_sessions_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Counting):
        def passes(
            self, states: Sequence[DraftState], *, step_s: float
        ) -> Generator[Sequence[Drafts | None]]:
            yield [None] * len(states)
            raise RuntimeError("out of luck")

    session, other = Session(), Session()
    drafting = StepDrafting(Broken(takes_steps=True), lambda: False)
    drafting.after_step([session], step_s=0.01)
    drafting.when_idle()
    assert session.draft_state is not None
    assert session.draft_state.is_closed
    assert other.draft_state is not None
    assert not other.draft_state.is_closed
    assert "no more guesses" in caplog.text


def test_without_a_drafter_nothing_happens() -> None:
    session = Session()
    drafting = StepDrafting(None, lambda: False)
    drafting.after_step([session], step_s=0.01)
    drafting.when_idle()
    assert not session.heard
