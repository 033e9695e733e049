"""Decisions over several replicas of one server: which has the most room, and how many are wanted.

What fills a replica is the larger of two shares: of its KV blocks that are reserved, and of its
places that are taken. Sessions in the queue come on top, each as the share of one place. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
