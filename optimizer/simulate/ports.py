"""What the simulator calls and does not own: the real scheduler, admission rule and controller.

They live above (`cloud`, `edge`) and are passed in by the command, as the import directions
ask. The shapes here are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from optimizer.simulate.scenario import BatchLimits, Servers


class WaitingFrame(Protocol):
    """A frame in line, as the scheduler sees it (`optimizer.policy.batching.Waiting`)."""

    @property
    def num_rows(self) -> int: ...


class BatchShare(Protocol):
    """Rows of a frame that run in a batch (`optimizer.policy.batching.Share`)."""

    @property
    def key(self) -> Any: ...
    @property
    def num_rows(self) -> int: ...


class BatchScheduler(Protocol):
    """Which rows run next (`optimizer.policy.batching.Scheduler`)."""

    def next_batch(self, line: Sequence[Any]) -> Sequence[BatchShare]:
        """The next batch from the line, in the order in which its frames came to its head."""
        ...


class MakeWaiting(Protocol):
    """How a frame is put in line (the constructor of `optimizer.policy.batching.Waiting`)."""

    def __call__(self, *, key: Any, num_rows: int, num_logits: int, begun: bool = False) -> Any: ...


class Answer(Protocol):
    """What admission says to an Open (`optimizer.policy.admission.Verdict`): `admit` it now, let it
    `wait` in line, `busy` (come back after `retry_after_s`), or `never`."""

    @property
    def kind(self) -> Literal["admit", "wait", "busy", "never"]: ...
    @property
    def retry_after_s(self) -> float: ...


class Reply(NamedTuple):
    """An Answer of our own."""

    kind: Literal["admit", "wait", "busy", "never"]
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What admission looks at: sessions, KV blocks and the line of those waiting."""

    sessions: int
    waiting: int
    free_blocks: int
    total_blocks: int


class AdmissionRule(Protocol):
    """Whether a session of `num_blocks` KV blocks may start now."""

    def decide(self, load: ServerLoad, num_blocks: int) -> Answer: ...


class ChunkSeen(NamedTuple):
    """Seconds that an answered chunk kept each stage busy
    (`optimizer.policy.prefill_chunks.StageTimes`)."""

    num_tokens: int
    edge_s: float
    link_s: float
    cloud_s: float


# Tokens of the prompt's next chunk: (left, the plan's chunk, those answered so far).
# `optimizer.policy.prefill_chunks.next_chunk` is it.
NextChunk = Callable[[int, int, Sequence[Any]], int]


class ControlState(Protocol):
    """What a controller has decided (`optimizer.policy.level_control.ControlState`)."""

    @property
    def level(self) -> str: ...
    @property
    def max_drafts(self) -> int | None: ...
    @property
    def stop(self) -> bool: ...


class Controller(Protocol):
    """Decisions from measured steps (`optimizer.policy.level_control.Controller`); holds no
    state of its own."""

    @property
    def stall_s(self) -> float:
        """How long one step may stay unanswered."""
        ...

    def begin(self) -> Any:
        """The state before the first step."""
        ...

    def after(
        self, state: Any, *, step_s: float, wire_s: float, uplink_bytes: int, alone: bool = True
    ) -> Any:
        """The state after one decode step, decision included."""
        ...


class MakeController(Protocol):
    """A controller for one deadline. `ladder`: names and bytes a row, best level first."""

    def __call__(
        self, *, deadline_s: float, ladder: Sequence[tuple[str, float]], start: int
    ) -> Controller: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundParts:
    """What the parts of a drafting round cost: the fields of
    `optimizer.policy.draft_length.RoundTimes`."""

    edge_row_s: float
    guess_s: float
    rtt_s: float
    up_bytes_per_s: float
    frame_bytes: float
    row_bytes: float
    cloud_step_s: float
    cloud_row_s: float


# The best number of drafts from the chance of each to be accepted
# (`optimizer.policy.draft_length.best_length`).
DraftLength = Callable[[Sequence[float], RoundParts], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The injected parts of one simulation. Must be picklable to run replications in parallel."""

    scheduler: Callable[[BatchLimits], BatchScheduler]
    waiting: MakeWaiting
    admission: Callable[[Servers], AdmissionRule]
    controller: MakeController | None = None
    draft_length: DraftLength | None = None
    next_chunk: NextChunk | None = None
