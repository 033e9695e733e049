"""Frames with guesses in them: the front's rows made one by one, each guess after the row before.

Rows of drafts go through the front one at a time, like rows of plain decoding: the 4- and 8-bit
kernels give other values for several rows at once (docs/architecture.md), and drafting must not
change a token. A row costs the edge the same either way; only the call is not shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from edge.draft.drafter import Guess
from edge.draft.drafter import Rows as Hidden
from edge.generation.drafting import Chain, Drafting, SecondChoice
from edge.generation.session import Rows, Session

Compute = Callable[[Rows], Hidden]  # runs the front, rolling it back first where needed


class DraftedFrame(NamedTuple):
    """Rows to send, their hidden states [T, D], and the guesses among them."""

    rows: Rows
    hidden: Hidden
    chain: Chain


class DraftedFrames:
    """Makes them for one generation. max_tokens: the session's, prompt and output together.

    The front's cache holds one way at a time. A second choice replaces what was computed behind its
    place, and what is needed of that again is computed again.
    """

    def __init__(self, drafting: Drafting, compute: Compute, *, max_tokens: int) -> None:
        self.drafting = drafting
        self._compute = compute
        self._max_tokens = max_tokens
        self._cached: list[int] = []  # tokens whose rows are in the front's cache
        self._num_sure = 0  # of them, those that will not be taken back
        self._flight: list[Chain] = []  # what is under way, each standing on the one before
        self._choices: list[SecondChoice] | None = None  # still to be sent, once they are made

    def prompt(self, rows: Rows) -> Hidden:
        """A chunk of the prompt: computed as it is, and shown to the drafter."""
        hidden = self._compute(rows)
        self.drafting.follow(rows.first_position, rows.token_ids, hidden)
        self._cached[rows.first_position :] = rows.token_ids
        return hidden

    def step(self, session: Session, max_drafts: int | None) -> DraftedFrame | None:
        """The next decode step with the drafts that pay, at most `max_drafts` of them."""
        rows = session.next_rows()
        if rows is None:
            return None
        chain = Chain(first_position=rows.first_position)
        hidden = [self._row(session.tokens, rows.first_position, rows.token_ids[0])]
        self._num_sure = rows.first_position + 1
        way = list(session.tokens)
        room = self._max_tokens - rows.first_position - 1
        room = room if max_drafts is None else min(room, max_drafts)
        while len(chain.places) < room:
            if (guess := self.drafting.extend(chain)) is None:
                break
            hidden.append(self._row(way, len(way), guess.token_id))
            way.append(guess.token_id)
        self._flight, self._choices = [chain], None
        with_drafts = session.next_rows(chain.token_ids)
        return None if with_drafts is None else _frame(with_drafts, hidden, chain)

    def ahead(self, session: Session, has_answer: Callable[[], bool]) -> DraftedFrame | None:
        """A frame to follow the last one while an answer is outstanding, if that is a good bet.

        First what continues the guesses, then second choices for them. `has_answer` is asked
        before each row: work on guesses ends when news is there.
        """
        if has_answer():
            return None
        if self._choices is None:
            before = self._flight[-1]
            chain = self.drafting.begin_ahead(before)
            if chain is not None and before.next_guess is not None:
                frame = self._frame_ahead(session, chain, before.next_guess, has_answer)
                if frame is not None:
                    self._flight.append(chain)
                return frame
            self._choices = self.drafting.second_choices(self._flight)
        if not self._choices:
            return None
        choice = self._choices.pop(0)
        chain = Chain(first_position=choice.position, base=choice.chance)
        return self._frame_ahead(session, chain, choice.guess, has_answer, at=choice.position)

    def _frame_ahead(
        self,
        session: Session,
        chain: Chain,
        guess: Guess,
        has_answer: Callable[[], bool],
        at: int | None = None,
    ) -> DraftedFrame | None:
        start = session.rows_ahead((guess.token_id,), at=at)
        if start is None or start.first_position >= self._max_tokens:
            return None
        way = [*session.tokens, *session.guesses()][: start.first_position]
        guesses = [guess.token_id]
        hidden = [self._row(way, len(way), guess.token_id)]
        way.append(guess.token_id)
        while len(way) < self._max_tokens:
            if has_answer():
                return None
            if (more := self.drafting.extend_ahead(chain)) is None:
                break
            guesses.append(more.token_id)
            hidden.append(self._row(way, len(way), more.token_id))
            way.append(more.token_id)
        rows = session.rows_ahead(guesses, at=at)
        return None if rows is None else _frame(rows, hidden, chain)

    def _row(self, way: Sequence[int], position: int, token_id: int) -> Hidden:
        """The row of `token_id` at `position` behind way[:position], which is computed again from
        where the cache holds another one."""
        same = min(self._num_sure, position)
        most = min(len(self._cached), position)
        while same < most and self._cached[same] == way[same]:
            same += 1
        for place, known in enumerate((*way[same:position], token_id), start=same):
            hidden = self._compute(Rows(place, (known,), 0, True))
            self.drafting.follow(place, (known,), hidden)
        self._cached[same:] = (*way[same:position], token_id)
        return hidden


def _frame(rows: Rows, hidden: list[Hidden], chain: Chain) -> DraftedFrame:
    return DraftedFrame(rows, np.concatenate(hidden), chain)
