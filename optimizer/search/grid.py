"""One link put to a problem: what every configuration predicts, and which limits it keeps.

The formulas are those of `optimizer.cost.round_trip`, as for a single request; axes are those of
`link_independent.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hwprofiles.profiles.errors import ErrorKind
from hwprofiles.profiles.rates import Floats
from optimizer.artifacts.prediction import Limits
from optimizer.artifacts.prefill import PREFILL_PLACES, PrefillPlace
from optimizer.cost.energy import NO_SENSOR, DeviceWatts, joule_terms, joules, measured_watts
from optimizer.cost.link import LinkPoint
from optimizer.cost.money import PER_MILLION, watts_of
from optimizer.cost.round_trip import (
    OPEN_ROUND_TRIPS,
    first_answer_s,
    first_token_terms,
    opening_s,
)
from optimizer.cost.uncertainty import TermErrors, Terms, term_errors
from optimizer.errors import PlanError
from optimizer.policy.kv_blocks import reserved_tokens, tokens_in
from optimizer.search.link_independent import LinkIndependent, Mask, PlacedPrompts
from optimizer.search.problem import Cell
from optimizer.search.prompt_places import placed_prompts
from optimizer.search.rounds import Rounds
from optimizer.search.safety import NO_SAFETY, SafetyFactors, safety_factors

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


class Grid(Rounds):
    """Every configuration over one link, under the problem's limits or others.

    Raises PlanError for a link that carries nothing.
    """

    def __init__(
        self, fixed: LinkIndependent, link: LinkPoint, limits: Limits | None = None
    ) -> None:
        super().__init__(fixed, link)
        self.limits = limits or fixed.problem.limits

    @cached_property
    def cost_per_million(self) -> Floats:
        """Money for a million tokens by the problem's prices, [S, F, B, K, C, 1, D]."""
        terms = self.cost_terms
        return np.asarray(terms.edge + terms.cloud)

    @cached_property
    def cost_terms(self) -> Terms:
        """The device's and the server's part of `cost_per_million`."""
        prices, watts = self.problem.prices, watts_of(self.problem.edge) or 0.0
        return Terms(
            edge=PER_MILLION * prices.cost(cloud_s=0.0, joules=watts * self.edge_s_per_token),
            cloud=PER_MILLION * prices.cost(cloud_s=self.cloud_s_per_token, joules=0.0),
        )

    @cached_property
    def joules_per_token(self) -> Floats:
        """Joules of the device a token, waiting included, [S, F, B, K, C, 1, D]. PlanError where
        its profile has no measured watts."""
        busy_s = self.edge_s_per_token
        return np.asarray(joules(self._watts, seconds=self.tbt_s, busy_s=busy_s))

    @cached_property
    def joule_terms(self) -> Terms:
        """What `joules_per_token` depends on."""
        return joule_terms(self._watts, self.tbt_terms, busy_s=self.edge_s_per_token)

    @property
    def _watts(self) -> DeviceWatts:
        watts = measured_watts(self.problem.edge)
        if watts is None:
            raise PlanError(NO_SENSOR.format(self.problem.edge.name))
        return watts

    @cached_property
    def ttft_s(self) -> Floats:
        """Time to the first token, [S, F, B, K, C, H, 1]."""
        fixed, link = self.fixed, self.link
        answer_s = first_answer_s(link, sample_s=fixed.cloud_sample_s, stack_s=fixed.stack_s)
        beside_s = np.where(fixed.is_whole, fixed.edge_sample_s, answer_s)
        return np.asarray(self._prompts.stages_s[..., None] + beside_s)

    @cached_property
    def _prompts(self) -> PlacedPrompts:
        return self._placed_prompts(None)

    def _placed_prompts(self, weigh: TermErrors | None) -> PlacedPrompts:
        fixed, link = self.fixed, self.link
        opened_s = opening_s(link, round_trips=OPEN_ROUND_TRIPS, stack_s=fixed.stack_s)
        connected_s = np.where(fixed.whole, 0.0, opened_s)[_OF_SPLITS]
        return placed_prompts(fixed, link, connected_s=connected_s, weigh=weigh)

    @cached_property
    def safety(self) -> SafetyFactors:
        """What predictions are multiplied by before they are held against the limits."""
        if self.limits.quantile == 0.5:
            return NO_SAFETY
        return safety_factors(self)

    def errors(self, kind: ErrorKind) -> TermErrors:
        """Of predictions over this link: of the device's steps of one row, or of many."""
        problem, batch = self.problem, self.problem.limits.num_sessions
        return term_errors(problem.edge, problem.cloud, self.link, kind=kind, batch=batch)

    @cached_property
    def ttft_terms(self) -> Terms:
        """What `ttft_s` depends on, each term as it has it."""
        fixed, stages = self.fixed, self._placed_prompts(self.errors("many_rows")).terms
        if stages is None:
            raise ValueError("prompts that were not weighed")
        return first_token_terms(
            Terms(*(np.asarray(term)[..., None] for term in stages)),
            self.link,
            sample_s=np.where(fixed.is_whole, fixed.edge_sample_s, fixed.cloud_sample_s),
            stack_s=fixed.stack_s,
            is_whole=np.where(fixed.is_whole, 1.0, 0.0),
        )

    def prefill_of(self, cell: Cell) -> PrefillPlace:
        """Where this configuration's prompt is computed."""
        places = np.broadcast_to(self._prompts.places[..., None], self.problem.space.shape)
        return PREFILL_PLACES[int(places[cell])]

    @cached_property
    def max_tokens(self) -> Floats:
        """The longest sequence of every configuration, [S, F, B, K, C, H, D]: the required one,
        or, for the objective `context`, the longest within the limits (0: none at all).

        Each limit bounds it on its own: memory of the edge by bisection, memory of the cloud in
        closed form (linear), TBT among `LinkIndependent.lengths` (a running maximum). The least of
        these is the longest that keeps all of them.
        """
        problem = self.problem
        if problem.objective != "context":
            return np.asarray(float(problem.max_tokens))
        return self.longest_tokens

    @cached_property
    def longest_tokens(self) -> Floats:
        """The longest sequence within the limits, whatever the objective, up to the model's."""
        fixed, limits = self.fixed, self.limits
        longest = fixed.edge_bytes.longest(self.edge_memory_limit_bytes / self.safety.edge_memory)
        kv = np.maximum(fixed.cloud_kv_bytes_per_token, 1e-9)
        room = self.cloud_memory_limit_bytes - fixed.cloud_weight_bytes
        per_session = tokens_in(room / limits.num_sessions / kv)
        if limits.cloud_memory_per_session_bytes is not None:
            own = tokens_in(limits.cloud_memory_per_session_bytes / kv)
            per_session = np.minimum(per_session, own)
        longest = np.minimum(longest, np.where(fixed.is_whole, np.inf, np.maximum(per_session, 0)))
        if limits.max_tbt_s is not None:
            reached: Floats = np.zeros(self.tbt_s.shape)
            most_s = limits.max_tbt_s / self.safety.tbt
            for index, length in enumerate(fixed.lengths):
                reached = np.where(self.longest_tbt_s(index) <= most_s, length, reached)
            longest = np.minimum(longest, reached)
        return np.asarray(longest)

    @cached_property
    def edge_memory_bytes(self) -> Floats:
        """Peak bytes of the edge process at `max_tokens`, [S, F, ., K, ., H, D]."""
        tokens = np.maximum(self.max_tokens, self.problem.max_tokens)
        return self.fixed.edge_bytes.total(tokens)

    @cached_property
    def cloud_memory_per_session_bytes(self) -> Floats:
        """A session's cache on the server at `max_tokens`."""
        tokens = np.maximum(self.max_tokens, self.problem.max_tokens)
        return np.asarray(self.fixed.cloud_kv_bytes_per_token * reserved_tokens(tokens))

    @cached_property
    def cloud_memory_bytes(self) -> Floats:
        """The server's process with all sessions; 0 where it is not needed."""
        sessions = self.limits.num_sessions * self.cloud_memory_per_session_bytes
        return np.asarray(self.fixed.cloud_weight_bytes + sessions)

    @cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        """The limits that there are. With the objective `context` they are kept by
        `max_tokens`, and what is left to ask is whether that is long enough."""
        limits, fixed, problem = self.limits, self.fixed, self.problem
        index = fixed.lengths.index(problem.max_tokens)
        reserved = reserved_tokens(problem.max_tokens)
        found: list[tuple[str, Floats, float | None]] = [
            (
                "edge memory",
                self.safety.edge_memory * self._at_required(self.edge_memory_bytes),
                self.edge_memory_limit_bytes,
            ),
            (
                "cloud memory per session",
                fixed.cloud_kv_bytes_per_token * reserved,
                limits.cloud_memory_per_session_bytes,
            ),
            (
                "cloud memory",
                fixed.cloud_weight_bytes
                + limits.num_sessions * reserved * fixed.cloud_kv_bytes_per_token,
                self.cloud_memory_limit_bytes,
            ),
        ]
        if limits.max_tbt_s is not None:
            slowest_s = self.safety.tbt * self.longest_tbt_s(index)
            found.append(("TBT", slowest_s, limits.max_tbt_s))
        if limits.max_ttft_s is not None:
            found.append(("TTFT", self.safety.ttft * self.ttft_s, limits.max_ttft_s))
        if limits.max_quality_drop_pct is not None:
            found.append(("quality drop", fixed.quality_drop_pct, limits.max_quality_drop_pct))
        if limits.max_joules_per_token is not None:
            used = self.safety.joules * self.joules_per_token
            found.append(("energy a token", used, limits.max_joules_per_token))
        if limits.max_cost_per_million is not None:
            cost = self.safety.cost * self.cost_per_million
            found.append(("cost", cost, limits.max_cost_per_million))
        return tuple(
            Constraint(name=name, values=values, limit=limit)
            for name, values, limit in found
            if limit is not None
        )

    def _at_required(self, memory: Floats) -> Floats:
        if self.problem.objective != "context":
            return memory
        return self.fixed.edge_bytes.total(self.problem.max_tokens)

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
        out = self.fixed.exists
        for constraint in self.constraints:
            if constraint.name != without:
                out = out & constraint.kept
        return out
