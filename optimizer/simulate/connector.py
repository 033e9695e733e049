"""Getting a session: servers in turn, backoff, a time limit; `edge.generation.connector` simulated.

A connection stands from a client's first knock at a server until that server is lost (`channel`);
making it costs the round trips of TCP, TLS and HTTP/2's settings.
"""

from __future__ import annotations

from typing import Protocol

from optimizer.simulate.channel import Channel
from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.ports import Answer, Reply
from optimizer.simulate.record import Outcome
from optimizer.simulate.server import Owner, ServerSession


class Opener(Owner, Protocol):
    """Whose session it is going to be."""

    def opened(self, session: ServerSession) -> None:
        """The session is open, now."""
        ...

    def shut_out(self, outcome: Outcome) -> None:
        """None could be had in time."""
        ...


class Connector:
    """One client's way of knocking. It remembers which server it used last."""

    __slots__ = (
        "_attempt",
        "_channels",
        "_deadline_s",
        "_device",
        "_next",
        "_num_failures",
        "_world",
    )

    def __init__(self, world: SimulationContext, device: Device, first: int) -> None:
        self._world = world
        self._device = device
        self._next = first
        self._num_failures = 0  # in a row
        self._attempt = 0  # answers to earlier ones come too late
        self._deadline_s = 0.0
        self._channels: dict[int, Channel] = {}  # by server

    @property
    def server_number(self) -> int:
        """Which server it used last."""
        return self._next % len(self._world.servers)

    def connect(self, opener: Opener, blocks: int, timeout_s: float) -> None:
        """A session of `blocks` KV blocks within `timeout_s`; `opener` is told what came of it."""
        self._deadline_s = self._world.env.now + timeout_s
        self._num_failures = 0
        self._knock(opener, blocks)

    def give_up(self) -> None:
        """Whatever is answered now comes too late."""
        self._attempt += 1

    def _knock(self, opener: Opener, blocks: int) -> None:
        world = self._world
        self._attempt += 1
        number, now_s = self.server_number, world.env.now
        channel = self._channels.get(number)
        if channel is None:
            channel = self._channels[number] = Channel()
        state = channel.state(world.servers[number], now_s)
        if state == "stands":
            self._open(opener, blocks, now_s)
        elif state == "new":
            trips = world.scenario.software.connect_round_trips
            self._shake_hands(opener, blocks, channel, now_s, now_s, trips)
        else:
            self._refused(opener, blocks, Reply("busy"), was_alive=False)

    def _shake_hands(
        self,
        opener: Opener,
        blocks: int,
        channel: Channel,
        begun_s: float,
        at_s: float,
        left: int,
    ) -> None:
        """Make a connection, begun at `begun_s` and so far at `at_s`: `left` round trips, then the
        Open.

        Nothing else of this client's is on its way meanwhile, so the trips are computed in one
        go. A server that does not listen says so in the first one.
        """
        world, device, software = self._world, self._device, self._world.scenario.software
        attempt = self._attempt
        server = world.servers[self.server_number]
        if not left:
            channel.connected(server, at_s - begun_s)
            self._open(opener, blocks, at_s)
            return
        up_bytes = -(-software.connect_up_bytes // software.connect_round_trips)
        down_bytes = -(-software.connect_down_bytes // software.connect_round_trips)
        world.record.up_bytes += up_bytes
        world.record.down_bytes += down_bytes

        def refused(_: object) -> None:
            if attempt == self._attempt:
                self._refused(opener, blocks, Reply("busy"), was_alive=False)

        def answered(t: float) -> None:
            if attempt != self._attempt:
                return
            if server.alive:
                self._shake_hands(opener, blocks, channel, begun_s, t, left - 1)
            else:
                channel.failed(begun_s)
                world.at(t, refused)

        device.lanes.up.send(
            at_s + device.front.message_s,
            up_bytes,
            lambda t: device.lanes.down.send(t + world.cloud_message_s, down_bytes, answered),
        )

    def _open(self, opener: Opener, blocks: int, at_s: float) -> None:
        """Announce the session, at `at_s`, over a connection that stands."""
        world, device = self._world, self._device
        attempt, software = self._attempt, world.scenario.software
        server = world.servers[self.server_number]
        world.record.up_bytes += software.open_bytes

        def answered(answer: Answer, session: ServerSession | None) -> None:
            if attempt != self._attempt:
                if session is not None:
                    server.leave(session)
                return
            world.record.down_bytes += software.opened_bytes
            was_alive = server.alive

            def heard(_: object) -> None:
                if attempt != self._attempt:
                    return
                if session is not None:
                    opener.opened(session)
                else:
                    self._refused(opener, blocks, answer, was_alive=was_alive)

            device.lanes.down.send(
                world.env.now + world.cloud_message_s,
                software.opened_bytes,
                lambda t: world.at(t, heard),
            )

        device.lanes.up.send(
            at_s + device.front.message_s,
            software.open_bytes,
            lambda t: world.at(t, lambda _: server.open(opener, blocks, answered)),
        )

    def _refused(self, opener: Opener, blocks: int, answer: Answer, *, was_alive: bool) -> None:
        world, patience = self._world, self._world.scenario.patience
        if answer.kind == "never":  # all servers are equal, so all would say so
            opener.shut_out("refused")
            return
        if was_alive:
            wait_s = answer.retry_after_s
        else:
            self._num_failures += 1
            full_s = patience.first_backoff_s * 2.0 ** min(self._num_failures - 1, 30)
            wait_s = min(full_s, patience.max_backoff_s) * (0.5 + 0.5 * self._device.draw())
        if world.env.now + wait_s >= self._deadline_s:
            opener.shut_out("busy" if was_alive else "server_lost")
            return
        self._next += 1
        attempt = self._attempt

        def again(_: object) -> None:
            if attempt == self._attempt:
                self._knock(opener, blocks)

        world.at(world.env.now + wait_s, again)
