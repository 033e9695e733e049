"""What the clients of one simulation share, and what each of them is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from simpy import Environment
from simpy.events import Timeout

from hwprofiles.links.shape import uniform
from optimizer.artifacts.plan import Plan
from optimizer.simulate.links import LinkLanes
from optimizer.simulate.ports import Controller, NextChunk
from optimizer.simulate.record import Record
from optimizer.simulate.scenario import Drafting, Scenario
from optimizer.simulate.server import Server
from optimizer.simulate.times import FrontTimes, LevelTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationContext:
    """Time, servers, and what is decided and costed alike for all clients."""

    env: Environment
    scenario: Scenario
    plan: Plan
    servers: Sequence[Server]
    levels: Mapping[str, LevelTimes]
    cloud_message_s: float
    record: Record
    controller: Controller | None
    drafting: Drafting | None
    next_chunk: NextChunk | None
    keep_journal: bool

    def at(self, at_s: float, call: Callable[[object], None]) -> None:
        """Call at `at_s`; at once if that is now or past; never, if it is never."""
        env = self.env
        if at_s <= env.now:
            call(None)
        elif at_s < math.inf:
            Timeout(env, at_s - env.now).callbacks.append(call)


class Device:
    """One client's hardware: its front, its link, its random numbers, its longest draft."""

    __slots__ = ("_draws", "_seed", "draft_length", "front", "lanes")

    def __init__(
        self, *, front: FrontTimes, lanes: LinkLanes, draft_length: int, seed: int
    ) -> None:
        self.front = front
        self.lanes = lanes
        self.draft_length = draft_length
        self._seed = seed
        self._draws = 0

    def draw(self) -> float:
        """The next random number of its own, in [0, 1)."""
        self._draws += 1
        return uniform(self._seed, self._draws)
