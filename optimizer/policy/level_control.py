"""Which codec level keeps the time between tokens under a deadline: a pure function of the steps.

The idea is the paper's dynamic control (arXiv:2511.04002): compress harder, and generate fewer
tokens when even that is too slow. Its exact rule was not available, so every rule below is ours.

- **Down fast.** A late step, or a step that is expected to be late, moves at once to the best
  level that is expected to fit. That is at least one rung down.
- **Up slowly.** After `up_after` steps in time the rule goes up one rung, if that rung is expected
  to fit with room to spare. The move is a trial of `up_after` steps. If the rung turns out late
  within the trial, the rule leaves it and doubles the wait before the next trial. If the rung
  holds, the wait is halved. So a link between two rungs costs fewer and fewer late steps, and the
  level does not oscillate.
- **Fewer drafts.** Rows that would make the frame late are not sent (`max_drafts`).
- **Stop.** When most of the last steps were late at the smallest level, no setting holds the
  deadline. The generation then ends with the tokens it has.

There is no clock and no I/O. State goes in and comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from optimizer.errors import PolicyError
from optimizer.policy.link_estimate import LinkEstimate, observe
from protos.limits import MAX_FRAME_DRAFTS
from protos.sizes import ONE_ROW_OVERHEAD_BYTES

NOTHING_KNOWN: Final = LinkEstimate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One level of the certified ladder, best quality first, and what a row costs on it."""

    name: str
    bytes_per_row: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPolicy:
    """How fast the level moves up and down, in steps and in shares of the deadline.

    On the way down a rung fits when its expected step takes at most `down_share` of the deadline;
    on the way up, at most `up_share`. The gap between the two is the hysteresis. A single step that
    takes more than `stall_deadlines` deadlines, and at least `min_stall_s`, ends the generation.
    `memory` is the weight of the past in the mean of what the two sides compute.
    """

    down_share: float = 0.95
    up_share: float = 0.75
    up_after: int = 12
    max_up_after: int = 768
    stop_window: int = 24
    stop_share: float = 0.75
    stall_deadlines: float = 50.0
    min_stall_s: float = 5.0
    memory: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlState:
    """What the controller knows and has decided. `reason` is empty while nothing changes.

    `max_drafts` None: no limit. `num_good`: steps in time since the last move. `since_up`: steps
    since the last move up, None when that trial is over. `late`: whether each of the recent steps
    since the last move was late.
    """

    rung: int
    level: str
    max_drafts: int | None = None
    stop: bool = False
    reason: str = ""
    link: LinkEstimate = NOTHING_KNOWN
    local_s: float = 0.0
    num_good: int = 0
    up_after: int = 0
    since_up: int | None = None
    late: tuple[bool, ...] = ()


