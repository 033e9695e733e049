"""Sockets and timers around the two `Pipe`s of a link; every decision is the pipe's.

    client <-> Side(client) -> up lane   -> Side(target) <-> target
               Side(client) <- down lane <- Side(target)

Back-pressure: a side whose flow has no room in its lane stops reading its socket, so the sender's
own TCP slows down; so does a side whose peer does not take what was delivered. A connection is
set up like a real one, by three segments that cross the lanes: the target is dialled when the
client's SYN is through, the client's bytes are read when the answer is, and the target's when the
client's acknowledgement is (a server does not accept before, so one that speaks first, as HTTP/2
servers do, is heard after two round trips).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, cast

from hwprofiles.links.pipe import Pipe
from hwprofiles.links.shape import MAX_PACKET_BYTES, PipeShape

Address = tuple[str, int]

SIGNAL_BYTES = 40  # SYN, FIN and RST occupy the link as the IPv4 and TCP headers that they are

# The kernel's buffers are queues the model does not see, so they are kept small; but not smaller
# than what arrives on a fast link while the process is not scheduled for some milliseconds.
SOCKET_BUFFER_BYTES = 65_536
# Loopback would announce 65,483-byte segments, and a sender that waits for room for a whole one
# stalls on a small receive buffer; with Ethernet's size it flows.
SEGMENT_BYTES = 1_448


class Signal(Enum):
    """What crosses a lane besides bytes."""

    SYN = "syn"
    ACCEPTED = "accepted"
    ACKNOWLEDGED = "acknowledged"
    END = "end"
    RESET = "reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneCounters:
    """One direction so far. `delivered_bytes` is payload only, as handed to the receiver."""

    received_bytes: int
    delivered_bytes: int
    queued_bytes: int
    travelling_bytes: int


class EmulatedLane:
    """One direction: a pipe, the timer that drives it, and the sides waiting for room in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, shape: PipeShape) -> None:
        self.pipe: Pipe[tuple[Side, bytes | Signal]] = Pipe(shape, now_s=loop.time())
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: set[Side] = set()
        self.received_bytes = self.delivered_bytes = self.deliveries = 0
        self.sum_lateness_s = self.max_lateness_s = 0.0

    def offer(self, side: Side, item: bytes | Signal) -> None:
        """Send `item`, which comes from `side`, to its peer."""
        num_bytes = SIGNAL_BYTES
        if isinstance(item, bytes):
            num_bytes = len(item)
            self.received_bytes += num_bytes
        self.pipe.offer(self._loop.time(), side.flow, num_bytes, (side, item))
        self._arm()

    def wait_for_room(self, side: Side) -> None:
        """Have `side` look again whenever the lane has moved."""
        self._waiting.add(side)

    def forget(self, side: Side) -> None:
        """Drop what `side` has waiting."""
        self._waiting.discard(side)
        self.pipe.forget(self._loop.time(), side.flow)
        self.pump()

    def pump(self) -> None:
        """Deliver what is due, wake the sides that now have room, set the timer."""
        now_s = self._loop.time()
        for packet in self.pipe.advance(now_s):
            side, item = packet.payload
            if isinstance(item, bytes):
                lateness_s = now_s - packet.delivered_s
                self.deliveries += 1
                self.sum_lateness_s += lateness_s
                self.max_lateness_s = max(lateness_s, self.max_lateness_s)
                self.delivered_bytes += len(item)
            side.peer.deliver(item)
        self.wake()
        self._arm()

    def wake(self) -> None:
        """Let every waiting side try to read on."""
        for side in tuple(self._waiting):
            if side.try_reading():
                self._waiting.discard(side)

    def counters(self) -> LaneCounters:
        """A snapshot."""
        return LaneCounters(
            received_bytes=self.received_bytes,
            delivered_bytes=self.delivered_bytes,
            queued_bytes=self.pipe.queued_bytes,
            travelling_bytes=self.pipe.travelling_bytes,
        )

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        next_s = self.pipe.next_s()
        if self._timer is not None:
            if self._timer.when() == next_s and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if next_s < float("inf"):
            self._timer = self._loop.call_at(next_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.pump()


class SideOwner(Protocol):
    """What a side needs of the relay it belongs to."""

    def side_opened(self, side: Side) -> None:
        """`side` has its socket, and is not reading yet."""

    def dial(self, target_side: Side) -> None:
        """The client's SYN has crossed the link: connect `target_side`."""

    def side_closed(self, side: Side) -> None:
        """`side`'s socket is closed."""


class Side(asyncio.BufferedProtocol):
    """One of a connection's two sockets: reads into its lane, writes what the peer's brings."""

    peer: Side

    def __init__(self, owner: SideOwner, flow: int, lane: EmulatedLane) -> None:
        self.flow = flow
        self.lane = lane
        self.transport: asyncio.Transport | None = None
        self._owner = owner
        self._buffer = memoryview(bytearray(MAX_PACKET_BYTES))
        self._allowed = False  # the connection is established, so far as this side knows
        self._reading = True
        self._congested = False  # our socket does not take what we write
        self._ended_in = self._ended_out = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket; it is not read before both ends are there."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=SOCKET_BUFFER_BYTES)
        tune(self.transport.get_extra_info("socket"))
        if not self._allowed:
            self._stop_reading()
        self._owner.side_opened(self)

    def allow_reading(self) -> None:
        """The other end is there: bytes may be read from now on."""
        self._allowed = True
        if not self.try_reading():
            self.lane.wait_for_room(self)

    def try_reading(self) -> bool:
        """Read on if there is room; whether the matter is settled (else: ask again later)."""
        if self.transport is None or self.transport.is_closing() or self._ended_in:
            return True
        if self._allowed and not self.peer._congested and self.lane.pipe.room_bytes(self.flow):
            if not self._reading:
                self._reading = True
                self.transport.resume_reading()
            return True
        self._stop_reading()
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: at most a packet, and what the lane has room for."""
        pipe = self.lane.pipe
        room = pipe.room_bytes(self.flow) or pipe.packet_bytes()
        return self._buffer[: min(pipe.packet_bytes(), room)]

    def buffer_updated(self, nbytes: int) -> None:
        """Send what was read across the lane."""
        self.lane.offer(self, bytes(self._buffer[:nbytes]))
        if not self.try_reading():
            self.lane.wait_for_room(self)

    def eof_received(self) -> bool:
        """Send the end of this direction; the other one stays open."""
        self._ended_in = True
        self.lane.offer(self, Signal.END)
        return True  # keep our half open: the other direction may go on

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was on its way here, and tell the peer of a reset."""
        self.transport = None
        self._allowed = False
        self.peer.lane.forget(self.peer)  # what was on its way here has nowhere to go
        if exc is not None:  # the far socket failed; our own closing and aborting give None
            self.lane.offer(self, Signal.RESET)  # after the bytes that came before it
        self._owner.side_closed(self)

    def pause_writing(self) -> None:
        """The socket takes no more for now: the peer stops reading."""
        self._congested = True
        if not self.peer.try_reading():
            self.peer.lane.wait_for_room(self.peer)

    def resume_writing(self) -> None:
        """The socket takes bytes again."""
        self._congested = False
        self.peer.lane.wake()

    def deliver(self, item: bytes | Signal) -> None:
        """Something from the peer has crossed the link."""
        if item is Signal.SYN:
            self._owner.dial(self)
        elif self.transport is None or self.transport.is_closing():
            return
        elif isinstance(item, bytes):
            self.transport.write(item)
        elif item is Signal.ACCEPTED:
            self.lane.offer(self, Signal.ACKNOWLEDGED)
            self.allow_reading()
        elif item is Signal.ACKNOWLEDGED:
            self.allow_reading()
        elif item is Signal.END:
            self._ended_out = True
            with contextlib.suppress(OSError):  # the socket may be gone: connection_lost tells
                self.transport.write_eof()
        else:
            self.reset()
        self._close_when_both_ended()
        self.peer._close_when_both_ended()

    def reset(self) -> None:
        """Close at once with a TCP reset."""
        if self.transport is not None and not self.transport.is_closing():
            sock = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def _close_when_both_ended(self) -> None:
        if self._ended_in and self._ended_out and self.transport is not None:
            self.transport.close()

    def _stop_reading(self) -> None:
        if self._reading and self.transport is not None:
            self._reading = False
            self.transport.pause_reading()


def tune(sock: socket.socket) -> None:
    """No Nagle delay, small kernel buffers, Ethernet-sized segments."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    with contextlib.suppress(OSError):  # a connected socket may refuse; it has its size already
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
