"""Links in the simulator: a client's own in closed form, a shared one as the emulator's queues.

Both follow `hwprofiles.links.pipe.Pipe`. A message waits in the queue, is sent at rate(t), travels
for delay(t) + jitter(t), and never overtakes the message before it. A client that has its link for
itself sends first in, first out. Each arrival then follows from the one before by two look-ups on
the rate's integral, without an event. A link that several clients share is a `Pipe` on the
simulator's clock. It works packet by packet and is fair among the clients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

from simpy import Environment
from simpy.events import Timeout

from hwprofiles.errors import ProfileError
from hwprofiles.links.catalog import load_link, profile_of_trace
from hwprofiles.links.pipe import ROUNDING_BYTES, Pipe
from hwprofiles.links.profile import LinkProfile
from hwprofiles.links.schedule import Steps
from hwprofiles.links.shape import MIN_PACKET_BYTES, LinkShape, PipeShape
from optimizer.cost.link import link_at
from optimizer.errors import ScenarioError
from optimizer.simulate.scenario import Link

# Clients beyond this number share the drawn hours of their profile, each from its own moment on.
# An hour of drawn rates takes 10 ms and 300 KB to make.
DRAWN_HOURS: Final = 32

Arrived = Callable[[float], None]


class LinkLane(Protocol):
    """One direction of a client's link."""

    def send(self, at_s: float, num_bytes: int, arrived: Arrived) -> None:
        """Send `num_bytes` from `at_s` on: now or later, and never before an earlier message.

        `arrived(t)` is called no later than the moment t at which the last byte has come out.
        """
        ...


