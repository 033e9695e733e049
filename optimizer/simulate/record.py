"""What a replication leaves behind: a row for each request, token gaps, and the servers' sums."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

Outcome = Literal["done", "stopped", "busy", "refused", "server_lost", "unfinished"]

# Where a token's time goes, in the order of its life. `open`: the wait for the device, for a place
# on a server and for the session to open; at a move for the last session's end, too. `recover`:
# from a loss until the replay is sent.
PARTS: Final = ("open", "edge", "encode", "up", "queue", "cloud", "down", "recover")
OPEN, EDGE, ENCODE, UP, QUEUE, CLOUD, DOWN, RECOVER = range(len(PARTS))


class RequestRow(NamedTuple):
    """One request. `ttft_s` is NaN without a first token, `e2e_s` without a last one; `server` is
    -1 when none was asked; `prompt_ids` prompt tokens went as ids. `moves`:
    how often the split moved; `move_bytes`: of the frames that then brought the tokens so far."""

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
    prompt_ids: int = 0
    moves: int = 0
    move_bytes: int = 0


class Span(NamedTuple):
    """One stretch of the recorded answer: the part's name, its start and its end."""

    part: str
    start_s: float
    end_s: float


class RoundMoments(NamedTuple):
    """One round trip: the moments of its frame's life, and the seconds of computing.

    `since_s`: when the token before came; for the first token, when the question was asked.
    """

    since_s: float
    edge_s: float
    encode_s: float
    sent_s: float
    arrived_s: float
    answered_s: float
    cloud_s: float
    received_s: float


class ReplicaCount(NamedTuple):
    """From `at_s` on so many servers take sessions, and so many are paid for: those that start and
    those that drain as well."""

    at_s: float
    serving: int
    paid: int


@dataclass(slots=True)
class ServerSums:
    """One server over the scenario's duration. It is paid for from hired_s to ended_s."""

    hired_s: float = 0.0
    ended_s: float = 0.0
    busy_s: float = 0.0
    batches: int = 0
    rows: int = 0
    batch_sessions: int = 0
    kv_block_seconds: float = 0.0
    kv_peak_blocks: int = 0
    total_blocks: int = 0
    peak_sessions: int = 0
    peak_queue: int = 0
    refused: int = 0

    @property
    def paid_s(self) -> float:
        """Seconds that it costs."""
        return self.ended_s - self.hired_s


@dataclass(slots=True)
class Record:
    """See the module's docstring. Gaps and their parts are of tokens after a request's first."""

    requests: list[RequestRow] = field(default_factory=list)
    gaps_s: array[float] = field(default_factory=lambda: array("d"))
    first_parts_s: list[float] = field(default_factory=lambda: [0.0] * len(PARTS))
    step_parts_s: list[float] = field(default_factory=lambda: [0.0] * len(PARTS))
    firsts: int = 0
    steps: int = 0
    ahead: int = 0  # steps whose frame left ahead of the answer before
    tokens_in_time: int = 0  # tokens that arrived within the scenario's duration
    up_bytes: int = 0
    down_bytes: int = 0
    drafted: int = 0
    accepted: int = 0
    reconnects: int = 0
    prompt_ids: int = 0  # prompt tokens that went as ids, and the bytes of their frames
    id_bytes: int = 0
    edge_joules: float = 0.0  # of computing, on devices whose watts are known
    no_watts: list[str] = field(default_factory=list)  # the other devices
    sensor_joules: float = 0.0  # from question to last token, on devices with measured watts
    sensor_busy_joules: float = 0.0  # of these, while the device computed
    sensor_tokens: int = 0
    no_sensor: list[str] = field(default_factory=list)  # devices without measured watts
    level_counts: dict[str, int] = field(default_factory=dict)
    servers: list[ServerSums] = field(default_factory=list)
    replicas: list[ReplicaCount] = field(default_factory=list)  # at every change of their number
    timeline: list[Span] = field(default_factory=list)
    timeline_tokens_s: list[float] = field(default_factory=list)
    events: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0

    def add(
        self,
        moments: RoundMoments,
        *,
        is_first: bool,
        accepted: int,
        is_recovered: bool,
        is_move: bool = False,
        is_ahead: bool = False,
        drawn: bool,
    ) -> None:
        """Tokens have come: one, and `accepted` drafts with it. The parts add up to the wait.

        is_move: the first token at another split, which needed a session of its own.
        is_recovered: the frame was sent again after a loss, so all the time until then is recovery.
        is_ahead: its frame did not wait for the token before. drawn: whether the round trip joins
        the timeline.
        """
        edge_s, encode_s = (0.0, 0.0) if is_recovered else (moments.edge_s, moments.encode_s)
        before_s = moments.sent_s - moments.since_s - edge_s - encode_s
        if is_first:
            parts = self.first_parts_s
            self.firsts += 1
        else:
            parts = self.step_parts_s
            self.steps += 1
            self.ahead += is_ahead
            self.gaps_s.append(moments.received_s - moments.since_s)
            for _ in range(accepted):
                self.gaps_s.append(0.0)
        if is_recovered:
            parts[RECOVER] += before_s
        elif is_first or is_move:
            parts[OPEN] += before_s
        parts[EDGE] += edge_s
        parts[ENCODE] += encode_s
        parts[UP] += moments.arrived_s - moments.sent_s
        parts[QUEUE] += moments.answered_s - moments.arrived_s - moments.cloud_s
        parts[CLOUD] += moments.cloud_s
        parts[DOWN] += moments.received_s - moments.answered_s
        if drawn:
            self._draw(moments, edge_s, encode_s)

    def _draw(self, moments: RoundMoments, edge_s: float, encode_s: float) -> None:
        """The same as stretches of time. The prompt's chunks overlap, so they make one stretch."""
        encoded_s, begun_s = moments.sent_s - encode_s, moments.answered_s - moments.cloud_s
        self.timeline += (
            Span("edge", encoded_s - edge_s, encoded_s),
            Span("encode", encoded_s, moments.sent_s),
            Span("up", moments.sent_s, moments.arrived_s),
            Span("queue", moments.arrived_s, begun_s),
            Span("cloud", begun_s, moments.answered_s),
            Span("down", moments.answered_s, moments.received_s),
        )
        self.timeline_tokens_s.append(moments.received_s)
