"""Decisions over several replicas of one server: which has the most room, and how many are wanted.

What fills a replica is the larger of two shares: of its KV blocks that are reserved, and of its
places that are taken. Sessions in the queue come on top, each as the share of one place. Ours.

Real replicas are counted by Ray Serve, which asks `ScalingRule` and keeps `ScalingDelays` itself.
`ScalingState` says in Python what Ray Serve does with them, for the simulator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

# When to ask a replica that has room: at once, but not all clients in the same moment.
ROOM_RETRY_S: Final = 0.1


class ReplicaLoad(NamedTuple):
    """How full one replica is: sessions, the most that it takes, its queue, and its KV blocks."""

    sessions: int
    most_sessions: int
    waiting: int
    used_blocks: int
    blocks: int

    @property
    def fullness(self) -> float:
        """0: empty. 1: full. Above 1: others wait in the queue."""
        places = self.sessions / max(self.most_sessions, 1)
        memory = self.used_blocks / max(self.blocks, 1)
        return max(places, memory) + self.waiting / max(self.most_sessions, 1)


def least_loaded(loads: Mapping[str, ReplicaLoad]) -> str | None:
    """The replica with the most room; None: there is none. Equal ones: the first by name."""
    return min(sorted(loads), key=lambda name: loads[name].fullness, default=None)


def retry_after_s(load: ReplicaLoad, *, busy_s: float = 1.0) -> float:
    """When a refused client may ask that replica.

    busy_s: what the first client is told where it is full, as in `AdmissionRule`.
    """
    if load.fullness < 1.0 and not load.waiting:
        return ROOM_RETRY_S
    return busy_s * (1.0 + load.waiting / max(load.most_sessions, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRule:
    """How many replicas a load needs. target: how full each of them is to be, above 0 up to 1.

    least, most: bounds of the answer.
    """

    target: float = 0.7
    least: int = 1
    most: int = 1

    def wanted(self, fullness: float) -> int:
        """fullness: of all replicas, summed; what waits counts too."""
        # The rounding takes away what the sum of floats adds: 0.7 of 0.7 is one replica.
        count = math.ceil(round(max(fullness, 0.0) / self.target, 6))
        return min(max(count, self.least), self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingDelays:
    """When the number of replicas follows the load, in seconds.

    up_s, down_s: how long more, or fewer, replicas have to be wanted without a break. look_back_s:
    the fullness counts as its mean over so long. every_s: between two looks at it.
    """

    up_s: float = 5.0
    down_s: float = 60.0
    look_back_s: float = 5.0
    every_s: float = 1.0


DEFAULT_DELAYS: Final = ScalingDelays()
# Sums of looks at the clock miss a delay by less than this.
_CLOCK_ERROR_S: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingState:
    """How many replicas there are to be, those that start included, and since when others are
    wanted.

    seen: times and sums of fullness within the look-back. since_s: since when another number is
    wanted without a break, more (`is_more`) or fewer; None: the number is right.
    """

    count: int
    seen: tuple[tuple[float, float], ...] = ()
    since_s: float | None = None
    is_more: bool = False

    def after(
        self, now_s: float, fullness: float, rule: ScalingRule, delays: ScalingDelays
    ) -> ScalingState:
        """The state after a look at the replicas. fullness: of all that take sessions, summed."""
        first_s = now_s - delays.look_back_s + _CLOCK_ERROR_S
        seen = (*(one for one in self.seen if one[0] > first_s), (now_s, fullness))
        wanted = rule.wanted(sum(value for _, value in seen) / len(seen))
        if wanted == self.count:
            return replace(self, seen=seen, since_s=None)
        is_more = wanted > self.count
        since_s = self.since_s if self.since_s is not None and self.is_more == is_more else now_s
        delay_s = delays.up_s if is_more else delays.down_s
        if now_s - since_s + _CLOCK_ERROR_S < delay_s:
            return replace(self, seen=seen, since_s=since_s, is_more=is_more)
        return ScalingState(count=wanted, seen=seen)
