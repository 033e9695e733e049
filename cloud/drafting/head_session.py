"""What a draft head keeps of one session: states that it has not read yet, and its KV blocks.

The head's position t pairs the model's state of one position with the token behind it. The pairs
are counted from 0 in the head's own cache. Where a session begins with positions that ran in
another one, the head knows nothing of these and begins behind them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cloud.drafting.session_drafts import RanRows
from cloud.kv.pool import KvLease


class Pairs(NamedTuple):
    """What the head has to read next. states: float32 [T, S]; token_ids: [T]."""

    states: Tensor
    token_ids: list[int]


class HeadSession:
    """See the module's docstring. Belongs to the model thread; `close` frees its blocks.

    lease: one layer. most: tokens to guess beyond an answer.
    """

    def __init__(self, lease: KvLease, most: int) -> None:
        self.lease = lease
        self.most = most
        self.own: Tensor | None = None  # what the head gave for the last pair, [1, D]
        self.end = 0  # the position behind the last answer's token: guesses begin there
        self._frame: list[Tensor] = []  # states of the frame that runs, a part a batch
        self._states: list[Tensor] = []  # not read yet
        self._tokens: list[int] = []  # behind these; the last state's may still be missing
        self._num_rows = 0  # positions up to which states came
        self._is_answered = False
        self._is_closed = False

    @property
    def is_due(self) -> bool:
        """See DraftState."""
        return bool(self._states) and not self._is_closed

    @property
    def guesses(self) -> bool:
        """Whether there is an answer to guess beyond."""
        return self._is_answered and self.own is not None

    def begin(self, first_position: int, *, is_ahead: bool = False) -> None:
        """See SessionDrafts."""
        del is_ahead
        self._frame.clear()
        if first_position == self._num_rows or self._is_closed:
            return
        if first_position < self._num_rows:
            # The pair before it names a token that is replaced, and its state is read already.
            self.lease.rollback(max(first_position - 1 - self._num_rows + self.lease.length, 0))
        else:
            self.lease.rollback(0)
        self._states.clear()
        self._tokens.clear()
        self._num_rows = first_position

    def tap(self, states: Tensor) -> None:
        """States of the next rows of the frame: float32 [T, S]. Nobody reads them any more once
        this is closed."""
        if not self._is_closed:
            self._frame.append(states)

    def ran(self, rows: RanRows) -> None:
        """See SessionDrafts."""
        count = len(rows.token_ids)
        states = torch.cat(self._frame)[:count] if self._frame else None
        self._frame.clear()
        if states is None or len(states) < count:
            return  # it began before the head was asked
        if self._states:
            self._tokens.append(rows.token_ids[0])
        self._states.append(states)
        self._tokens.extend(rows.token_ids[1:])
        self._is_answered = rows.next_token is not None
        if rows.next_token is not None:
            self._tokens.append(rows.next_token)
        self._num_rows = rows.first_position + count
        self.end = self._num_rows + 1

    def take_pairs(self) -> Pairs:
        """What can be read by now; a last state without its token waits for the next frame."""
        states = torch.cat(self._states)
        known = len(self._tokens)
        tokens = self._tokens[:]
        self._states = [states[known:]] if known < len(states) else []
        self._tokens.clear()
        return Pairs(states[:known], tokens)

    def close(self) -> None:
        """Free its blocks; doing it again does nothing."""
        self._is_closed = True
        self._states.clear()
        self.lease.close()
