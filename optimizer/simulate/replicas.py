"""The servers of a simulation: which are there, since when, and how many the load wants.

Without `scaling` they are there from the start, and a lost one comes back in its place. With it,
their number follows `ScalingRule` as Ray Serve lets it (`optimizer.policy.replicas`). A new one
takes sessions after the start delay. One that is too many drains, the newest first, and hands its
last sessions back. A lost one is gone, and another one starts at once. A server costs from the
decision to start it until it has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from simpy import Environment
from simpy.events import Timeout

from optimizer.policy.replicas import ScalingState
from optimizer.simulate.door import OpenAddress, ServerAddress, SimulatedDoor
from optimizer.simulate.record import Record, ReplicaCount
from optimizer.simulate.scenario import Scaling
from optimizer.simulate.server import SimulatedServer
from optimizer.simulate.server_setup import make_server
from optimizer.simulate.setup import Setup


class SimulatedReplicas:
    """See the module's docstring. `servers`: all that ever were, by number."""

    def __init__(self, env: Environment, setup: Setup, record: Record, *, seed: int) -> None:
        self.servers: list[SimulatedServer] = []
        self._env = env
        self._setup = setup
        self._record = record
        self._seed = seed
        self._slots: dict[int, SimulatedServer] = {}  # of the door
        self._starting: list[SimulatedServer] = []
        servers = setup.scenario.servers
        self._state = ScalingState(count=servers.count)
        for _ in range(0 if setup.plan.edge_is_whole else servers.count):
            self._seat(self._made())
        self._note()
        if servers.scaling is not None and self.servers:
            self._after(servers.scaling.delays.every_s, partial(self._look, servers.scaling))

    def addresses(self) -> list[OpenAddress]:
        """What clients connect to; empty without servers."""
        if self.servers and self._setup.scenario.servers.has_door:
            return [SimulatedDoor(self._slots)]
        return [ServerAddress(server) for server in self.servers]

    def lose(self, number: int) -> None:
        """A server dies with all its sessions."""
        server = self.servers[number]
        if not server.alive:
            return
        server.lose()
        scaling = self._setup.scenario.servers.scaling
        if scaling is not None:
            self._end(server)
            self._fill(scaling)

    def finish(self) -> None:
        """Close the sums at the end of the simulation."""
        for server in self.servers:
            server.finish()
            self._record.servers.append(server.sums)

    def _made(self) -> SimulatedServer:
        server = make_server(self._env, self._setup, seed=self._seed, number=len(self.servers))
        server.sums.hired_s = self._env.now
        server.sums.ended_s = self._setup.scenario.duration_s
        self.servers.append(server)
        return server

    def _seat(self, server: SimulatedServer) -> None:
        """The lowest slot that is free, as `cloud.cluster.door_config.seats_after` gives it."""
        slot = next(n for n in range(1, len(self._slots) + 2) if n not in self._slots)
        self._slots[slot] = server

    def _look(self, scaling: Scaling) -> None:
        """Look at the load, and start or drain what it wants."""
        rule = scaling.rule(self._setup.scenario.servers.count)
        fullness = sum(server.load.fullness for server in self._serving())
        self._state = self._state.after(self._env.now, fullness, rule, scaling.delays)
        self._fill(scaling)
        too_many = len(self._starting) + len(self._serving()) - self._state.count
        for _ in range(max(too_many, 0)):
            self._dismiss(scaling)
        if self._env.now + scaling.delays.every_s < self._setup.scenario.duration_s:
            self._after(scaling.delays.every_s, partial(self._look, scaling))

    def _fill(self, scaling: Scaling) -> None:
        """Start as many as are missing."""
        missing = self._state.count - len(self._starting) - len(self._serving())
        for _ in range(missing):
            server = self._made()
            server.alive = False
            self._starting.append(server)
            self._after(scaling.start_delay_s, partial(self._started, server))
        self._note()

    def _started(self, server: SimulatedServer) -> None:
        if server in self._starting:
            self._starting.remove(server)
            server.restore()
            self._seat(server)
            self._note()

    def _dismiss(self, scaling: Scaling) -> None:
        """The newest one ends: at once if it only starts, else after its drain."""
        if self._starting:
            self._starting[-1].sums.ended_s = self._env.now
            self._starting.pop()
        else:
            server = self._serving()[-1]
            server.drain()
            server.when_empty(partial(self._end_drained, server))
            self._after(scaling.drain_s, partial(self._end_drained, server))
        self._note()

    def _end_drained(self, server: SimulatedServer) -> None:
        """It has no sessions any more, or hands them back."""
        if server.alive:
            server.lose()
            self._end(server)
            self._note()

    def _end(self, server: SimulatedServer) -> None:
        server.sums.ended_s = min(self._env.now, self._setup.scenario.duration_s)
        for slot, one in list(self._slots.items()):
            if one is server:
                del self._slots[slot]

    def _serving(self) -> list[SimulatedServer]:
        """Those that take sessions, or will after a loss without scaling; the newest last."""
        return sorted(
            (server for server in self._slots.values() if server.takes_sessions),
            key=lambda server: server.number,
        )

    def _note(self) -> None:
        """Remember how many there are from now on."""
        count = ReplicaCount(
            self._env.now, len(self._serving()), len(self._starting) + len(self._slots)
        )
        counts = self._record.replicas
        if counts and counts[-1].at_s == count.at_s:
            counts.pop()
        if not counts or counts[-1][1:] != count[1:]:
            counts.append(count)

    def _after(self, delay_s: float, call: Callable[[], None]) -> None:
        if delay_s <= 0:
            call()
            return
        Timeout(self._env, delay_s).callbacks.append(lambda _: call())
