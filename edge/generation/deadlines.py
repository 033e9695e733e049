"""How long one generation waits: to connect, for an answer, and for a new stream after a loss.

The retry policy sets the limits. A deadline between tokens shortens them once tokens have come.
"""

from __future__ import annotations

from typing import NamedTuple

from edge.errors import DeadlineError, TooSlowError
from edge.generation.connector import MIN_TIMEOUT_S
from edge.generation.level_selector import LevelSelector
from edge.net.transport import Received, Stream
from optimizer.policy.retry import Clock, Recovery, RetryPolicy


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
        self._recovery = Recovery()
        self._is_answered = True  # whether the stream that replaced a lost one has answered

    @property
    def connect_s(self) -> float:
        """Seconds for opening the first stream."""
        return self._retry_policy.connect_s

    def receive(self, stream: Stream, *, has_tokens: bool) -> Received:
        """The next message, waited for as long as `for_answer` allows; TooSlowError where a
        deadline ends the generation."""
        limit = self.for_answer(has_tokens=has_tokens)
        try:
            return stream.receive(limit.wait_s)
        except DeadlineError as error:
            if not limit.is_deadline:
                raise
            raise TooSlowError(f"{error}, with a deadline between tokens") from error

    def for_answer(self, *, has_tokens: bool) -> AnswerLimit:
        """How long to wait for the next message. has_tokens: the answer has begun.

        A stream that replaced a lost one must answer first within the time that is left to
        recover. It gets half of that time at least: a first frame may be large.
        """
        step_s, recover_s = self._retry_policy.step_s, self._retry_policy.recover_s
        if not self._is_answered:
            left_s = self._recovery.left_s(recover_s, self._clock.now())
            step_s = max(min(step_s, max(left_s, recover_s / 2)), MIN_TIMEOUT_S)
        stall_s = self._selector.stall_s if has_tokens else None
        if stall_s is None or stall_s > step_s:
            return AnswerLimit(step_s, is_deadline=False)
        return AnswerLimit(stall_s, is_deadline=True)

    def answered(self, *, is_new: bool) -> None:
        """An answer came. is_new: no earlier stream had brought it.

        Only then does the next loss start its time limit anew: a server that repeats what the
        device knows has brought nothing.
        """
        self._is_answered = True
        if is_new:
            self._recovery = Recovery()

    def for_recovery(self, *, has_tokens: bool) -> RecoveryLimit:
        """The time for a new stream, counted from the first loss since something new came."""
        limit_s = self._retry_policy.recover_s
        if (stall_s := self._selector.stall_s) is not None and has_tokens:
            limit_s = min(limit_s, stall_s)
        now_s = self._clock.now()
        is_first = not self._recovery.is_recovering
        self._recovery = self._recovery.after_loss(now_s)
        self._is_answered = False
        return RecoveryLimit(limit_s, self._recovery.left_s(limit_s, now_s), is_first)
