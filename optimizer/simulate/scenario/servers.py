"""The servers of a scenario: what they admit, how they batch, and measured batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from optimizer.errors import ScenarioError
from optimizer.policy.batching import Scheduler
from optimizer.policy.kv_blocks import KV_BLOCK_TOKENS
from optimizer.policy.replicas import DEFAULT_DELAYS, ScalingDelays, ScalingRule


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPoint:
    """One measured batch: `rows` rows of `sessions` sessions together took `seconds`."""

    rows: int
    sessions: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSteps:
    """Measured batches of a server. They replace the cost model (see `times.MeasuredBack`).

    `points`: prefills of one session, and decode steps with one row per session, each with
    `context_tokens` cached. `attention_s_per_token`: what one more cached token adds for one row.
    `spread`: how single batches vary around the points, as factors at evenly spaced quantiles from
    the smallest to the largest; empty: they do not vary. Raises ScenarioError for other batches.
    """

    points: tuple[StepPoint, ...]
    context_tokens: int
    attention_s_per_token: float
    spread: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if list(self.spread) != sorted(self.spread) or any(factor <= 0 for factor in self.spread):
            raise ScenarioError("measured steps: spread needs rising factors above zero")
        kinds = {(p.sessions == 1, p.rows == p.sessions) for p in self.points}
        if (True, True) not in kinds or (False, False) in kinds:
            raise ScenarioError(
                "measured steps need one row of one session, and otherwise rows of one session or "
                "one row a session"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How the number of servers follows the load, as `serve --max-replicas` lets it.

    At least the scenario's `count`, at most `most`, each full to `target`
    (`optimizer.policy.replicas`). `start_delay_s`: from the decision until a new one takes
    sessions, with finding that one is missing. `drain_s`: how long the sessions of one that ends
    may go on there. `delays`: of the decision. Raises ScenarioError for values out of range.
    """

    most: int
    start_delay_s: float
    target: float = ScalingRule().target
    drain_s: float = 30.0
    delays: ScalingDelays = DEFAULT_DELAYS

    def __post_init__(self) -> None:
        if not 0 < self.target <= 1:
            raise ScenarioError("scaling.target lies above 0, up to 1")
        times = (self.start_delay_s, self.drain_s, self.delays.up_s, self.delays.down_s)
        if not all(0 <= seconds < math.inf for seconds in (*times, self.delays.look_back_s)):
            raise ScenarioError("scaling needs times of 0 seconds or more")
        if not 0 < self.delays.every_s < math.inf:
            raise ScenarioError("scaling.delays.every_s must be above zero")

    def rule(self, least: int) -> ScalingRule:
        """The rule, for at least so many servers."""
        return ScalingRule(target=self.target, least=least, most=self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """`count` equal servers. `device` names a device profile.

    `door`: whether they are replicas behind one address, where a door chooses the server
    (`optimizer.policy.replica_choice`); without it clients know every address and try one after the
    other. None: a door before several servers. `scaling`: `count` is the least number of them.

    `kv_memory_bytes` and `max_sessions` bound what admission grants. `block_tokens` is the size of
    a KV block. `kv_bits` None: what the device keeps. `waiting` is the length of the admission
    queue, and `max_wait_s` how long an Open may wait in it. The defaults of these are those of
    `splitpoint serve`. `batch` is the server's own scheduler. `measured`, if given, replaces the
    cost model. Raises ScenarioError for values out of range.
    """

    device: str
    count: int = 1
    max_sessions: int = 64
    kv_memory_bytes: float = 1 << 30
    kv_bits: int | None = None
    block_tokens: int = KV_BLOCK_TOKENS
    waiting: int = 16
    max_wait_s: float = 2.0
    batch: Scheduler = field(default_factory=Scheduler)
    measured: MeasuredSteps | None = None
    cost_per_hour: float = 0.0
    door: bool | None = None
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        if min(self.count, self.max_sessions, self.block_tokens) < 1 or self.kv_memory_bytes <= 0:
            raise ScenarioError("servers need a count, sessions, blocks and KV memory above zero")
        if self.waiting < 0 or not self.max_wait_s > 0:
            raise ScenarioError("servers need waiting >= 0 and max_wait_s > 0")
        if self.scaling is not None and self.scaling.most < self.count:
            raise ScenarioError(f"servers: scaling.most is below count ({self.count})")
        if self.scaling is not None and self.door is False:
            raise ScenarioError("servers: their number changes only behind a door")

    @property
    def has_door(self) -> bool:
        """Whether a door chooses the server."""
        return (self.count > 1 or self.scaling is not None) if self.door is None else self.door
