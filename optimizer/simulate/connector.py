"""Getting a session within a time limit; `edge.generation.connector` in simulated time.

A connection holds from a client's first attempt at an address until the server there is lost
(`channel`); one to a door is never lost. Making it costs the round trips of TCP, TLS and HTTP/2's
settings. Which address comes next, and after what wait, is decided by `optimizer.policy.retry`, as
on the edge; behind a door (`door`) its next Open may name a replica, as `edge.net.route` does.
"""

from __future__ import annotations

from typing import Protocol

from optimizer.policy.retry import ConnectAttempts, Failure
from optimizer.simulate.channel import Channel
from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.door import NOBODY, DoorRoute, OpenAnswer, OpenRequest
from optimizer.simulate.record import Outcome
from optimizer.simulate.sessions import SessionOwner, SimulatedSession


class Opener(SessionOwner, Protocol):
    """Whose session it is going to be."""

    def asked(self, at_s: float, *, continues: bool) -> None:
        """The Open leaves at `at_s`. Frames may follow it, unless it asks to go on (continues)."""
        ...

    def admitted(self, session: SimulatedSession) -> None:
        """The server has opened the session, now; the client does not know it yet."""
        ...

    def opened(self, session: SimulatedSession) -> None:
        """The client knows that the session is open, now."""
        ...

    def shut_out(self, outcome: Outcome) -> None:
        """No session could be had in time."""
        ...


