"""Getting a session: servers in turn, backoff, a time limit; `edge.connector` simulated."""

from __future__ import annotations

from typing import Protocol

from optimizer.simulate.ports import Answer
from optimizer.simulate.record import Outcome
from optimizer.simulate.server import Owner, ServerSession
from optimizer.simulate.world import Device, World


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

    __slots__ = ("_attempt", "_deadline_s", "_device", "_next", "_num_failures", "_world")

    def __init__(self, world: World, device: Device, first: int) -> None:
        self._world = world
        self._device = device
        self._next = first
        self._num_failures = 0  # in a row
        self._attempt = 0  # answers to earlier ones come too late
        self._deadline_s = 0.0

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
        world, device = self._world, self._device
        self._attempt += 1
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
                    self._refused(opener, blocks, answer, was_alive)

            device.lanes.down.send(
                world.env.now + world.cloud_message_s,
                software.opened_bytes,
                lambda t: world.at(t, heard),
            )

        device.lanes.up.send(
            world.env.now + device.front.message_s,
            software.open_bytes,
            lambda t: world.at(t, lambda _: server.open(opener, blocks, answered)),
        )

    def _refused(self, opener: Opener, blocks: int, answer: Answer, was_alive: bool) -> None:
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
