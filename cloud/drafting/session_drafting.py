"""The drafters of one session as the session sees them: told of frames, asked for quick guesses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from cloud.drafting.head_session import HeadSession, RanRows
from cloud.engine.batch_entry import FloatRows
from cloud.engine.drawing import Drawn
from cloud.engine.launches import Answered
from protos.messages import Drafts


class QuickDrafter(Protocol):
    """Guesses in microseconds, so that its guesses go along with the answer.

    most: tokens that it guesses beyond an answer at most.
    """

    @property
    def most(self) -> int: ...

    def ran(self, rows: RanRows, logits: FloatRows | None) -> None:
        """These rows stay in the cache. logits: float32 [N, V] of the frame's last rows, those of
        refused drafts among them; None where a device drew the tokens."""
        ...

    def guess(self, rows: RanRows) -> Drafts | None:
        """What may follow `rows.next_token`; None for no idea."""
        ...


class SessionDrafting:
    """See the module's docstring. head: the session's part of the server's draft head."""

    def __init__(
        self, *, head: HeadSession | None = None, quick: Sequence[QuickDrafter] = ()
    ) -> None:
        self.head = head
        self._quick = tuple(quick)

    @property
    def most(self) -> int:
        """How many tokens it guesses beyond an answer at most; 0: none."""
        quick = max((drafter.most for drafter in self._quick), default=0)
        return quick if self.head is None else max(quick, self.head.most)

    @property
    def tap(self) -> Callable[[Tensor], None] | None:
        """Who wants the states of the session's rows."""
        return None if self.head is None else self.head.tap

    def begin(self, first_position: int) -> None:
        """A frame begins; what the cache held from `first_position` on is forgotten."""
        if self.head is not None:
            self.head.begin(first_position)

    def ran(self, rows: RanRows, answer: Answered) -> tuple[Drafts, ...]:
        """A frame has run; returns what goes along with its answer. answer: see `launches`."""
        logits = None if isinstance(answer, Drawn) else answer
        if self.head is not None:
            self.head.ran(rows)
        found = []
        for drafter in self._quick:
            drafter.ran(rows, logits)
            if rows.next_token is not None and (drafts := drafter.guess(rows)) is not None:
                found.append(drafts)
        return tuple(found)

    def close(self) -> None:
        """Free what is held; doing it again does nothing."""
        if self.head is not None:
            self.head.close()
