"""Which rows run in the next batch: a pure function of who waits, in which order.

One entry of the waiting line is one frame at the head of its session. The caller keeps the line
in the order in which frames *became* heads: a session that sends ten prefill chunks at once
stands in line with one, and goes to the back with the next. Steps (a decode step or a draft to
verify) are short and somebody reads along, so they go first; prefill fills what is left of
the row budget, and always gets a small share, so that neither starves the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Generic[KeyT]):
    """One frame in line. `num_rows` are left to run; the last `num_logits` must run together.

    `begun`: some of its rows have run. It stays a prefill to its end: among the steps its last
    rows would wait a round of theirs, while the prefills behind it go on.
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
class Share(Generic[KeyT]):
    """`num_rows` rows of the frame `key` run in this batch."""

    key: KeyT
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """The limits of one batch.

    max_rows: the token budget; one batch's time is roughly proportional to it beyond the point
    where reading the weights dominates. max_sessions: most sessions in a batch.
    min_prefill_rows: what prefill gets although steps alone would fill the budget.
    """

    max_rows: int = 256
    max_sessions: int = 64
    min_prefill_rows: int = 32

    def __post_init__(self) -> None:
        if min(self.max_rows, self.max_sessions, self.min_prefill_rows) < 1:
            raise ValueError("scheduler limits must be at least 1")

    def next_batch(self, line: Sequence[Waiting[KeyT]]) -> tuple[Share[KeyT], ...]:
        """The next batch from the waiting line, first come first. Empty only for an empty line.

        A step runs whole. At most `max_rows` rows, but the frame at the very front of its kind
        always runs, so that one draft longer than the budget cannot wait for ever. Behind a prefill
        that does not end in this batch nobody begins: those rows would be a turn out of turn.
        """
        steps = [frame for frame in line if frame.is_step]
        prefills = [frame for frame in line if not frame.is_step]
        reserved = self.min_prefill_rows if prefills else 0
        room = max(1, self.max_sessions - bool(prefills))
        left = self.max_rows - reserved
        shares: list[Share[KeyT]] = []
        for frame in steps[:room]:
            if frame.num_rows > left and shares:
                break
            shares.append(Share(key=frame.key, num_rows=frame.num_rows))
            left -= frame.num_rows
        left = max(left, 0) + reserved
        for frame in prefills:
            take = _divisible(frame, left) or (frame.num_rows if frame is prefills[0] else 0)
            if take == 0 or (shares and len(shares) >= self.max_sessions):
                break
            shares.append(Share(key=frame.key, num_rows=take))
            left -= take
            if take < frame.num_rows:
                break
        return tuple(shares)


def _divisible(frame: Waiting[KeyT], budget: int) -> int:
    """How many rows of a prefill frame fit: all, or some that leave the logits rows whole."""
    if frame.num_rows <= budget:
        return frame.num_rows
    return max(0, min(budget, frame.num_rows - max(frame.num_logits, 1)))
