"""One link put to the tables: what every configuration predicts, and which limits it keeps.

The formulas are `optimizer.cost.request.predict_request`'s (a test holds them to it); axes are
those of `tables.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from optimizer.artifacts.prediction import Limits
from optimizer.cost.codec import answer_bytes
from optimizer.cost.link import LinkPoint
from optimizer.cost.request import OPEN_ROUND_TRIPS
from optimizer.errors import PlanError
from optimizer.search.link_independent import Chunks, Mask, Tables
from optimizer.search.rates import Floats

_OF_SPLITS = (slice(None), None, None, None, None)  # [S] to [S, 1, 1, 1, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A limit and what every configuration puts against it (an array that broadcasts)."""

    name: str
    values: Floats
    limit: float

    @property
    def kept(self) -> Mask:
        """Where the limit is kept."""
        return np.asarray(self.values <= self.limit)


class Grid:
    """Every configuration over one link, under the problem's limits or others.

    Raises PlanError for a link that carries nothing.
    """

    def __init__(self, tables: Tables, link: LinkPoint, limits: Limits | None = None) -> None:
        if min(link.up_bytes_per_s, link.down_bytes_per_s) <= 0:
            raise PlanError("the link's rate is 0 at this quantile: nothing can be planned over it")
        self.tables = tables
        self.link = link
        self.problem = tables.problem
        self.limits = limits or tables.problem.limits

    @cached_property
    def wire_s(self) -> Floats:
        """A round's message up and answer down, [S, 1, 1, 1, C, 1, D]; 0 on a whole edge."""
        tables, link = self.tables, self.link
        seconds = link.rtt_s + tables.message_s + tables.round_bytes / link.up_bytes_per_s
        seconds = seconds + tables.answer_bytes / link.down_bytes_per_s
        return np.where(tables.is_whole, 0.0, seconds)

    @cached_property
    def _beside_steps_s(self) -> Floats:
        """A round without front and back, [S, 1, 1, 1, C, 1, D]."""
        tables = self.tables
        coding = tables.draft_s + tables.encode_s + tables.decode_s
        return np.where(tables.is_whole, 0.0, coding) + self.wire_s + tables.sample_s

    @cached_property
    def tbt_s(self) -> Floats:
        """Time between tokens in the middle of the answer, [S, F, B, K, C, 1, D]."""
        tables = self.tables
        steps = tables.front_mid_s + (1 + tables.queue_share) * tables.back_mid_s
        return np.asarray((steps + self._beside_steps_s) / tables.tokens_per_round)

    def longest_tbt_s(self, index: int) -> Floats:
        """The slowest step up to length number `index`, [S, F, B, K, C, 1, D]."""
        steps = self.tables.longest_steps_s[..., index]
        return np.asarray((steps + self._beside_steps_s) / self.tables.tokens_per_round)

    @cached_property
    def ttft_s(self) -> Floats:
        """Time to the first token, [S, F, B, K, C, H, 1]."""
        tables, link = self.tables, self.link
        round_trip = link.rtt_s + tables.message_s
        beside = (1 + OPEN_ROUND_TRIPS) * round_trip + answer_bytes(1) / link.down_bytes_per_s
        beside += tables.cloud_sample_s
        beside_whole = tables.edge_sample_s
        opened_s = np.where(tables.whole, 0.0, OPEN_ROUND_TRIPS * round_trip)[_OF_SPLITS]
        stages = np.stack([self._pipeline(chunks, opened_s) for chunks in tables.prompts], axis=-1)
        out = stages[..., None]
        return np.asarray(out + np.where(tables.is_whole, beside_whole, beside))

    def _pipeline(self, chunks: Chunks, opened_s: Floats) -> Floats:
        """`pipeline_s` for every configuration: a chunk enters a stage when it has left the one
        before and the chunk before has left this one. The front's first chunk has had `opened_s`
        [S, 1, 1, 1, 1] before. [S, F, B, K, C]."""
        shape = np.broadcast_shapes(chunks.edge_s.shape[:-1], chunks.cloud_s.shape[:-1])
        ahead_s = np.minimum(chunks.first_front_s, opened_s)
        done_front = np.zeros(chunks.edge_s.shape[:-1]) - ahead_s
        done_wire = np.zeros(chunks.edge_s.shape[:-1])
        done_back = np.zeros(shape)
        wire_s = chunks.frame_bytes / self.link.up_bytes_per_s
        for n in range(chunks.edge_s.shape[-1]):
            done_front = done_front + chunks.edge_s[..., n]
            done_wire = np.maximum(done_wire, done_front) + wire_s[..., n]
            np.maximum(done_back, done_wire, out=done_back)
            done_back += chunks.cloud_s[..., n]
        return done_back

    @cached_property
    def max_tokens(self) -> Floats:
        """The longest sequence of every configuration, [S, F, B, K, C, H, D]: the required one,
        or, for the objective `context`, the longest within the limits (0: none at all).

        Each limit bounds it on its own: memory of the edge by bisection, memory of the cloud in
        closed form (linear), TBT among `tables.lengths` (a running maximum), so the least of these
        is the longest that keeps all of them.
        """
        problem = self.problem
        if problem.objective != "context":
            return np.asarray(float(problem.max_tokens))
        return self.longest_tokens

    @cached_property
    def longest_tokens(self) -> Floats:
        """The longest sequence within the limits, whatever the objective, up to the model's."""
        tables, limits = self.tables, self.limits
        longest = tables.edge_bytes.longest(self.edge_memory_limit_bytes)
        kv = np.maximum(tables.cloud_kv_bytes_per_token, 1e-9)
        room = self.cloud_memory_limit_bytes - tables.cloud_weight_bytes
        per_session = np.floor(room / limits.num_sessions / kv)
        if limits.cloud_memory_per_session_bytes is not None:
            own = np.floor(limits.cloud_memory_per_session_bytes / kv)
            per_session = np.minimum(per_session, own)
        longest = np.minimum(longest, np.where(tables.is_whole, np.inf, np.maximum(per_session, 0)))
        if limits.max_tbt_s is not None:
            reached = np.zeros(self.tbt_s.shape)
            for index, length in enumerate(tables.lengths):
                reached = np.where(self.longest_tbt_s(index) <= limits.max_tbt_s, length, reached)
            longest = np.minimum(longest, reached)
        return np.asarray(longest)

    @cached_property
    def edge_memory_bytes(self) -> Floats:
        """Peak bytes of the edge process at `max_tokens`, [S, F, ., K, ., H, D]."""
        tokens = np.maximum(self.max_tokens, self.problem.max_tokens)
        return self.tables.edge_bytes.total(tokens)

    @cached_property
    def cloud_memory_per_session_bytes(self) -> Floats:
        """A session's cache on the server at `max_tokens`."""
        tokens = np.maximum(self.max_tokens, self.problem.max_tokens)
        return np.asarray(self.tables.cloud_kv_bytes_per_token * tokens)

    @cached_property
    def cloud_memory_bytes(self) -> Floats:
        """The server's process with all sessions; 0 where it is not needed."""
        sessions = self.limits.num_sessions * self.cloud_memory_per_session_bytes
        return np.asarray(self.tables.cloud_weight_bytes + sessions)

    @cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        """The limits that there are. With the objective `context` they are kept by
        `max_tokens`, and what is left to ask is whether that is long enough."""
        limits, tables, problem = self.limits, self.tables, self.problem
        index = tables.lengths.index(problem.max_tokens)
        found: list[tuple[str, Floats, float | None]] = [
            (
                "edge memory",
                self._at_required(self.edge_memory_bytes),
                self.edge_memory_limit_bytes,
            ),
            (
                "cloud memory per session",
                tables.cloud_kv_bytes_per_token * problem.max_tokens,
                limits.cloud_memory_per_session_bytes,
            ),
            (
                "cloud memory",
                tables.cloud_weight_bytes
                + limits.num_sessions * problem.max_tokens * tables.cloud_kv_bytes_per_token,
                self.cloud_memory_limit_bytes,
            ),
        ]
        if limits.max_tbt_s is not None:
            found.append(("TBT", self.longest_tbt_s(index), limits.max_tbt_s))
        if limits.max_ttft_s is not None:
            found.append(("TTFT", self.ttft_s, limits.max_ttft_s))
        if limits.max_quality_drop_pct is not None:
            found.append(("quality drop", tables.quality_drop_pct, limits.max_quality_drop_pct))
        return tuple(
            Constraint(name=name, values=values, limit=limit)
            for name, values, limit in found
            if limit is not None
        )

    def _at_required(self, memory: Floats) -> Floats:
        if self.problem.objective != "context":
            return memory
        return self.tables.edge_bytes.total(self.problem.max_tokens)

    @property
    def edge_memory_limit_bytes(self) -> float:
        """The limit given, or what the device can spare."""
        given = self.limits.edge_memory_bytes
        return self.problem.edge.memory.usable_bytes.value if given is None else given

    @property
    def cloud_memory_limit_bytes(self) -> float:
        """The limit given, or what the server can spare."""
        given = self.limits.cloud_memory_bytes
        return self.problem.cloud.memory.usable_bytes.value if given is None else given

    def feasible(self, *, without: str | None = None) -> Mask:
        """Which configurations keep every limit (but one), [S, F, B, K, C, H, D]."""
        out = self.tables.exists
        for constraint in self.constraints:
            if constraint.name != without:
                out = out & constraint.kept
        return out
