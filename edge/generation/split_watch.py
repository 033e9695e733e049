"""The split that a device prefers: its signs and the server's answers, handed to the policy.

The policy is `optimizer.policy.split_moves`. One watch serves all generations of a device.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Final, Protocol

from edge.device.signs import read_signs
from edge.step_trace import StepTrace
from optimizer.policy.split_moves import Signs, SplitState, next_split

LOOK_EVERY_S: Final = 1.0
ANSWERS: Final = 16  # whose time in the server counts


class SplitWish(Protocol):
    """Says at which split to run."""

    def wished(self) -> int:
        """The split to prefer now."""
        ...

    def answered(self, step: StepTrace) -> None:
        """One answered frame."""
        ...


class FixedSplit:
    """Always the same split."""

    def __init__(self, split: int) -> None:
        self._split = split

    def wished(self) -> int:
        """See SplitWish."""
        return self._split

    def answered(self, step: StepTrace) -> None:
        """See SplitWish."""


class SplitWatch:
    """See the module's docstring. splits: the plan's, rising. now: seconds, of a steady clock."""

    def __init__(
        self,
        splits: Sequence[int],
        *,
        now: Callable[[], float],
        signs: Callable[[], Signs] = read_signs,
    ) -> None:
        self._splits = tuple(splits)
        self._now = now
        self._signs = signs
        self._lock = threading.Lock()
        self._state = SplitState(split=self._splits[-1])
        self._waited: deque[float] = deque(maxlen=ANSWERS)
        self._looked_s = float("-inf")

    def wished(self) -> int:
        """See SplitWish. It looks at the device at most once a second."""
        now_s = self._now()
        with self._lock:
            if now_s - self._looked_s >= LOOK_EVERY_S:
                self._looked_s = now_s
                waited = median(self._waited) if len(self._waited) == ANSWERS else None
                signs = replace(self._signs(), waited=waited)
                self._state = next_split(self._state, self._splits, signs, now_s=now_s)
            return self._state.split

    def answered(self, step: StepTrace) -> None:
        """See SplitWish."""
        if step.cloud_s > 0:
            with self._lock:
                self._waited.append(step.cloud_queue_s / step.cloud_s)
