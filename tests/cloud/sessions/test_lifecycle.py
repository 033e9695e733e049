"""The table of a session's life, and what the counts say after any sequence of events."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.errors import LifecycleError
from cloud.sessions.lifecycle import (
    TRANSITIONS,
    Lifecycle,
    SessionEvent,
    SessionKey,
    SessionLife,
    SessionState,
)

# Events that lead from the beginning of a life to each state.
WAY_TO = {
    SessionState.WAITING: (),
    SessionState.RUNNING: (SessionEvent.ADMIT,),
    SessionState.RESUMABLE: (SessionEvent.ADMIT, SessionEvent.BREAK),
    SessionState.CLOSING: (SessionEvent.ADMIT, SessionEvent.CLOSE),
    SessionState.FREED: (SessionEvent.ADMIT, SessionEvent.CLOSE, SessionEvent.FREE),
}
TENANTS = ("one", "two")


def counts(lifecycle: Lifecycle) -> tuple[int, ...]:
    of_tenants = (lifecycle.num_of_tenant(name) for name in TENANTS)
    return (
        lifecycle.num_waiting,
        lifecycle.num_resumable,
        lifecycle.num_with_blocks,
        *of_tenants,
    )


def life_in(lifecycle: Lifecycle, state: SessionState, tenant: str = "one") -> SessionLife:
    life = lifecycle.begin(SessionKey(tenant, "s"))
    for event in WAY_TO[state]:
        lifecycle.apply(life, event)
    assert life.state is state
    return life


@pytest.mark.parametrize(("state", "event"), list(product(SessionState, SessionEvent)))
def test_an_event_leads_where_the_table_says_or_is_an_error_that_changes_nothing(
    state: SessionState, event: SessionEvent
) -> None:
    lifecycle = Lifecycle()
    life = life_in(lifecycle, state)
    before = counts(lifecycle)
    if (state, event) in TRANSITIONS:
        lifecycle.apply(life, event)
        assert life.state is TRANSITIONS[state, event]
        return
    with pytest.raises(LifecycleError, match=f"{event.name} .* {state.name}"):
        lifecycle.apply(life, event)
    assert life.state is state
    assert counts(lifecycle) == before


def test_every_life_can_end_and_an_ended_one_never_goes_on() -> None:
    can_end = {SessionState.FREED}
    for _ in SessionState:
        can_end |= {state for (state, _), following in TRANSITIONS.items() if following in can_end}
    assert can_end == set(SessionState)
    assert not any(state is SessionState.FREED for state, _ in TRANSITIONS)


def test_only_a_closing_session_frees_blocks() -> None:
    """One event leads from a session with blocks to one without, so they are freed once."""
    holding = {SessionState.RUNNING, SessionState.RESUMABLE, SessionState.CLOSING}
    ways_out = [
        way
        for way, following in TRANSITIONS.items()
        if way[0] in holding and following not in holding
    ]
    assert ways_out == [(SessionState.CLOSING, SessionEvent.FREE)]


def test_a_session_that_closes_holds_blocks_but_counts_no_more_for_its_tenant() -> None:
    lifecycle = Lifecycle()
    life_in(lifecycle, SessionState.CLOSING)
    assert lifecycle.num_with_blocks == 1
    assert lifecycle.num_of_tenant("one") == 0


def test_the_oldest_is_the_one_that_entered_the_state_first() -> None:
    lifecycle = Lifecycle()
    early = lifecycle.begin(SessionKey("one", "early"))
    late = lifecycle.begin(SessionKey("two", "late"))
    assert lifecycle.oldest(SessionState.WAITING) is early
    assert lifecycle.oldest(SessionState.WAITING, "two") is late
    for life in (late, early):  # the other way round
        lifecycle.apply(life, SessionEvent.ADMIT)
    assert lifecycle.oldest(SessionState.RUNNING) is late
    assert lifecycle.oldest(SessionState.WAITING) is None
    assert lifecycle.oldest(SessionState.RUNNING, "three") is None


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(SessionEvent)), max_size=60))
def test_counts_are_true_and_blocks_are_freed_once_over_any_sequence_of_events(
    happenings: list[tuple[int, SessionEvent]],
) -> None:
    lifecycle = Lifecycle()
    lives = [lifecycle.begin(SessionKey(TENANTS[i % 2], f"s{i}")) for i in range(5)]
    reserved: Counter[SessionLife] = Counter()
    freed: Counter[SessionLife] = Counter()
    for index, event in happenings:
        life = lives[index]
        try:
            lifecycle.apply(life, event)
        except LifecycleError:
            continue
        reserved[life] += event is SessionEvent.ADMIT
        freed[life] += event is SessionEvent.FREE
        assert freed[life] <= reserved[life] <= 1
        assert lifecycle.num_with_blocks == reserved.total() - freed.total()
        states = Counter(life.state for life in lives)
        assert lifecycle.num_waiting == states[SessionState.WAITING]
        assert lifecycle.num_resumable == states[SessionState.RESUMABLE]
        assert min(counts(lifecycle)) >= 0
        closed = states[SessionState.CLOSING] + states[SessionState.FREED]
        assert sum(map(lifecycle.num_of_tenant, TENANTS)) == len(lives) - closed
