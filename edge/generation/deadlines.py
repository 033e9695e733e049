"""How long one generation waits: to connect, for an answer, and for a new stream after a loss.

The retry policy sets the limits. A deadline between tokens shortens them once tokens have come.
"""

from __future__ import annotations

from typing import NamedTuple

from edge.generation.level_selector import LevelSelector
from optimizer.policy.retry import Clock, RetryPolicy


class AnswerLimit(NamedTuple):
    """How many seconds to wait for an answer. `is_deadline`: giving up then ends the generation."""

    wait_s: float
    is_deadline: bool


class RecoveryLimit(NamedTuple):
    """Seconds for recovering in all, and those left; `is_first`: something came since the last."""

    limit_s: float
    left_s: float
    is_first: bool


class Deadlines:
    """The time limits of one generation; its clock tells since when nothing new was answered."""

    def __init__(self, *, retry_policy: RetryPolicy, clock: Clock, selector: LevelSelector) -> None:
        self._retry_policy = retry_policy
        self._clock = clock
        self._selector = selector
        self._lost_at_s: float | None = None  # since when nothing new was answered

    @property
    def connect_s(self) -> float:
        """Seconds for opening the first stream."""
        return self._retry_policy.connect_s

    def for_answer(self, *, has_tokens: bool) -> AnswerLimit:
        """How long to wait for the next message. has_tokens: the answer has begun."""
        step_s = self._retry_policy.step_s
        stall_s = self._selector.stall_s if has_tokens else None
        if stall_s is None or stall_s > step_s:
            return AnswerLimit(step_s, is_deadline=False)
        return AnswerLimit(stall_s, is_deadline=True)

    def answered(self) -> None:
        """An answer came: the next loss starts its time limit anew."""
        self._lost_at_s = None

    def for_recovery(self, *, has_tokens: bool) -> RecoveryLimit:
        """The time for a new stream, counted from the first loss.

        A server that takes the session and loses it again, with nothing answered in between, does
        not start the limit anew.
        """
        limit_s = self._retry_policy.recover_s
        if (stall_s := self._selector.stall_s) is not None and has_tokens:
            limit_s = min(limit_s, stall_s)
        now_s = self._clock.now()
        is_first = self._lost_at_s is None
        if self._lost_at_s is None:
            self._lost_at_s = now_s
        return RecoveryLimit(limit_s, self._lost_at_s + limit_s - now_s, is_first)