class Controller:
    """Decisions for generations with one deadline. Holds no state of its own.

    deadline_s: the longest that a step (edge, link, cloud) should take. rungs: the levels it may
    use, best first. start: the number of the first rung to use. Raises PolicyError when the
    deadline is not positive or `rungs` has no rung `start`.
    """

    def __init__(
        self,
        *,
        deadline_s: float,
        rungs: Sequence[Rung],
        start: int = 0,
        policy: ControlPolicy | None = None,
    ) -> None:
        if not deadline_s > 0:
            raise PolicyError(f"a deadline of {deadline_s:g} s: must be above 0")
        if not 0 <= start < len(rungs):
            raise PolicyError(f"the controller has no level number {start}")
        self.deadline_s = deadline_s
        self.rungs = tuple(rungs)
        self.policy = policy or ControlPolicy()
        self._start = start

    @property
    def stall_s(self) -> float:
        """How long one step may stay unanswered before the generation ends."""
        return max(self.policy.stall_deadlines * self.deadline_s, self.policy.min_stall_s)

    def begin(self, link: LinkEstimate | None = None) -> ControlState:
        """The state before the first step. link: what the prefill has shown of the link."""
        return ControlState(
            rung=self._start,
            level=self.rungs[self._start].name,
            link=link or NOTHING_KNOWN,
            up_after=self.policy.up_after,
        )

    def expected_s(self, state: ControlState, rung: int, num_rows: int = 1) -> float:
        """Seconds that a step of `num_rows` rows on `rung` is expected to take."""
        num_bytes = ONE_ROW_OVERHEAD_BYTES + num_rows * self.rungs[rung].bytes_per_row
        return state.local_s + state.link.expected_s(num_bytes)

    def after(
        self,
        state: ControlState,
        *,
        step_s: float,
        wire_s: float,
        uplink_bytes: int,
        alone: bool = True,
    ) -> ControlState:
        """The state after one decode step, decision included.

        step_s: from the front's start to the answer. wire_s: the part in which neither side
        computed. uplink_bytes: of the whole message. alone: no other message was in flight.
        """
        local_s = step_s - wire_s
        if state.local_s:
            local_s += self.policy.memory * (state.local_s - local_s)
        is_late = step_s > self.deadline_s
        state = replace(
            state,
            reason="",
            link=observe(state.link, uplink_bytes, wire_s) if alone else state.link,
            local_s=local_s,
            late=(*state.late, is_late)[-self.policy.stop_window :],
            num_good=0 if is_late else state.num_good + 1,
            since_up=None if state.since_up is None else state.since_up + 1,
        )
        moved = self._moved(state, is_late, step_s)
        return self._stopped(replace(moved, max_drafts=self._max_drafts(moved)))

    def _moved(self, state: ControlState, is_late: bool, step_s: float) -> ControlState:
        """Another rung, if the last step or the next one says so."""
        policy, rung = self.policy, state.rung
        if is_late or self.expected_s(state, rung) > self.deadline_s:
            target = self._fitting_from(state, rung + 1)
            why = (
                f"a step took {1e3 * step_s:.0f} ms"
                if is_late
                else f"{1e3 * self.expected_s(state, rung):.0f} ms expected"
            )
            return self._down(state, target, why)
        if state.since_up is not None and state.since_up >= state.up_after:
            state = replace(
                state, since_up=None, up_after=max(state.up_after // 2, policy.up_after)
            )
        is_calm = state.num_good >= state.up_after
        if is_calm and rung > 0 and self._fits(state, rung - 1, policy.up_share):
            return replace(
                state,
                rung=rung - 1,
                level=self.rungs[rung - 1].name,
                num_good=0,
                since_up=0,
                late=(),
                reason=f"up to {self.rungs[rung - 1].name}: {state.num_good} steps in time",
            )
        return state

    def _down(self, state: ControlState, target: int, why: str) -> ControlState:
        failed_trial = state.since_up is not None
        up_after = min(2 * state.up_after, self.policy.max_up_after)
        state = replace(
            state,
            num_good=0,
            since_up=None,
            up_after=up_after if failed_trial else state.up_after,
        )
        if target == state.rung:
            return state
        name = self.rungs[target].name
        return replace(state, rung=target, level=name, late=(), reason=f"down to {name}: {why}")

    def _fitting_from(self, state: ControlState, first: int) -> int:
        """The best rung from `first` on that is expected to fit, or the lowest there is."""
        for rung in range(first, len(self.rungs)):
            if self._fits(state, rung, self.policy.down_share):
                return rung
        return len(self.rungs) - 1

    def _fits(self, state: ControlState, rung: int, share: float) -> bool:
        return self.expected_s(state, rung) <= share * self.deadline_s

    def _max_drafts(self, state: ControlState) -> int | None:
        """How many rows beside the first one the link carries in time; None: any number."""
        per_row_s = self.rungs[state.rung].bytes_per_row * state.link.seconds_per_byte
        if per_row_s <= 0:
            return None
        room_s = self.policy.down_share * self.deadline_s - self.expected_s(state, state.rung)
        return min(max(int(room_s / per_row_s), 0), MAX_FRAME_DRAFTS)

    def _stopped(self, state: ControlState) -> ControlState:
        """Give up when nothing is left to make smaller and most steps are late all the same."""
        num_late = sum(state.late)
        if (
            state.rung < len(self.rungs) - 1
            or len(state.late) < self.policy.stop_window
            or num_late < self.policy.stop_share * len(state.late)
        ):
            return state
        return replace(
            state,
            stop=True,
            reason=(
                f"{num_late} of the last {len(state.late)} steps took longer than "
                f"{1e3 * self.deadline_s:g} ms, at the smallest level {state.level}"
            ),
        )
