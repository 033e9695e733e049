"""A simulated server alone: the queue that it is, who gets a place on it, and what a loss ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from simpy import Environment
from simpy.events import Timeout

from optimizer.policy.admission import AdmissionRule, Verdict
from optimizer.policy.batching import Scheduler
from optimizer.simulate.server import SimulatedServer
from optimizer.simulate.sessions import FrameInFlight, SimulatedSession

ONE_AT_A_TIME = Scheduler(max_rows=1, max_sessions=1, min_prefill_rows=1)


class Customers:
    """Frames of one row that come to a server at given moments, and what each of them waits."""

    def __init__(self, env: Environment, server: SimulatedServer, gaps_s: Sequence[float]) -> None:
        self._env, self._server, self._gaps_s = env, server, iter(gaps_s)
        self._sessions: list[SimulatedSession] = []
        self.times_s: list[float] = []
        self._next(None)

    def _next(self, _: object) -> None:
        if (gap_s := next(self._gaps_s, None)) is not None:
            Timeout(self._env, gap_s).callbacks.append(self._come)

    def _come(self, _: object) -> None:
        if not self._sessions:
            self._server.open(self, 1, self._opened)
        session = self._sessions.pop()
        self._server.receive(
            FrameInFlight(
                session,
                num_rows=1,
                num_logits=1,
                position=0,
                decode_s=0.0,
                sent_s=self._env.now,
                edge_s=0.0,
                wanted=True,
            )
        )
        self._next(None)

    def _opened(self, verdict: Verdict, session: SimulatedSession | None) -> None:
        assert session is not None, verdict
        self._sessions.append(session)

    def answered(self, frame: FrameInFlight, at_s: float) -> None:
        """See SessionOwner."""
        self.times_s.append(at_s - frame.arrived_s)
        self._sessions.append(frame.session)

    def lost(self, session: SimulatedSession, at_s: float) -> None:
        """See SessionOwner."""


class OneSecond:
    """A batch takes a second, whatever is in it."""

    def seconds(self, sessions: object, num_logits: int, ids: object = ()) -> float:
        """See BackTimes."""
        return 1.0


@pytest.mark.parametrize(("load", "count"), [(0.3, 30_000), (0.6, 60_000), (0.8, 140_000)])
def test_a_server_that_takes_one_at_a_time_is_the_m_d_1_queue(load: float, count: int) -> None:
    """The mean wait is Pollaczek and Khinchine's: load * service / (2 (1 - load)).

    The Poisson stream's gaps are the exponential's evenly spaced quantiles, shuffled: only their
    order is left to chance. At this length it moves the mean by 1 to 1.5 % (a standard deviation);
    each wait is Lindley's on the same gaps, whatever the seed.
    """
    levels = (np.arange(count) + 0.5) / count
    gaps_s = -np.log1p(-levels) / load
    np.random.default_rng(4).shuffle(gaps_s)
    env = Environment()
    server = SimulatedServer(
        env,
        scheduler=ONE_AT_A_TIME,
        admission=AdmissionRule(max_sessions=10**9),
        back=OneSecond(),
        total_blocks=10**9,
        sample_s=0.0,
        horizon_s=math.inf,
    )
    customers = Customers(env, server, gaps_s.tolist())
    env.run()
    assert len(customers.times_s) == count
    expected_s = load / (2 * (1 - load))
    waits_s = np.array(customers.times_s) - 1
    # Lindley's recursion unrolled: the work that came in since it was last used up.
    work_s = np.concatenate([[0.0], np.cumsum(1 - gaps_s[1:])])
    assert waits_s == pytest.approx(work_s - np.minimum.accumulate(work_s), abs=1e-6)
    assert float(np.mean(waits_s)) == pytest.approx(expected_s, rel=0.02)
    assert server.sums.busy_s == pytest.approx(count, rel=1e-6)


class Owners:
    """Opens sessions of two blocks each, and keeps what it is told."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server
        self.verdicts: list[Verdict] = []
        self.sessions: list[SimulatedSession] = []
        self.lost_sessions: list[SimulatedSession] = []

    def open(self) -> None:
        self._server.open(self, 2, self._opened)

    def _opened(self, verdict: Verdict, session: SimulatedSession | None) -> None:
        self.verdicts.append(verdict)
        if session is not None:
            self.sessions.append(session)

    def answered(self, frame: FrameInFlight, at_s: float) -> None:
        """See SessionOwner."""

    def lost(self, session: SimulatedSession, at_s: float) -> None:
        """See SessionOwner."""
        self.lost_sessions.append(session)


def small_server(env: Environment, **limits: float) -> SimulatedServer:
    """Five KV blocks: room for two sessions of two, and two more may wait."""
    return SimulatedServer(
        env,
        scheduler=Scheduler(),
        admission=AdmissionRule(max_sessions=9, max_waiting=2),
        back=OneSecond(),
        total_blocks=5,
        sample_s=0.0,
        horizon_s=100.0,
        **limits,
    )


def test_places_go_first_come_first_served_as_they_become_free() -> None:
    server = small_server(Environment())
    owners = Owners(server)
    for _ in range(5):
        owners.open()
    assert [verdict.kind for verdict in owners.verdicts] == ["admit", "admit", "busy"]
    server.leave(owners.sessions[0])
    server.leave(owners.sessions[0])  # the second time says nothing new
    assert [verdict.kind for verdict in owners.verdicts[3:]] == ["admit"]
    server.leave(owners.sessions[1])
    assert len(owners.sessions) == 4
    assert (server.sums.refused, server.sums.peak_sessions, server.sums.kv_peak_blocks) == (1, 2, 4)


def test_who_waits_too_long_is_refused_and_told_when_to_come_back() -> None:
    env = Environment()
    server = small_server(env, max_wait_s=2.0)
    owners = Owners(server)
    for _ in range(4):
        owners.open()
    env.run(until=2.5)
    assert owners.verdicts[2:] == [Verdict("busy", 2.0), Verdict("busy", 1.0)]
    server.leave(owners.sessions[0])
    assert len(owners.sessions) == 2


def test_a_lost_server_tells_its_sessions_and_its_queue() -> None:
    server = small_server(Environment())
    owners = Owners(server)
    for _ in range(3):
        owners.open()
    server.lose()
    assert owners.lost_sessions == owners.sessions
    assert [verdict.kind for verdict in owners.verdicts] == ["admit", "admit", "busy"]
    owners.open()
    assert owners.verdicts[-1] == Verdict("busy")
    server.restore()
    owners.open()
    assert owners.verdicts[-1].kind == "admit"
    assert server.life == 1
