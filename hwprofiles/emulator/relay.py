"""The TCP relay: accepts connections and joins each to the target across one shaped link."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from typing import Any

from hwprofiles.emulator.sockets import Address, EmulatedLane, LaneCounters, Side, Signal, tune
from hwprofiles.links.shape import LinkShape

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """The link so far. Latenesses are how late after the model's time a delivery was made."""

    up: LaneCounters
    down: LaneCounters
    open_connections: int
    total_connections: int
    dropped_connections: int
    failed_dials: int
    paused: bool
    running_s: float
    mean_lateness_s: float
    max_lateness_s: float


class Relay:
    """Accepts connections and joins each to `target` across one shared, shaped link.

    All methods must run in `loop`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, target: Address, shape: LinkShape
    ) -> None:
        self.target = target
        self._loop = loop
        self._up, self._down = EmulatedLane(loop, shape.up), EmulatedLane(loop, shape.down)
        self._sides: set[Side] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._started_s = loop.time()
        self._total_connections = self._dropped_connections = self._failed_dials = 0

    async def start(self, listen: Address) -> Address:
        """Listen; returns the bound address (port 0 picks one). Raises OSError."""
        family, where = await self._resolve(listen)
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tune(listener)  # accepted sockets inherit this
            listener.bind(where)
            self._server = await self._loop.create_server(self._accept, sock=listener)
        except OSError:
            listener.close()
            raise
        host, port, *_ = listener.getsockname()
        return host, port

    async def close(self) -> None:
        """Stop listening, reset every connection, and wait until the sockets are closed."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._dials):
            task.cancel()
        self.drop_connections()
        await asyncio.gather(*self._dials, return_exceptions=True)
        rounds = 0
        while self._sides or rounds < 3:  # a socket just accepted gets here some rounds later
            rounds += 1
            await asyncio.sleep(0)
            for side in self._sides:
                side.reset()
        for lane in (self._up, self._down):
            lane.stop()

    def set_shape(self, shape: LinkShape) -> None:
        """Change the link now; schedules and traces start at their beginning."""
        for lane, pipe_shape in ((self._up, shape.up), (self._down, shape.down)):
            lane.pipe.set_shape(self._loop.time(), pipe_shape)
            lane.pump()

    def pause(self) -> None:
        """Begin an outage: nothing enters the air in either direction, nothing is lost."""
        for lane in (self._up, self._down):
            lane.pipe.pause(self._loop.time())
            lane.pump()

    def resume(self) -> None:
        """End the outage."""
        for lane in (self._up, self._down):
            lane.pipe.resume(self._loop.time())
            lane.pump()

    def drop_connections(self) -> int:
        """Reset every open connection at both ends, at once; returns how many there were."""
        flows = {side.flow for side in self._sides}
        for side in tuple(self._sides):
            side.lane.forget(side)
            side.reset()
        self._dropped_connections += len(flows)
        return len(flows)

    def counters(self) -> Counters:
        """A snapshot."""
        up, down = self._up, self._down
        return Counters(
            up=up.counters(),
            down=down.counters(),
            open_connections=len({side.flow for side in self._sides}),
            total_connections=self._total_connections,
            dropped_connections=self._dropped_connections,
            failed_dials=self._failed_dials,
            paused=up.pipe.paused,
            running_s=self._loop.time() - self._started_s,
            mean_lateness_s=(up.sum_lateness_s + down.sum_lateness_s)
            / max(1, up.deliveries + down.deliveries),
            max_lateness_s=max(up.max_lateness_s, down.max_lateness_s),
        )

    def side_opened(self, side: Side) -> None:
        """A client is here (its SYN sets out only now: asyncio may take a while to bring it)."""
        if side.lane is self._up:
            self._up.offer(side, Signal.SYN)

    def dial(self, target_side: Side) -> None:
        """The client's SYN has arrived: connect to the target of the moment."""
        if target_side.peer.transport is None:
            return
        task = self._loop.create_task(self._dial(target_side))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    def side_closed(self, side: Side) -> None:
        """A socket is closed."""
        self._sides.discard(side)

    def _accept(self) -> Side:
        flow = self._total_connections
        self._total_connections += 1
        client, target = Side(self, flow, self._up), Side(self, flow, self._down)
        client.peer, target.peer = target, client
        self._sides.add(client)
        return client

    async def _dial(self, side: Side) -> None:
        try:
            sock = await self._connect(self.target)
        except OSError as error:
            self._failed_dials += 1
            logger.warning("cannot reach %s:%d: %s", *self.target, error)
            self._down.offer(side, Signal.RESET)
            return
        if side.peer.transport is None:  # the client left while we dialled
            sock.close()
            return
        self._sides.add(side)
        await self._loop.create_connection(lambda: side, sock=sock)
        self._down.offer(side, Signal.ACCEPTED)

    async def _connect(self, target: Address) -> socket.socket:
        family, where = await self._resolve(target)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            tune(sock)
            await self._loop.sock_connect(sock, where)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _resolve(self, address: Address) -> tuple[socket.AddressFamily, Any]:
        found = await self._loop.getaddrinfo(*address, type=socket.SOCK_STREAM)
        return found[0][0], found[0][4]