def merged_outages(outages: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The outages in order; overlapping ones become one."""
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted(outages):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end_s, merged[-1][1]))
        else:
            merged.append((start_s, end_s))
    return merged


class Blocked:
    """A rate schedule with further outages: nothing is sent during them."""

    __slots__ = ("_lost", "_rate")

    def __init__(self, rate: Steps, outages: Sequence[tuple[float, float]]) -> None:
        self._rate = rate
        merged = merged_outages(outages)
        # (start, end, bytes that the schedule would have carried meanwhile)
        self._lost = [(a, b, rate.integral(b) - rate.integral(a)) for a, b in merged]

    def integral(self, t_s: float) -> float:
        """Bytes the link can have carried by t_s."""
        whole = self._rate.integral(t_s)
        for start_s, end_s, lost in self._lost:
            if t_s <= start_s:
                break
            whole -= (
                lost if t_s >= end_s else self._rate.integral(t_s) - self._rate.integral(start_s)
            )
        return whole

    def when(self, area: float) -> float:
        """The earliest moment at which it has carried `area` bytes."""
        for start_s, _, lost in self._lost:
            if area <= self._rate.integral(start_s):
                break
            area += lost
        return self._rate.when(area)


class OwnLane:
    """One direction of a link that only one client uses."""

    __slots__ = ("_delay", "_last_s", "_origin_s", "_position", "_rate", "_shape")

    def __init__(self, shape: PipeShape, rate: Steps | Blocked, origin_s: float) -> None:
        self._shape = shape
        self._rate = rate
        self._delay = shape.delay_s
        self._origin_s = origin_s  # the schedule's time at the simulation's 0
        self._position = 0.0
        self._last_s = -math.inf

    def send(self, at_s: float, num_bytes: int, arrived: Arrived) -> None:
        """See LinkLane: `arrived` is called at once, with the time to come."""
        arrived(self.arrival_s(at_s, num_bytes))

    def arrival_s(self, at_s: float, num_bytes: int) -> float:
        """When a message that enters at `at_s` has come out; infinity over a dead link."""
        rate, origin_s = self._rate, self._origin_s
        position = rate.integral(at_s + origin_s)
        if position < self._position:  # the message before is still being sent
            position = self._position
        self._position = position = position + num_bytes
        sent_s = rate.when(position - ROUNDING_BYTES)
        if sent_s == math.inf:
            return math.inf
        arrive_s = sent_s - origin_s + self._delay.value(sent_s)
        if self._shape.jitter_s is not None:
            arrive_s += self._shape.extra_delay_s(sent_s)
            if num_bytes > MIN_PACKET_BYTES:
                held_s = self._held_back_s(at_s + origin_s, position - num_bytes, num_bytes)
                arrive_s = max(arrive_s, held_s - origin_s)
        if arrive_s < self._last_s:
            arrive_s = self._last_s
        self._last_s = arrive_s
        return arrive_s

    def _held_back_s(self, at_s: float, first_position: float, num_bytes: int) -> float:
        """Until when the jitter of the message's earlier packets delays its last one."""
        rate, shape, held_s = self._rate, self._shape, -math.inf
        size = shape.packet_bytes(at_s)
        for sent_bytes in range(size, num_bytes, size):
            sent_s = rate.when(first_position + sent_bytes - ROUNDING_BYTES)
            held_s = max(held_s, sent_s + self._delay.value(sent_s) + shape.extra_delay_s(sent_s))
        return held_s


class FixedLane:
    """One direction at a constant rate and delay without jitter, which needs less arithmetic."""

    __slots__ = ("_delay_s", "_free_s", "_s_per_byte")

    def __init__(self, bytes_per_s: float, delay_s: float) -> None:
        self._s_per_byte = 1 / bytes_per_s
        self._delay_s = delay_s
        self._free_s = 0.0

    def send(self, at_s: float, num_bytes: int, arrived: Arrived) -> None:
        """See LinkLane: `arrived` is called at once, with the time to come."""
        arrived(self.arrival_s(at_s, num_bytes))

    def arrival_s(self, at_s: float, num_bytes: int) -> float:
        """When a message that enters at `at_s` has come out."""
        start_s = self._free_s if self._free_s > at_s else at_s
        self._free_s = start_s + num_bytes * self._s_per_byte
        return self._free_s + self._delay_s


class SharedLane:
    """One client's entry into a pipe that others use too."""

    __slots__ = ("_flow", "_pipe")

    def __init__(self, pipe: SharedPipe, flow: int) -> None:
        self._pipe = pipe
        self._flow = flow

    def send(self, at_s: float, num_bytes: int, arrived: Arrived) -> None:
        """See LinkLane: `arrived` is called when the message has come out."""
        self._pipe.send(self._flow, at_s, num_bytes, arrived)


class SharedPipe:
    """A `Pipe` on the simulator's clock.

    Queues are unbounded, because a sender's socket buffers what the queue does not take.
    """

    def __init__(
        self,
        env: Environment,
        shape: PipeShape,
        outages: Sequence[tuple[float, float]] = (),
        *,
        start_s: float = 0.0,
    ) -> None:
        self._env = env
        # Its schedule began `start_s` before the simulation.
        self._pipe: Pipe[Arrived | None] = Pipe(shape, now_s=-start_s)
        self._wake_s = math.inf
        for start_s, end_s in merged_outages(outages):
            self._at(start_s, lambda _: self._pipe.pause(self._env.now))
            self._at(end_s, lambda _: self._resume())

    def send(self, flow: int, at_s: float, num_bytes: int, arrived: Arrived) -> None:
        """Enter the queue of `flow` at `at_s`, in packets of the size that the emulator uses."""
        if at_s <= self._env.now:
            self._enter(flow, num_bytes, arrived)
        else:
            self._at(at_s, lambda _: self._enter(flow, num_bytes, arrived))

    def _enter(self, flow: int, num_bytes: int, arrived: Arrived) -> None:
        now_s, pipe = self._env.now, self._pipe
        self._deliver()
        while num_bytes > 0:
            packet = min(num_bytes, pipe.packet_bytes())
            num_bytes -= packet
            pipe.offer(now_s, flow, packet, None if num_bytes else arrived)
        self._schedule()

    def _resume(self) -> None:
        self._pipe.resume(self._env.now)
        self._schedule()

    def _deliver(self) -> None:
        for delivery in self._pipe.advance(self._env.now):
            if delivery.payload is not None:
                delivery.payload(delivery.delivered_s)

    def _schedule(self) -> None:
        next_s = self._pipe.next_s()
        if next_s < self._wake_s:
            self._wake_s = next_s
            self._at(next_s, self._wake)

    def _wake(self, _: object) -> None:
        if self._env.now >= self._wake_s:
            self._wake_s = math.inf
            self._deliver()
            self._schedule()

    def _at(self, at_s: float, call: Callable[[object], None]) -> None:
        timeout = Timeout(self._env, max(at_s - self._env.now, 0.0))
        timeout.callbacks.append(call)


@dataclass(frozen=True, slots=True)
class LinkLanes:
    """Both directions of one client's link."""

    up: LinkLane
    down: LinkLane


def own_lanes(
    shape: LinkShape,
    *,
    start: float,
    outages: Sequence[tuple[float, float]],
    start_s: float = 0.0,
) -> LinkLanes:
    """One client's link; its schedule starts `start` (0 to 1) of the way through its period."""

    def lane(pipe: PipeShape) -> LinkLane:
        constant = len(pipe.rate.values) == 1 and len(pipe.delay_s.values) == 1
        if constant and pipe.jitter_s is None and not outages:
            return FixedLane(pipe.rate.values[0], pipe.delay_s.values[0])
        period_s = pipe.rate.period_s
        origin_s = start_s + (start * period_s if period_s < math.inf else 0.0)
        shifted = [(a + origin_s, b + origin_s) for a, b in outages]
        return OwnLane(pipe, Blocked(pipe.rate, shifted) if shifted else pipe.rate, origin_s)

    return LinkLanes(lane(shape.up), lane(shape.down))


def link_profile(name: str, link: Link, folder: Path | None = None) -> LinkProfile:
    """The profile that `name` in a link's mix means. Raises ScenarioError."""
    path = folder / name if folder is not None and (folder / name).is_file() else Path(name)
    try:
        if path.suffix == ".csv":
            return profile_of_trace(path, up_bytes_per_s=link.up_bytes_per_s, rtt_s=link.rtt_s)
        return load_link(path if path.suffix else name)
    except ProfileError as error:
        raise ScenarioError(str(error)) from error


def link_shape(profile: LinkProfile, link: Link, *, seed: int) -> LinkShape:
    """How the profile behaves: drawn from `seed`, or held at a quantile."""
    if link.quantile is not None:
        point = link_at(profile, epsilon=1 - link.quantile)
        return LinkShape.fixed(
            rtt_s=point.rtt_s,
            up_bytes_per_s=point.up_bytes_per_s,
            down_bytes_per_s=point.down_bytes_per_s,
        )
    return _drawn(profile, link.up_bytes_per_s, seed)


@lru_cache(maxsize=256)
def _drawn(profile: LinkProfile, up_bytes_per_s: float | None, seed: int) -> LinkShape:
    return profile.shape(seed=seed, up_bytes_per_s=up_bytes_per_s)
