"""How many drafts a client's steps carry, and what goes ahead of answers: the edge's own rules on
what a round takes there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from optimizer.cost.cloud import SessionRows
from optimizer.policy.draft_length import RoundTimes, best_length, rides_along
from optimizer.simulate.flights import AheadRule
from optimizer.simulate.server_setup import back_times, sample_s
from optimizer.simulate.setup import Setup
from optimizer.simulate.times import FrontTimes, LevelTimes
from optimizer.simulate.workload import ClientSpec

TYPICAL_POSITION: Final = 256  # cached tokens of the round for which the length is chosen


class DraftLengths:
    """One length for all clients with the same group, device and link. fronts: by device."""

    def __init__(self, setup: Setup, fronts: Mapping[str, FrontTimes]) -> None:
        self._setup = setup
        self._fronts = fronts
        self._known: dict[tuple[int, str, str], tuple[int, AheadRule | None]] = {}

    def of(self, spec: ClientSpec) -> int:
        """Most drafts that a step of this client carries."""
        return self._both(spec)[0]

    def ahead_of(self, spec: ClientSpec) -> AheadRule | None:
        """What this client sends ahead of answers; None: nothing."""
        return self._both(spec)[1]

    def _both(self, spec: ClientSpec) -> tuple[int, AheadRule | None]:
        key = (spec.group, spec.device, spec.link)
        if key not in self._known:
            self._known[key] = self._found(spec)
        return self._known[key]

    def _found(self, spec: ClientSpec) -> tuple[int, AheadRule | None]:
        drafting = self._setup.scenario.drafting
        times, length = self._round(spec), drafting.length
        if drafting.best_length:
            chances = [drafting.chance_at(depth) for depth in range(1, length + 1)]
            length = best_length(chances, times).num_drafts
        if not self._setup.scenario.sends_ahead:
            return length, None
        guesses, reach = 0, drafting.chance_at(1)
        while guesses < length and rides_along(reach, times):
            guesses += 1
            reach *= drafting.chance_at(guesses + 1)
        rule = AheadRule(
            rtt_s=times.rtt_s,
            row_s=times.ahead_row_s,
            guesses=guesses if drafting.best_length else length,
            draft_s=drafting.draft_s,
        )
        return length, rule if rule.most_rows else None

    def _round(self, spec: ClientSpec) -> RoundTimes:
        setup, front = self._setup, self._fronts[spec.device]
        hidden_size = setup.plan.model.geometry.hidden_size
        level = LevelTimes(setup.levels[setup.plan.level], hidden_size)
        one, two = level.frame(1), level.frame(2)
        link = setup.links[spec.group, spec.link]
        front_s = front.step_s(TYPICAL_POSITION)
        back, sampled_s = back_times(setup), sample_s(setup)
        back_s = back.seconds([SessionRows(1, TYPICAL_POSITION)], 1)
        further_back_s = back.seconds([SessionRows(2, TYPICAL_POSITION)], 2) - back_s
        row_s = front_s + two.encode_s - one.encode_s
        return RoundTimes(
            edge_row_s=row_s,
            guess_s=setup.scenario.drafting.draft_s,
            # What does not grow with the rows: the link, both stacks, the first row's surplus.
            rtt_s=link.rtt_s.p50
            + front.message_s
            + setup.cloud_message_s
            + (front_s + one.encode_s - row_s),
            up_bytes_per_s=link.up_bytes_per_s.p50,
            frame_bytes=2 * one.num_bytes - two.num_bytes,
            row_bytes=two.num_bytes - one.num_bytes,
            cloud_step_s=one.decode_s + back_s + sampled_s,
            cloud_row_s=two.decode_s - one.decode_s + further_back_s + sampled_s,
        )
