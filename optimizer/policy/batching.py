"""Which rows run in the next batch: a pure function of the queue.

Each entry of the queue is the first frame of its session. The caller keeps the queue in the order
in which frames *became* first: a session that sends ten prefill chunks at once has one of them in
the queue, and its next chunk joins at the end. Steps (a decode step or a draft to verify) are
short and somebody reads their tokens, so they run first. Prefill takes the rest of the row budget
and always gets a small part of it, so that neither starves the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Generic[KeyT]):
    """One frame in the queue. `num_rows` are left to run; the last `num_logits` run together.

    `begun`: some of its rows have run. Such a frame stays a prefill to its end. Among the steps
    its last rows would wait for a whole round, while later prefills go on.
    """

    key: KeyT
    num_rows: int
    num_logits: int
    begun: bool = False

    @property
    def is_step(self) -> bool:
        """Whether every row brings logits: a decode step, or a draft to verify."""
        return not self.begun and self.num_rows == self.num_logits


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShare(Generic[KeyT]):
    """One frame's part of a batch: `num_rows` rows of the frame `key`."""

    key: KeyT
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """The limits of one batch.

    max_rows: most rows in a batch. Where reading the weights no longer dominates, the batch's time
    grows in proportion to its rows. max_sessions: most sessions in a batch. min_prefill_rows: rows
    for prefill even when steps alone would fill the batch. Raises ValueError for a limit below 1.
    """

    max_rows: int = 256
    max_sessions: int = 64
    min_prefill_rows: int = 32

    def __post_init__(self) -> None:
        if min(self.max_rows, self.max_sessions, self.min_prefill_rows) < 1:
            raise ValueError("scheduler limits must be at least 1")

    def next_batch(self, queue: Sequence[Waiting[KeyT]]) -> tuple[BatchShare[KeyT], ...]:
        """The next batch from the queue, in its order. Empty only for an empty queue.

        A step runs whole. The batch has at most `max_rows` rows, with one exception: the first
        frame of either kind always runs, so that a draft longer than the budget cannot wait for
        ever. If a prefill does not end in this batch, no later prefill begins in it.
        """
        steps = [frame for frame in queue if frame.is_step]
        prefills = [frame for frame in queue if not frame.is_step]
        reserved = self.min_prefill_rows if prefills else 0
        room = max(1, self.max_sessions - bool(prefills))
        left = self.max_rows - reserved
        shares: list[BatchShare[KeyT]] = []
        for frame in steps[:room]:
            if frame.num_rows > left and shares:
                break
            shares.append(BatchShare(key=frame.key, num_rows=frame.num_rows))
            left -= frame.num_rows
        left = max(left, 0) + reserved
        for frame in prefills:
            take = _divisible(frame, left) or (frame.num_rows if frame is prefills[0] else 0)
            if take == 0 or (shares and len(shares) >= self.max_sessions):
                break
            shares.append(BatchShare(key=frame.key, num_rows=take))
            left -= take
            if take < frame.num_rows:
                break
        return tuple(shares)


# A GPU reads its weights in the time in which it multiplies some hundred rows. A batch of fewer
# leaves its matrix units idle.
GPU_SCHEDULER: Final = Scheduler(max_rows=2048, max_sessions=256, min_prefill_rows=256)


def _divisible(frame: Waiting[KeyT], budget: int) -> int:
    """How many rows of a prefill frame fit: all, or a part that leaves the logits rows together."""
    if frame.num_rows <= budget:
        return frame.num_rows
    return max(0, min(budget, frame.num_rows - max(frame.num_logits, 1)))
