"""What a client connects to: a server's own address, or one door before several replicas.

The door is the HAProxy of `serve --replicas`: it carries a client's connection, and chooses a
replica for every Open (`optimizer.policy.replica_choice`). A replica names itself to the client,
and a full one names the one with the most room (`optimizer.policy.replicas`); the next Open of the
same answer goes there. Forwarding takes no time here. Replicas know each other's loads at once,
real ones four times a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from hwprofiles.links.shape import uniform
from optimizer.policy.admission import Verdict
from optimizer.policy.replica_choice import SlotLoad, chosen_slot
from optimizer.policy.replicas import least_loaded, retry_after_s
from optimizer.policy.retry import Failure
from optimizer.simulate.channel import ServerLife
from optimizer.simulate.scenario import Clients
from optimizer.simulate.server import SimulatedServer
from optimizer.simulate.sessions import SessionOwner, SimulatedSession
from optimizer.simulate.workload import ClientSpec

NOBODY = -1
_HASHES = 1 << 32
_GROUP_SEEDS = 1 << 40  # beyond every client's number


@dataclass(slots=True)
class DoorRoute:
    """What an answer's Opens tell the door: the hash of the prompt's first block, and the replica
    that was named last."""

    first_block: int = 0
    replica: int = NOBODY


class OpenAnswer(NamedTuple):
    """What comes back for an Open. failure: None with a session. replica: which one is named."""

    session: SimulatedSession | None
    failure: Failure | None
    retry_after_s: float = 0.0
    replica: int = NOBODY


Answered: TypeAlias = Callable[[OpenAnswer], None]


class OpenRequest(NamedTuple):
    """An Open: whose it is, its KV blocks, and the older session that it goes on from, if any."""

    owner: SessionOwner
    blocks: int
    older: SimulatedSession | None
    route: DoorRoute


class OpenAddress(ServerLife, Protocol):
    """Where a client's connection ends. `number`: of the server, NOBODY for the door."""

    @property
    def number(self) -> int: ...
    def open(self, request: OpenRequest, answered: Answered) -> None:
        """The Open has arrived; `answered` is called now or later."""
        ...


class ServerAddress:
    """One server's own address."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server

    @property
    def number(self) -> int:
        """Of the server."""
        return self._server.number

    @property
    def life(self) -> int:
        """See ServerLife."""
        return self._server.life

    @property
    def alive(self) -> bool:
        """See ServerLife."""
        return self._server.alive

    @property
    def since_s(self) -> float:
        """See ServerLife."""
        return self._server.since_s

    def open(self, request: OpenRequest, answered: Answered) -> None:
        """See OpenAddress."""
        server = self._server

        def opened(verdict: Verdict, session: SimulatedSession | None) -> None:
            answered(_answer_of(server, verdict, session))

        server.open(request.owner, request.blocks, opened, request.older)


class SimulatedDoor:
    """One address for all replicas. slots: the replica of each slot that has one, by its number."""

    number = NOBODY
    life = 0
    alive = True
    since_s = 0.0

    def __init__(self, slots: Mapping[int, SimulatedServer]) -> None:
        self._slots = slots

    def open(self, request: OpenRequest, answered: Answered) -> None:
        """See OpenAddress."""
        server = self._chosen(request.route)
        if server is None:
            answered(OpenAnswer(None, "unreachable"))
            return

        def opened(verdict: Verdict, session: SimulatedSession | None) -> None:
            answer = _answer_of(server, verdict, session)
            if session is not None:
                answer = answer._replace(replica=server.number)
            elif answer.failure == "busy":
                answer = self._advised(server, answer)
            answered(answer)

        server.open(request.owner, request.blocks, opened, request.older)

    def _chosen(self, route: DoorRoute) -> SimulatedServer | None:
        loads, named = [], None
        for number in sorted(self._slots):
            server = self._slots[number]
            if server.alive:
                load = server.load
                loads.append(SlotLoad(number, load.sessions + load.waiting, server.takes_sessions))
                named = number if server.number == route.replica else named
        slot = chosen_slot(loads, route.first_block, named=named)
        return None if slot is None else self._slots[slot]

    def _advised(self, full: SimulatedServer, answer: OpenAnswer) -> OpenAnswer:
        """A refusal for lack of room, with the replica that has the most."""
        others = {
            str(server.number): server
            for server in self._slots.values()
            if server.takes_sessions and server is not full
        }
        loads = {name: server.load for name, server in others.items()}
        name = least_loaded(loads)
        if name is None:
            return answer
        wait_s = min(answer.retry_after_s, retry_after_s(loads[name]))
        return answer._replace(retry_after_s=wait_s, replica=others[name].number)


def first_blocks(group: Clients, spec: ClientSpec, seed: int) -> Callable[[], int]:
    """A function that gives the hash of the first block of a client's next prompt."""
    count = itertools.count(1)

    def following() -> int:
        if group.same_beginning == "group":
            return int(_HASHES * uniform(seed, _GROUP_SEEDS + spec.group))
        number = next(count) if group.same_beginning == "none" else 0
        return int(_HASHES * uniform(seed + number * _GROUP_SEEDS, spec.number))

    return following


def _answer_of(
    server: SimulatedServer, verdict: Verdict, session: SimulatedSession | None
) -> OpenAnswer:
    """A server that dies or drains while an Open waits gives no verdict."""
    if session is not None:
        return OpenAnswer(session, None)
    if verdict.kind == "never":
        return OpenAnswer(None, "refused")
    failure: Failure = "busy" if server.takes_sessions else "unreachable"
    return OpenAnswer(None, failure, verdict.retry_after_s)
