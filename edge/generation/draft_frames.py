"""Frames with guesses in them: the front's rows made one by one, each guess after the row before.

Rows of drafts go through the front one at a time, like rows of plain decoding. The 4- and 8-bit
kernels give other values for several rows at once (docs/architecture.md), and drafting must not
change a token. A row costs the edge the same either way; only the call is not shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from edge.draft.base import Guess, Rows
from edge.generation.draft_run import Alternative, DraftRun
from edge.generation.drafting import DraftSelector
from edge.generation.row_span import RowSpan
from edge.generation.session import EdgeSession

Compute = Callable[[RowSpan], Rows]  # runs the front, rolling it back first where needed


class DraftedFrame(NamedTuple):
    """Rows to send, their hidden states [T, D], and the guesses among them."""

    rows: RowSpan
    hidden: Rows
    run: DraftRun


class Heard(NamedTuple):
    """What has come while rows are made. has_answer: takes it in, and says whether it is an answer.
    stands: whether that answer is what was guessed, so that all that is under way will run."""

    has_answer: Callable[[], bool]
    stands: Callable[[], bool]


class DraftedFrames:
    """Makes the frames with guesses for one generation.

    max_tokens: the session's, prompt and output together. The front's cache holds one sequence at a
    time. An alternative replaces what was computed from its position on; rows that are needed
    again are computed again.
    """

    def __init__(self, drafting: DraftSelector, compute: Compute, *, max_tokens: int) -> None:
        self.drafting = drafting
        self._compute = compute
        self._max_tokens = max_tokens
        self._cached: list[int] = []  # tokens whose rows are in the front's cache
        self._made: dict[int, Rows] = {}  # rows of guesses that are there, by position
        self._num_sure = 0  # of them, those that will not be taken back
        self._alternatives: list[Alternative] | None = None  # still to be sent, once they are made
        self._tried_alternative = False  # the drafter has seen rows of one

    def prompt(self, rows: RowSpan) -> Rows:
        """A chunk of the prompt: computed as it is, and shown to the drafter."""
        hidden = self._compute(rows)
        self.drafting.follow(rows.first_position, rows.token_ids, hidden)
        self._cached[rows.first_position :] = rows.token_ids
        self._made.clear()
        return hidden

    def known(self, rows: RowSpan) -> None:
        """A chunk of the prompt that the front's cache holds already."""
        self.drafting.follow(rows.first_position, rows.token_ids, None)
        self._cached[rows.first_position :] = rows.token_ids
        self._made.clear()

    def settle(self, token_ids: Sequence[int]) -> None:
        """Make the front's cache hold these tokens and no others."""
        if token_ids and self._cached[: len(token_ids)] != list(token_ids):
            self._row(token_ids[:-1], len(token_ids) - 1, token_ids[-1])
        del self._cached[len(token_ids) :]
        self._made.clear()

    def keep_slots(self, slots: Sequence[int]) -> None:
        """All tokens left the front's cache but those in these places; the drafter begins anew."""
        self._cached = [self._cached[slot] for slot in slots]
        self._num_sure = len(self._cached)
        self._made.clear()
        self.drafting.follow(0, self._cached, None)

    def step(
        self,
        session: EdgeSession,
        max_drafts: int | None,
        listen: Callable[[], object] = lambda: None,
    ) -> DraftedFrame | None:
        """The next decode step with the drafts that pay, at most `max_drafts` of them.

        listen: takes in what the cloud has guessed while the first row was computed.
        """
        rows = session.next_rows()
        if rows is None:
            return None
        run = DraftRun(first_position=rows.first_position)
        hidden = [self._row(session.tokens, rows.first_position, rows.token_ids[0])]
        self._num_sure = rows.first_position + 1
        self._forget_rows(self._num_sure)
        listen()
        sequence = list(session.tokens)
        room = min(self._max_tokens - rows.first_position, session.max_frame_tokens) - 1
        room = room if max_drafts is None else min(room, max_drafts)
        while len(run.slots) < room:
            if (guess := self.drafting.extend(run)) is None:
                break
            hidden.append(self._row(sequence, len(sequence), guess.token_id))
            sequence.append(guess.token_id)
        self._alternatives, self._tried_alternative = None, False
        with_drafts = session.next_rows(run.token_ids)
        return None if with_drafts is None else _frame(with_drafts, hidden, run)

    def ahead(self, session: EdgeSession, heard: Heard) -> DraftedFrame | None:
        """A frame to follow the last one while an answer is outstanding, if that is a good bet.

        First frames that continue the guesses, then alternatives to them. `heard` is asked before
        each row. Work on guesses ends when an answer is there; rows that it lets stand go.
        """
        if heard.has_answer():
            return None
        before = self.drafting.flight[-1]
        self._forget_rows(self.drafting.flight[0].first_position)
        if self.drafting.may_go_on and not self._tried_alternative:
            if self.drafting.has_news:
                self.drafting.look_again(before)
            self._alternatives = None
        if self._alternatives is None:
            run = self.drafting.begin_ahead(before)
            if run is not None and before.next_guess is not None:
                return self._frame_ahead(session, run, before.next_guess, heard)
            self._alternatives = self.drafting.alternatives()
        if not self._alternatives:
            return None
        self._tried_alternative = True
        choice = self._alternatives.pop(0)
        run = DraftRun(first_position=choice.position, place="alternative", base=choice.chance)
        return self._frame_ahead(session, run, choice.guess, heard, at=choice.position)

    def _frame_ahead(
        self,
        session: EdgeSession,
        run: DraftRun,
        guess: Guess,
        heard: Heard,
        at: int | None = None,
    ) -> DraftedFrame | None:
        """A frame that begins with `guess`; None when it is not possible or made no sense any more,
        because an answer came."""
        start = session.rows_ahead((guess.token_id,), at=at)
        if start is None or start.first_position >= self._max_tokens:
            return None
        sequence = [*session.tokens, *session.guesses()][: start.first_position]
        guesses = [guess.token_id]
        hidden = [self._row(sequence, len(sequence), guess.token_id)]
        sequence.append(guess.token_id)
        while len(sequence) < self._max_tokens and len(guesses) < session.max_frame_tokens:
            if heard.has_answer():
                if at is not None or not heard.stands():
                    return None
                self.drafting.look_again(run)
                break
            if (more := self.drafting.extend_ahead(run)) is None:
                break
            guesses.append(more.token_id)
            hidden.append(self._row(sequence, len(sequence), more.token_id))
            sequence.append(more.token_id)
        rows = session.rows_ahead(guesses, at=at)
        return None if rows is None else _frame(rows, hidden, run)

    def _forget_rows(self, below: int) -> None:
        """The tokens below this position are known: their rows are not sent again."""
        for position in [at for at in self._made if at < below]:
            del self._made[position]

    def _row(self, sequence: Sequence[int], position: int, token_id: int) -> Rows:
        """The row [1, D] of `token_id` at `position`, behind sequence[:position].

        Rows from the first position on where the cache holds another token are computed again. A
        row that is there is not.
        """
        same = min(self._num_sure, position)
        most = min(len(self._cached), position)
        while same < most and self._cached[same] == sequence[same]:
            same += 1
        is_there = same == position and self._cached[position : position + 1] == [token_id]
        if is_there and (made := self._made.get(position)) is not None:
            self.drafting.follow(position, (token_id,), made)
            return made
        for at, known in enumerate((*sequence[same:position], token_id), start=same):
            hidden = self._made[at] = self._compute(RowSpan(at, (known,), 0, True))
            self.drafting.follow(at, (known,), hidden)
        self._cached[same:] = (*sequence[same:position], token_id)
        return hidden


def _frame(rows: RowSpan, hidden: list[Rows], run: DraftRun) -> DraftedFrame:
    return DraftedFrame(rows, np.concatenate(hidden), run)
