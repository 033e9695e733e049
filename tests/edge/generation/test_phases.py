"""The table of phases: every pair of phase and event, and that nothing goes around the table."""

from __future__ import annotations

import itertools

import pytest

from edge.errors import SessionError
from edge.generation.phases import RESUMING, TRANSITIONS, Event, Phase, next_phase
from edge.generation.session import EdgeSession
from protos.messages import Result

# Written out a second time, by phase: what each event leads to. Every other pair is an error.
ALLOWED: dict[Phase, dict[Event, Phase]] = {
    Phase.IDLE: {Event.OPEN: Phase.OPENING, Event.FINISH: Phase.FINISHED},
    Phase.OPENING: {
        Event.SENT_CHUNK: Phase.OPENING,
        Event.SENT_LAST: Phase.OPENING,
        Event.OPENED: Phase.PREFILLING,
        Event.RESUMED_WAITING: Phase.WAITING,
        Event.RESUMED_READY: Phase.READY,
        Event.LOST: Phase.BROKEN,
        Event.FINISH: Phase.FINISHED,
    },
    Phase.PREFILLING: {
        Event.SENT_CHUNK: Phase.PREFILLING,
        Event.SENT_LAST: Phase.WAITING,
        Event.ACKNOWLEDGED: Phase.PREFILLING,
        Event.LOST: Phase.BROKEN,
        Event.FINISH: Phase.FINISHED,
    },
    Phase.WAITING: {
        Event.SENT_AHEAD: Phase.WAITING,
        Event.ACKNOWLEDGED: Phase.WAITING,
        Event.TOKENS: Phase.READY,
        Event.TOKENS_AS_GUESSED: Phase.WAITING,
        Event.LOST: Phase.BROKEN,
        Event.FINISH: Phase.FINISHED,
    },
    Phase.READY: {
        Event.SENT_LAST: Phase.WAITING,
        Event.ACKNOWLEDGED: Phase.READY,
        Event.LOST: Phase.BROKEN,
        Event.FINISH: Phase.FINISHED,
    },
    Phase.BROKEN: {
        Event.OPEN: Phase.OPENING,
        Event.LOST: Phase.BROKEN,
        Event.FINISH: Phase.FINISHED,
    },
    Phase.FINISHED: {Event.FINISH: Phase.FINISHED},
}
PAIRS = list(itertools.product(Phase, Event))


@pytest.mark.parametrize(
    ("phase", "event"), PAIRS, ids=[f"{phase.name}-{event.name}" for phase, event in PAIRS]
)
def test_every_pair_leads_where_it_should_or_is_an_error(phase: Phase, event: Event) -> None:
    session = EdgeSession([1], chunk_tokens=4)
    session._phase = phase
    if event in ALLOWED[phase]:
        assert next_phase(phase, event) is ALLOWED[phase][event]
        session._step(event)
        assert session.phase is ALLOWED[phase][event]
    else:
        message = f"{event.name} is not possible while {phase.name}"
        with pytest.raises(SessionError, match=message):
            next_phase(phase, event)
        with pytest.raises(SessionError, match=message):
            session._step(event)
        assert session.phase is phase


def test_every_phase_can_be_reached_and_only_finished_has_no_way_on() -> None:
    reached = {Phase.IDLE} | set(TRANSITIONS.values())
    assert reached == set(Phase)
    stuck = {
        phase
        for phase in Phase
        if {to for (start, _), to in TRANSITIONS.items() if start is phase} <= {phase}
    }
    assert stuck == {Phase.FINISHED}


def test_a_reopened_stream_resumes_in_the_phase_that_was_lost() -> None:
    for phase, event in RESUMING.items():
        assert next_phase(Phase.OPENING, event) is phase
        assert next_phase(phase, Event.LOST) is Phase.BROKEN
    losable = {phase for phase in Phase if TRANSITIONS.get((phase, Event.LOST)) is not None}
    assert losable - {Phase.OPENING, Phase.BROKEN} == set(RESUMING)


def test_nothing_but_an_event_changes_the_phase() -> None:
    session = EdgeSession([1], chunk_tokens=4)
    with pytest.raises(AttributeError):
        session.phase = Phase.READY  # type: ignore[misc]


def test_a_session_takes_every_change_of_phase_from_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A whole life with two losses: each phase seen is the one that the last event led to."""
    led_to: list[Phase] = []

    def told(phase: Phase, event: Event) -> Phase:
        led_to.append(next_phase(phase, event))
        return led_to[-1]

    monkeypatch.setattr("edge.generation.session.next_phase", told)
    session = EdgeSession([1, 2, 3], chunk_tokens=8)
    seen: list[Phase] = []

    def reopen() -> None:
        session.lost()
        session.open()
        session.opened()
        session.replay()
        seen.append(session.phase)

    session.open()
    session.opened()
    reopen()
    rows = session.next_rows()
    assert rows is not None
    session.sent(rows, b"")
    reopen()
    session.received(Result(sequence=0, token_ids=(9,), num_tokens=3))
    reopen()
    assert seen == [Phase.PREFILLING, Phase.WAITING, Phase.READY]
    session.finish()
    assert session.phase is led_to[-1] is Phase.FINISHED
    assert len(led_to) == 2 + 3 + 1 + 3 + 1 + 3 + 1
