"""What a replication leaves behind: a row a request, gaps between tokens, the servers' sums."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

Outcome = Literal["done", "stopped", "busy", "refused", "server_lost", "unfinished"]

# Where a token's time goes, in the order of its life. `open`: waiting for the device, for a place
# on a server, and for the session's opening; `recover`: from a loss until the replay is sent.
PARTS: Final = ("open", "edge", "encode", "up", "queue", "cloud", "down", "recover")
OPEN, EDGE, ENCODE, UP, QUEUE, CLOUD, DOWN, RECOVER = range(len(PARTS))


class RequestRow(NamedTuple):
    """One request. `ttft_s` and `e2e_s` are NaN when no token, or no end, came."""

    client: int
    group: int
    server: int
    asked_s: float
    ttft_s: float
    e2e_s: float
    prompt_tokens: int
    tokens: int
    round_trips: int
    outcome: Outcome


class Span(NamedTuple):
    """One stretch of the recorded session: a part's name, from, to."""

    part: str
    start_s: float
    end_s: float


@dataclass(slots=True)
class ServerSums:
    """One server over the scenario's duration."""

    busy_s: float = 0.0
    batches: int = 0
    rows: int = 0
    batch_sessions: int = 0
    kv_block_seconds: float = 0.0
    kv_peak_blocks: int = 0
    total_blocks: int = 0
    peak_sessions: int = 0
    peak_line: int = 0
    refused: int = 0


@dataclass(slots=True)
class Record:
    """See the module's docstring. Gaps and their parts are of tokens after a request's first."""

    requests: list[RequestRow] = field(default_factory=list)
    gaps_s: array[float] = field(default_factory=lambda: array("d"))
    first_parts_s: list[float] = field(default_factory=lambda: [0.0] * len(PARTS))
    step_parts_s: list[float] = field(default_factory=lambda: [0.0] * len(PARTS))
    firsts: int = 0
    steps: int = 0
    tokens_in_time: int = 0  # tokens that arrived within the scenario's duration
    up_bytes: int = 0
    down_bytes: int = 0
    drafted: int = 0
    accepted: int = 0
    reconnects: int = 0
    level_counts: dict[str, int] = field(default_factory=dict)
    servers: list[ServerSums] = field(default_factory=list)
    timeline: list[Span] = field(default_factory=list)
    timeline_tokens_s: list[float] = field(default_factory=list)
    events: int = 0
    wall_s: float = 0.0
    peak_memory_bytes: int = 0
