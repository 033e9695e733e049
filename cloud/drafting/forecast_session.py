"""What the drafter on forecast rows keeps of a session: its last answer, and guesses beyond it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cloud.drafting.session_drafts import RanRows
from cloud.kv.pool import KvLease
from codec.arrays import F32
from codec.levels.row_forecast import RowForecast
from optimizer.policy.cloud_drafts import LEAST_PAUSE_IN_PASSES
from protos.limits import MAX_DRAFT_SOURCES
from protos.messages import DraftChoice

_MEMORY: Final = 0.7  # of the pause between an answer and the next frame
_PATIENCE: Final = 16  # answers; where no frame brings guesses, one in so many is guessed for
_MOST_LONGER: Final = 3.0  # than before: what one pause may count for


class ForecastSession:
    """See the module's docstring. Belongs to the model thread.

    lease: the session's own; guesses run beyond its length and are rolled back. most: tokens to
    guess beyond an answer.
    """

    def __init__(
        self,
        lease: KvLease,
        forecast: RowForecast,
        most: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.lease = lease
        self.forecast = forecast
        self.most = most
        self.end = 0  # the position behind the last answer's token: guesses begin there
        self.token = 0  # that token
        self.row: F32 | None = None  # of the position before it, [D]
        self.chain: list[tuple[DraftChoice, ...]] = []  # guesses beyond it that nothing refutes
        self.messages_left = 0  # that an edge hears before the next answer
        self._clock = clock
        self._num_unused = 0  # answers since a frame brought guesses
        self._is_answered = False
        self._is_closed = False
        self._answered_s: float | None = None
        self._pause_s: float | None = None  # from an answer to the frame that waits for it

    @property
    def is_due(self) -> bool:
        """See DraftState."""
        is_used = self._num_unused < _PATIENCE or self._num_unused % _PATIENCE == 0
        return self._is_answered and is_used and not self._is_closed

    @property
    def tap(self) -> None:
        """See SessionDrafts: it needs no states."""
        return None

    def begin(self, first_position: int, *, is_ahead: bool = False) -> None:
        """See SessionDrafts."""
        del first_position
        if is_ahead:
            self._num_unused = 0
        if self._answered_s is not None and not is_ahead:
            pause_s = self._clock() - self._answered_s
            old_s = pause_s if self._pause_s is None else self._pause_s
            # A user who thinks before the next question says nothing of the link.
            self._pause_s = _MEMORY * old_s + (1 - _MEMORY) * min(pause_s, _MOST_LONGER * old_s)
        self._is_answered, self._answered_s = False, None

    def ran(self, rows: RanRows) -> None:
        """See SessionDrafts."""
        if rows.next_token is None or rows.last_row is None:
            self.chain.clear()
            return
        self._num_unused = 0 if len(rows.token_ids) > 1 else self._num_unused + 1
        known = (*rows.token_ids, rows.next_token)
        self.chain = self._confirmed_by(known, rows.first_position)
        self.end, self.token = rows.first_position + len(known), rows.next_token
        self.row = rows.last_row.copy()
        self.messages_left = MAX_DRAFT_SOURCES
        self._is_answered, self._answered_s = True, self._clock()

    def _confirmed_by(
        self, known: tuple[int, ...], first_position: int
    ) -> list[tuple[DraftChoice, ...]]:
        """The guesses that stand behind these tokens: none where one of them was guessed wrong."""
        told = known[max(self.end - first_position, 0) :]  # what was guessed of them
        guessed = tuple(choices[0].token_id for choices in self.chain[: len(told)])
        return self.chain[len(told) :] if told and guessed == told else []

    def has_time(self, pass_s: float) -> bool:
        """Whether a pass is likely to end before the frame that waits for the answer, on a link
        where passes pay. False while nothing is known of the link."""
        if self._answered_s is None or self._pause_s is None:
            return False
        left_s = self._pause_s - (self._clock() - self._answered_s)
        return left_s >= pass_s and self._pause_s >= LEAST_PAUSE_IN_PASSES * pass_s

    def close(self) -> None:
        """See DraftState: its blocks are the session's."""
        self._is_closed = True
        self.row = None
        self.chain.clear()
