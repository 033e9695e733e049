"""What the clients of one simulation share, and the device that each of them has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from simpy import Environment
from simpy.events import Timeout

from hwprofiles.links.shape import uniform
from optimizer.artifacts.plan import Plan
from optimizer.policy.level_control import Controller
from optimizer.simulate.door import OpenAddress
from optimizer.simulate.flights import AheadRule
from optimizer.simulate.links import LinkLanes
from optimizer.simulate.move_ways import KvFramesOf
from optimizer.simulate.record import Record
from optimizer.simulate.scenario import DraftingScenario, Scenario
from optimizer.simulate.times import FrontTimes, LevelTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationContext:
    """The clock, the servers' addresses, the record, and all that is the same for every client.

    `controller` None: no deadline. `drafting` None: no drafts. `keep_journal`: whether a server may
    be lost, so that frames may have to be sent again. `layers_a_block`: of the servers' KV blocks.
    """

    env: Environment
    scenario: Scenario
    plan: Plan
    addresses: Sequence[OpenAddress]
    levels: Mapping[str, LevelTimes]
    cloud_message_s: float
    record: Record
    controller: Controller | None
    drafting: DraftingScenario | None
    keep_journal: bool
    layers_a_block: int

    def kv_blocks(self, num_tokens: int, split: int) -> int:
        """KV blocks of a session of at most `num_tokens` tokens that enters at `split`."""
        layers = self.plan.model.geometry.num_layers - split
        blocks = -(-num_tokens // self.scenario.servers.block_tokens)
        return blocks * (layers // self.layers_a_block)

    def at(self, at_s: float, call: Callable[[object], None]) -> None:
        """Call at `at_s`: at once if that is not in the future, never if it is infinite."""
        env = self.env
        if at_s <= env.now:
            call(None)
        elif at_s < math.inf:
            Timeout(env, at_s - env.now).callbacks.append(call)


class Device:
    """One client's device: its front, its link, its random numbers and its longest draft.

    ahead: what it sends ahead of answers; None: nothing. num_ids: how many first tokens of a prompt
    of this length go as ids, at this split. kv_frames: what a move sends of so many tokens, from
    one split to another. capacities: most tokens of a sequence at each split that an answer may run
    at. first_block: gives the hash of the first block of its next prompt.
    """

    __slots__ = (
        "_draws",
        "_seed",
        "ahead",
        "capacities",
        "draft_length",
        "first_block",
        "front",
        "kv_frames",
        "lanes",
        "num_ids",
    )

    def __init__(
        self,
        *,
        front: FrontTimes,
        lanes: LinkLanes,
        draft_length: int,
        ahead: AheadRule | None,
        num_ids: Callable[[int, int], int],
        kv_frames: KvFramesOf,
        capacities: Mapping[int, int],
        first_block: Callable[[], int],
        seed: int,
    ) -> None:
        self.front = front
        self.num_ids = num_ids
        self.kv_frames = kv_frames
        self.capacities = capacities
        self.first_block = first_block
        self.lanes = lanes
        self.draft_length = draft_length
        self.ahead = ahead
        self._seed = seed
        self._draws = 0

    def draw(self) -> float:
        """The next of its own random numbers, in [0, 1)."""
        self._draws += 1
        return uniform(self._seed, self._draws)
