"""One direction of a link as a model without a clock: packets and times in, delivery times out.

A packet waits in its flow's queue, is sent at the link's rate, then travels for the delay:

    offer -> [queue of flow 0]
             [queue of flow 1]  -> send at rate(t) -> delay(t) + jitter(t) -> delivered
             [queue of flow 2]
             deficit round robin

Whoever drives it (the emulator with a real clock, the simulator with a virtual one, a test with a
list) calls `offer` when bytes enter and `advance` no later than `next_s`. Being driven late never
changes what the model computes: only the driver's own deliveries are late.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hwprofiles.links.shape import PipeShape

P = TypeVar("P")

# A packet counts as sent when all but this much of it is: rounding in a trace's sums must not carry
# the end of a packet across the end of a row, because the next row may be an outage.
ROUNDING_BYTES = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery(Generic[P]):
    """A packet that has come out of the far end."""

    delivered_s: float
    flow: Hashable
    num_bytes: int
    payload: P


class Pipe(Generic[P]):
    """One direction of a link, shared by any number of flows.

    Fair sharing is deficit round robin (Shreedhar and Varghese 1995, "Efficient fair queueing
    using deficit round robin"): flows that always have data get equal rates to within one packet.
    Delivery keeps the order of sending: jitter may hold packets back, never reorder them.

    The bounded queue is a promise between `room_bytes` and the driver: a driver that offers a flow
    no more than its room holds at most `queue_bytes`, split evenly over the flows that are waiting.
    Offering more is accepted (the simulator may want an endless queue).
    """

    def __init__(self, shape: PipeShape, *, now_s: float = 0.0) -> None:
        self._shape = shape
        self._origin_s = now_s  # the shape's schedules count from here
        self._now_s = now_s
        self._queues: dict[Hashable, deque[tuple[int, P]]] = {}
        self._queued_bytes: dict[Hashable, int] = {}
        self._round: deque[Hashable] = deque()  # flows with packets waiting, next first
        self._deficits: dict[Hashable, int] = {}
        self._sending: tuple[Hashable, int, P] | None = None
        # Sending is tracked as a position on the schedule's integral (bytes the link could have
        # carried so far), not as a time: a long busy period then accumulates no rounding.
        self._end_position = 0.0
        self._end_s = math.inf
        self._paused_with: float | None = None  # bytes left of the packet that a pause interrupted
        self._line: deque[Delivery[P]] = deque()  # sent, still travelling
        self._last_delivery_s = -math.inf
        self.delivered_bytes = 0

    @property
    def shape(self) -> PipeShape:
        """The shape in force."""
        return self._shape

    @property
    def paused(self) -> bool:
        """Whether an outage is on."""
        return self._paused_with is not None

    @property
    def queued_bytes(self) -> int:
        """Bytes waiting or being sent."""
        return sum(self._queued_bytes.values())

    @property
    def travelling_bytes(self) -> int:
        """Bytes sent and not yet delivered."""
        return sum(packet.num_bytes for packet in self._line)

    def packet_bytes(self) -> int:
        """How large packets should be that enter now."""
        return self._shape.packet_bytes(self._now_s - self._origin_s)

    def room_bytes(self, flow: Hashable) -> int:
        """How much more `flow` may offer now; 0 when less than a packet fits."""
        waiting = len(self._queued_bytes) + (flow not in self._queued_bytes)
        packet = self.packet_bytes()
        share = max(self._shape.queue_bytes // waiting, 2 * packet)
        room = share - self._queued_bytes.get(flow, 0)
        return room if room >= packet else 0

    def offer(self, now_s: float, flow: Hashable, num_bytes: int, payload: P) -> None:
        """Packet `payload` of `num_bytes` > 0 enters `flow`'s queue at now_s."""
        self._run(now_s)
        queue = self._queues.get(flow)
        if queue is None:
            queue = self._queues[flow] = deque()
            self._deficits[flow] = 0
            self._round.append(flow)
        queue.append((num_bytes, payload))
        self._queued_bytes[flow] = self._queued_bytes.get(flow, 0) + num_bytes
        if self._sending is None and not self.paused:
            self._send_next(self._position(now_s))

    def next_s(self) -> float:
        """When something happens next (a packet is sent or delivered); infinity when idle."""
        return min(self._end_s, self._line[0].delivered_s) if self._line else self._end_s

    def advance(self, now_s: float) -> list[Delivery[P]]:
        """Move to now_s; returns what was delivered by then, in order."""
        self._run(now_s)
        delivered = []
        while self._line and self._line[0].delivered_s <= now_s:
            packet = self._line.popleft()
            self.delivered_bytes += packet.num_bytes
            delivered.append(packet)
        return delivered

    def set_shape(self, now_s: float, shape: PipeShape) -> None:
        """The link changes: its schedules start at now_s, what already travels is not touched."""
        self._run(now_s)
        left = self._left(now_s)
        self._shape, self._origin_s = shape, now_s
        if left is not None and not self.paused:
            self._end_at(left)

    def pause(self, now_s: float) -> None:
        """An outage begins: nothing is sent until `resume`; what already travels arrives."""
        self._run(now_s)
        if not self.paused:
            self._paused_with = self._left(now_s) or 0.0
            self._end_s = math.inf

    def resume(self, now_s: float) -> None:
        """The outage ends; sending goes on where it stopped. (A schedule ran on meanwhile.)"""
        self._run(now_s)
        if self._paused_with is None:
            return
        left, self._paused_with = self._paused_with, None
        if self._sending is not None:
            self._end_at(self._position(now_s) + left)
        else:
            self._send_next(self._position(now_s))

    def forget(self, now_s: float, flow: Hashable) -> None:
        """Drop what `flow` has waiting or being sent (its connection is gone)."""
        self._run(now_s)
        self._leave(flow)
        self._queued_bytes.pop(flow, None)
        if self._sending is not None and self._sending[0] == flow:
            self._sending, self._end_s = None, math.inf
            if self._paused_with is None:
                self._send_next(self._position(now_s))

    def _position(self, now_s: float) -> float:
        return self._shape.rate.integral(now_s - self._origin_s)

    def _left(self, now_s: float) -> float | None:
        """Bytes still to send of the packet being sent."""
        if self._sending is None:
            return None
        if self._paused_with is not None:
            return self._paused_with
        return max(0.0, self._end_position - self._position(now_s))

    def _end_at(self, position: float) -> None:
        self._end_position = position
        self._end_s = self._origin_s + self._shape.rate.when(position - ROUNDING_BYTES)

    def _run(self, now_s: float) -> None:
        """Finish every packet whose last byte is sent by now_s, starting the next one each time."""
        self._now_s = max(now_s, self._now_s)
        while self._end_s <= now_s and self._sending is not None:
            flow, num_bytes, payload = self._sending
            since_s = self._end_s - self._origin_s
            arrive_s = (
                self._end_s
                + self._shape.delay_s.value(since_s)
                + self._shape.extra_delay_s(since_s)
            )
            self._last_delivery_s = max(arrive_s, self._last_delivery_s)
            self._line.append(
                Delivery(
                    delivered_s=self._last_delivery_s,
                    flow=flow,
                    num_bytes=num_bytes,
                    payload=payload,
                )
            )
            self._queued_bytes[flow] -= num_bytes
            if flow not in self._queues:
                del self._queued_bytes[flow]
            self._sending, self._end_s = None, math.inf
            self._send_next(self._end_position)

    def _send_next(self, position: float) -> None:
        """Start sending the next packet by deficit round robin, at `position` on the schedule."""
        while self._round:
            flow = self._round[0]
            queue = self._queues[flow]
            num_bytes = queue[0][0]
            if self._deficits[flow] < num_bytes:
                self._deficits[flow] += self.packet_bytes()
                self._round.rotate(-1)
                continue
            self._deficits[flow] -= num_bytes
            _, payload = queue.popleft()
            if not queue:
                self._leave(flow)
            self._sending = (flow, num_bytes, payload)
            self._end_at(position + num_bytes)
            return

    def _leave(self, flow: Hashable) -> None:
        if self._queues.pop(flow, None) is not None:
            self._round.remove(flow)
            del self._deficits[flow]


def deliver_all(
    pipe: Pipe[P], packets: Iterable[tuple[float, Hashable, int, P]]
) -> list[Delivery[P]]:
    """Send `packets` (time, flow, bytes, payload; times not falling) and run until all arrived.

    Packets that an endless outage holds are left in the pipe.
    """
    delivered = []
    for now_s, flow, num_bytes, payload in packets:
        delivered += pipe.advance(now_s)
        pipe.offer(now_s, flow, num_bytes, payload)
    while (next_s := pipe.next_s()) < math.inf:
        delivered += pipe.advance(next_s)
    return delivered
