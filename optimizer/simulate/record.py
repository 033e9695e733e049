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
    """One request. `ttft_s` and `e2e_s` are NaN when no token, or no end, came; `server` is -1
    when none was asked."""

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


class RoundTimes(NamedTuple):
    """One round trip: the moments of its frame's life, and the seconds that were computed.

    `since_s`: when the token before came (for the first: when it was asked for).
    """

    since_s: float
    edge_s: float
    encode_s: float
    sent_s: float
    arrived_s: float
    answered_s: float
    cloud_s: float
    received_s: float


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
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0

    def add(
        self, times: RoundTimes, *, is_first: bool, accepted: int, is_recovered: bool, drawn: bool
    ) -> None:
        """Tokens have come: one, and `accepted` drafts with it. The parts add up to the wait.

        is_recovered: the frame was sent again after a loss; all until then is recovery.
        """
        edge_s, encode_s = (0.0, 0.0) if is_recovered else (times.edge_s, times.encode_s)
        before_s = times.sent_s - times.since_s - edge_s - encode_s
        if is_first:
            parts = self.first_parts_s
            self.firsts += 1
        else:
            parts = self.step_parts_s
            self.steps += 1
            self.gaps_s.append(times.received_s - times.since_s)
            for _ in range(accepted):
                self.gaps_s.append(0.0)
        if is_recovered:
            parts[RECOVER] += before_s
        elif is_first:
            parts[OPEN] += before_s
        parts[EDGE] += edge_s
        parts[ENCODE] += encode_s
        parts[UP] += times.arrived_s - times.sent_s
        parts[QUEUE] += times.answered_s - times.arrived_s - times.cloud_s
        parts[CLOUD] += times.cloud_s
        parts[DOWN] += times.received_s - times.answered_s
        if drawn:
            self._draw(times, edge_s, encode_s)

    def _draw(self, times: RoundTimes, edge_s: float, encode_s: float) -> None:
        """The same as stretches of time; the prompt's chunks overlap and are drawn as one."""
        encoded_s, begun_s = times.sent_s - encode_s, times.answered_s - times.cloud_s
        self.timeline += (
            Span("edge", encoded_s - edge_s, encoded_s),
            Span("encode", encoded_s, times.sent_s),
            Span("up", times.sent_s, times.arrived_s),
            Span("queue", times.arrived_s, begun_s),
            Span("cloud", begun_s, times.answered_s),
            Span("down", times.answered_s, times.received_s),
        )
        self.timeline_tokens_s.append(times.received_s)
