"""The servers of a scenario: what they admit, how they batch, and measured batches."""

from __future__ import annotations

from dataclasses import dataclass, field

from optimizer.errors import ScenarioError
from optimizer.policy.batching import Scheduler
from optimizer.policy.kv_blocks import KV_BLOCK_TOKENS


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
class Servers:
    """`count` equal servers. `device` names a device profile.

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

    def __post_init__(self) -> None:
        if min(self.count, self.max_sessions, self.block_tokens) < 1 or self.kv_memory_bytes <= 0:
            raise ScenarioError("servers need a count, sessions, blocks and KV memory above zero")
        if self.waiting < 0 or not self.max_wait_s > 0:
            raise ScenarioError("servers need waiting >= 0 and max_wait_s > 0")
