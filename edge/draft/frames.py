"""Frames with guesses in them: the front's rows made one by one, each guess after the row before.

Rows of drafts go through the front one at a time, like rows of plain decoding: the 4- and 8-bit
kernels give other values for several rows at once (docs/architecture.md), and drafting must not
change a token. A row costs the edge the same either way; only the call is not shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edge.draft.drafter import Rows as Hidden
from edge.draft.drafting import Chain, Drafting
from edge.session import Rows, Session

Compute = Callable[[Rows], Hidden]  # runs the front, rolling it back first where needed


class DraftedFrame(NamedTuple):
    """Rows to send, their hidden states [T, D], and the guesses among them."""

    rows: Rows
    hidden: Hidden
    chain: Chain


class DraftedFrames:
    """Makes them for one generation. max_tokens: the session's, prompt and output together."""

    def __init__(self, drafting: Drafting, compute: Compute, *, max_tokens: int) -> None:
        self.drafting = drafting
        self._compute = compute
        self._max_tokens = max_tokens

    def prompt(self, rows: Rows) -> Hidden:
        """A chunk of the prompt: computed as it is, and shown to the drafter."""
        hidden = self._compute(rows)
        self.drafting.follow(rows.first_position, rows.token_ids, hidden)
        return hidden

    def step(self, session: Session, max_drafts: int | None) -> DraftedFrame | None:
        """The next decode step with the drafts that pay, at most `max_drafts` of them."""
        rows = session.next_rows()
        if rows is None:
            return None
        chain = Chain()
        hidden = [self._row(rows.first_position, rows.token_ids[0])]
        room = self._max_tokens - rows.first_position - 1
        room = room if max_drafts is None else min(room, max_drafts)
        while len(chain.guesses) < room:
            if (guess := self.drafting.extend(chain)) is None:
                break
            hidden.append(self._row(rows.first_position + len(hidden), guess.token_id))
        with_drafts = session.next_rows(chain.token_ids)
        return None if with_drafts is None else _frame(with_drafts, hidden, chain)

    def ahead(
        self, session: Session, before: Chain, has_answer: Callable[[], bool]
    ) -> DraftedFrame | None:
        """A frame to follow `before` while its answer is outstanding, if that is a good bet.

        `has_answer` is asked before each row: work on guesses ends when news is there.
        """
        guess = before.next_guess
        start = session.rows_ahead((0,) if guess is None else (guess.token_id,))
        if guess is None or start is None or start.first_position >= self._max_tokens:
            return None
        chain = self.drafting.begin_ahead(before)
        if chain is None or has_answer():
            return None
        hidden = [self._row(start.first_position, guess.token_id)]
        while start.first_position + len(hidden) < self._max_tokens:
            if has_answer():
                return None
            if (more := self.drafting.extend_ahead(chain)) is None:
                break
            hidden.append(self._row(start.first_position + len(hidden), more.token_id))
        rows = session.rows_ahead((guess.token_id, *chain.token_ids))
        return None if rows is None else _frame(rows, hidden, chain)

    def _row(self, position: int, token_id: int) -> Hidden:
        hidden = self._compute(Rows(position, (token_id,), 0, True))
        self.drafting.follow(position, (token_id,), hidden)
        return hidden


def _frame(rows: Rows, hidden: list[Hidden], chain: Chain) -> DraftedFrame:
    return DraftedFrame(rows, np.concatenate(hidden), chain)
