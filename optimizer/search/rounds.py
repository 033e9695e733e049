"""The rounds of one problem over one link: what every configuration's take and bring.

The formulas are those of `optimizer.cost.round_trip` and `optimizer.cost.flight`, as for a single
request; axes are those of `link_independent.py`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from hwprofiles.profiles.rates import Floats, Quantity
from optimizer.cost.flight import NO_FLIGHT, Flight, flight_behind
from optimizer.cost.link import LinkPoint
from optimizer.cost.round_trip import (
    RequestParts,
    between_tokens_s,
    cloud_share_s,
    queue_s,
    round_over,
    round_terms,
)
from optimizer.cost.uncertainty import Terms
from optimizer.errors import PlanError
from optimizer.search.link_independent import LinkIndependent


class Rounds:
    """Every configuration's rounds. Raises PlanError for a link that carries nothing."""

    def __init__(self, fixed: LinkIndependent, link: LinkPoint) -> None:
        if min(link.up_bytes_per_s, link.down_bytes_per_s) <= 0:
            raise PlanError("the link's rate is 0 at this quantile: nothing can be planned over it")
        self.fixed = fixed
        self.link = link
        self.problem = fixed.problem

    @cached_property
    def round(self) -> RequestParts:
        """A round in the middle of the answer, part by part; a whole edge sends nothing."""
        fixed = self.fixed
        parts = round_over(
            self.link,
            front_s=fixed.front_mid_s,
            encode_s=fixed.times.encode_s,
            num_bytes=fixed.times.round_bytes,
            queue_s=queue_s(fixed.back_mid_s, self.problem.limits.num_sessions),
            decode_s=fixed.times.decode_s,
            back_s=fixed.back_mid_s,
            sample_s=fixed.sample_s,
            num_answer_bytes=fixed.answer_bytes,
            stack_s=fixed.stack_s,
        )
        return replace(
            parts,
            up_s=np.where(fixed.is_whole, 0.0, parts.up_s),
            down_s=np.where(fixed.is_whole, 0.0, parts.down_s),
        )

    @cached_property
    def flight(self) -> Flight:
        """What follows a round where frames go ahead of its answer, [S, F, B, K, C, 1, D]."""
        fixed, drafts = self.fixed, self.problem.space.drafts
        reach = [draft.drafting.reach_ahead for draft in drafts]
        if not any(reach):
            return NO_FLIGHT
        found = flight_behind(
            self.round,
            self.link,
            rows=self._rows,
            reach=reach,
            draft_s=fixed.draft_s,
            stack_s=fixed.stack_s,
        )
        asks = np.where(fixed.is_whole, 0.0, 1.0)
        terms = Terms(*(asks * term for term in found.terms))
        tokens, seconds, wasted, hidden_s = (
            asks * value
            for value in (found.tokens, found.seconds, found.wasted_rows, found.hidden_s)
        )
        return Flight(tokens, seconds, terms, wasted, hidden_s)

    @cached_property
    def tokens_per_round(self) -> Floats:
        """Tokens of a round, those of frames ahead included, [S, F, B, K, C, 1, D]."""
        return np.asarray(self.fixed.tokens_per_round + self.flight.tokens)

    @cached_property
    def edge_s_per_token(self) -> Floats:
        """Seconds that the device computes a token, [S, F, B, K, C, 1, D]."""
        return np.asarray(self.tbt_terms.edge + self.flight.hidden_s / self.tokens_per_round)

    @cached_property
    def tbt_s(self) -> Floats:
        """Time between tokens in the middle of the answer, [S, F, B, K, C, 1, D]."""
        return self._between_tokens_s(self.round.layers_s)

    def longest_tbt_s(self, index: int) -> Floats:
        """The slowest step up to length number `index`, [S, F, B, K, C, 1, D]."""
        return self._between_tokens_s(self.fixed.longest_layers_s[..., index])

    def _between_tokens_s(self, layers_s: Quantity) -> Floats:
        values = between_tokens_s(layers_s, self._beside_layers_s, self.tokens_per_round)
        return np.asarray(values)

    @cached_property
    def _beside_layers_s(self) -> Quantity:
        """A round without its layers, drafting and what goes ahead included."""
        return self.fixed.draft_s + self.round.beside_layers_s + self.flight.seconds

    @cached_property
    def cloud_s_per_token(self) -> Floats:
        """Seconds of the server a token, [S, 1, B, 1, C, 1, D]; 0 where it is not needed."""
        fixed = self.fixed
        busy_s = np.where(fixed.is_whole, 0.0, self.round.cloud_s)
        busy_s = busy_s * (1 + self.flight.tokens / self._rows)
        batch = self.problem.limits.num_sessions
        return np.asarray(cloud_share_s(busy_s, batch, self.tokens_per_round))

    @cached_property
    def uplink_bytes_per_token(self) -> Floats:
        """Bytes up a token, rows on wrong guesses included, [S, F, B, K, C, 1, D]."""
        frames = 1 + (self.flight.tokens + self.flight.wasted_rows) / self._rows
        return np.asarray(self.fixed.times.round_bytes * frames / self.tokens_per_round)

    @property
    def _rows(self) -> Floats:
        """Of a round's first frame, [D]."""
        drafts = self.problem.space.drafts
        return np.array([1.0 + draft.drafting.num_drafts for draft in drafts])

    @cached_property
    def tbt_terms(self) -> Terms:
        """What `tbt_s` depends on, each term as it has it."""
        fixed = self.fixed
        terms = round_terms(
            self.round,
            self.link,
            stack_s=fixed.stack_s,
            draft_s=fixed.draft_s,
            is_whole=fixed.is_whole,
        )
        return terms.plus(self.flight.terms).over(self.tokens_per_round)