class SimulatedConnector:
    """Opens one client's sessions. It remembers which address it used last."""

    __slots__ = (
        "_attempts",
        "_channels",
        "_context",
        "_deadline_s",
        "_device",
        "_number",
        "_older",
        "_route",
    )

    def __init__(self, context: SimulationContext, device: Device, first: int) -> None:
        self._context = context
        self._device = device
        self._attempts = ConnectAttempts(next_address=first)
        self._number = 0  # of the attempt under way; answers to earlier ones come too late
        self._deadline_s = 0.0
        self._older: SimulatedSession | None = None
        self._channels: dict[int, Channel] = {}  # by address
        self._route = DoorRoute()

    @property
    def server_number(self) -> int:
        """Which server it used last, or has been told to use next; NOBODY: the door knows."""
        if self._route.replica != NOBODY:
            return self._route.replica
        return self._context.addresses[self._address].number

    @property
    def _address(self) -> int:
        return self._attempts.next_address % len(self._context.addresses)

    def begin_answer(self) -> None:
        """Another answer: what was told to the last one's streams is forgotten."""
        self._route = DoorRoute(self._device.first_block())

    def connect(
        self,
        opener: Opener,
        blocks: int,
        timeout_s: float,
        *,
        wait_first: bool = False,
        older: SimulatedSession | None = None,
    ) -> None:
        """Ask for a session of `blocks` KV blocks within `timeout_s`, and tell `opener` the end.

        wait_first: the last session was lost before it brought anything; see `edge.generation`.
        older: on the server used last; the first Open asks to go on from it, which ends it.
        """
        now_s = self._context.env.now
        self._older = older
        self._deadline_s = now_s + timeout_s
        if not wait_first:
            self._attempts = self._attempts.begin()
            self._attempt(opener, blocks)
            return
        early = self._attempts.after_early_loss(self._context.scenario.patience, self._device.draw)
        if early is None:
            opener.shut_out("server_lost")
            return
        self._attempts = early.attempts
        self._attempt_at(now_s + min(early.wait_s, timeout_s), opener, blocks)

    def give_up(self) -> None:
        """Ignore whatever is answered from now on."""
        self._number += 1

    def _attempt(self, opener: Opener, blocks: int) -> None:
        context = self._context
        self._number += 1
        number, now_s = self._address, context.env.now
        channel = self._channels.get(number)
        if channel is None:
            channel = self._channels[number] = Channel()
        state = channel.state(context.addresses[number], now_s)
        if state == "connected":
            self._open(opener, blocks, now_s)
        elif state == "new":
            trips = context.scenario.software.connect_round_trips
            self._shake_hands(opener, blocks, channel, now_s, now_s, trips)
        else:
            self._failed(opener, blocks, "unreachable")

    def _shake_hands(
        self,
        opener: Opener,
        blocks: int,
        channel: Channel,
        begun_s: float,
        at_s: float,
        left: int,
    ) -> None:
        """Make a connection: `left` more round trips from `at_s` on, then the Open.

        It began at `begun_s`. This client sends nothing else meanwhile, so the trips are computed
        at once. A server that does not listen refuses in the first trip.
        """
        context, device, software = self._context, self._device, self._context.scenario.software
        number = self._number
        address = context.addresses[self._address]
        if not left:
            channel.connected(address, at_s - begun_s)
            self._open(opener, blocks, at_s)
            return
        up_bytes = -(-software.connect_up_bytes // software.connect_round_trips)
        down_bytes = -(-software.connect_down_bytes // software.connect_round_trips)
        context.record.up_bytes += up_bytes
        context.record.down_bytes += down_bytes

        def refused(_: object) -> None:
            if number == self._number:
                self._failed(opener, blocks, "unreachable")

        def answered(t: float) -> None:
            if number != self._number:
                return
            if address.alive:
                self._shake_hands(opener, blocks, channel, begun_s, t, left - 1)
            else:
                channel.failed(begun_s)
                context.at(t, refused)

        device.lanes.up.send(
            at_s + device.front.message_s,
            up_bytes,
            lambda t: device.lanes.down.send(t + context.cloud_message_s, down_bytes, answered),
        )

    def _open(self, opener: Opener, blocks: int, at_s: float) -> None:
        """Send the Open at `at_s`, over a connection that is there."""
        context, device = self._context, self._device
        number, software, route = self._number, context.scenario.software, self._route
        address = context.addresses[self._address]
        context.record.up_bytes += software.open_bytes
        older, self._older = self._older, None

        def answered(answer: OpenAnswer) -> None:
            session = answer.session
            if number != self._number:
                if session is not None:
                    session.server.leave(session)
                return
            if session is not None:
                opener.admitted(session)
            context.record.down_bytes += software.opened_bytes

            def heard(_: object) -> None:
                if number != self._number:
                    return
                if answer.replica != NOBODY:
                    route.replica = answer.replica
                if session is not None:
                    opener.opened(session)
                elif answer.failure is not None:
                    self._failed(opener, blocks, answer.failure, answer.retry_after_s)

            device.lanes.down.send(
                context.env.now + context.cloud_message_s,
                software.opened_bytes,
                lambda t: context.at(t, heard),
            )

        device.lanes.up.send(
            at_s + device.front.message_s,
            software.open_bytes,
            lambda t: context.at(
                t,
                lambda _: address.open(OpenRequest(opener, blocks, older, route), answered),
            ),
        )
        opener.asked(at_s, continues=older is not None)

    def _failed(
        self, opener: Opener, blocks: int, failure: Failure, retry_after_s: float = 0.0
    ) -> None:
        """Try again as the edge's policy says, or tell the opener that there is no session."""
        context, self._older = self._context, None
        now_s = context.env.now
        retry = self._attempts.after(
            failure,
            context.scenario.patience,
            num_addresses=1,  # all servers are equal, so one refusal speaks for all
            now_s=now_s,
            deadline_s=self._deadline_s,
            draw=self._device.draw,
            retry_after_s=retry_after_s,
        )
        if retry is None:
            opener.shut_out(_OUTCOMES[failure])
            return
        self._attempts = retry.attempts
        self._attempt_at(now_s + retry.wait_s, opener, blocks)

    def _attempt_at(self, at_s: float, opener: Opener, blocks: int) -> None:
        """Make the next attempt at `at_s`, unless the client has given up by then."""
        number = self._number

        def again(_: object) -> None:
            if number == self._number:
                self._attempt(opener, blocks)

        self._context.at(at_s, again)


_OUTCOMES: dict[Failure, Outcome] = {
    "busy": "busy",
    "unreachable": "server_lost",
    "refused": "refused",
}
