"""One generation as a state machine without I/O: what to send next, and what an answer means.

The session knows tokens, positions and sequence numbers. It never touches the front engine, a
codec, a socket or a clock; `generation` does, and tells it what happened. Everything allowed
stands in `TRANSITIONS`; any other event raises SessionError.

    IDLE --open--> OPENING --opened--> PREFILLING --sent last chunk--> WAITING
    WAITING --tokens--> READY --sent step--> WAITING
    WAITING --sent ahead--> WAITING --tokens that the frame sent ahead stands on--> WAITING
    every phase but IDLE and FINISHED --lost--> BROKEN --open--> OPENING (and the replay)
    every phase --finish--> FINISHED

While an answer is outstanding, further guesses may be sent ahead of it (`rows_ahead`): rounds in
flight. Each such frame begins with a guess of the token that the answer before it ends with. When
an answer says otherwise, all frames behind it are void: the cloud answers them without tokens, and
the session is READY at once to send the token that it was told.

Behind the last guess may follow second choices for places on the way (branches): frames that
begin with another token for a place than the guess there. The cloud runs whichever frame begins
where an answer ended, with the token that it ended with, and the session tells the same from the
same rule (`_settle`). The rule looks at one token; what makes it safe is the order. Branches come
last, none begins later than the one before it, and nothing continues the guesses until every
branch is settled. So when a branch could run, no other branch ran (the cache would reach beyond
where this one begins), and what is in the cache is the way that it was computed for.

The journal keeps the frames as they were encoded. When the stream or the server is gone,
`open` again and send `replay()`: the cloud rebuilds its cache from the very same bytes, and
since every position draws its token from its own random number (decoding.sampler), the
answer that was outstanding is the one the lost server would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import Final, NamedTuple

from edge.errors import SessionError
from protos.messages import Frame, Result
from protos.wire import DEFAULT_FRAMES_IN_FLIGHT


class Phase(Enum):
    """Where a session stands."""

    IDLE = auto()
    OPENING = auto()
    PREFILLING = auto()
    WAITING = auto()
    READY = auto()
    BROKEN = auto()
    FINISHED = auto()


class Event(Enum):
    """What can happen to a session."""

    OPEN = auto()
    OPENED = auto()
    SENT_CHUNK = auto()
    SENT_LAST = auto()
    SENT_AHEAD = auto()
    ACKNOWLEDGED = auto()
    TOKENS = auto()
    TOKENS_AS_GUESSED = auto()
    LOST = auto()
    FINISH = auto()


TRANSITIONS: Final[dict[tuple[Phase, Event], Phase]] = {
    (Phase.IDLE, Event.OPEN): Phase.OPENING,
    (Phase.OPENING, Event.OPENED): Phase.PREFILLING,
    (Phase.PREFILLING, Event.SENT_CHUNK): Phase.PREFILLING,
    (Phase.PREFILLING, Event.SENT_LAST): Phase.WAITING,
    (Phase.PREFILLING, Event.ACKNOWLEDGED): Phase.PREFILLING,
    (Phase.WAITING, Event.ACKNOWLEDGED): Phase.WAITING,
    (Phase.WAITING, Event.TOKENS): Phase.READY,
    (Phase.WAITING, Event.SENT_AHEAD): Phase.WAITING,
    (Phase.WAITING, Event.TOKENS_AS_GUESSED): Phase.WAITING,
    (Phase.READY, Event.ACKNOWLEDGED): Phase.READY,
    (Phase.READY, Event.SENT_LAST): Phase.WAITING,
    (Phase.BROKEN, Event.OPEN): Phase.OPENING,
    (Phase.OPENING, Event.LOST): Phase.BROKEN,
    (Phase.PREFILLING, Event.LOST): Phase.BROKEN,
    (Phase.WAITING, Event.LOST): Phase.BROKEN,
    (Phase.READY, Event.LOST): Phase.BROKEN,
    (Phase.BROKEN, Event.LOST): Phase.BROKEN,
    **{(phase, Event.FINISH): Phase.FINISHED for phase in Phase},
}


class Rows(NamedTuple):
    """Rows the front has to compute next: their input tokens and where the first one stands.

    The last `num_drafts` tokens are guesses. `want_token`: the answer has to bring tokens.
    `ahead`: the first token is a guess too, of what the outstanding answer ends with.
    """

    first_position: int
    token_ids: tuple[int, ...]
    num_drafts: int
    want_token: bool
    ahead: bool = False


class Session:
    """See the module's docstring. `prompt_ids` must not be empty."""

    def __init__(
        self, prompt_ids: Sequence[int], *, chunk_tokens: int, known: Sequence[Frame] = ()
    ) -> None:
        """known: frames that the prompt begins with, as they were sent before; those that the
        cloud does not hold are forgotten when the session opens."""
        if not prompt_ids:
            raise SessionError("the prompt has no tokens")
        self.phase = Phase.IDLE
        self.tokens: list[int] = list(prompt_ids)
        self.num_prompt_tokens = len(prompt_ids)
        self.chunk_tokens = chunk_tokens
        self.max_frame_tokens = chunk_tokens  # the server's limit, once it has told
        self.max_frames_in_flight = DEFAULT_FRAMES_IN_FLIGHT  # likewise
        self.journal: list[Frame] = list(known)
        self._resume_phase = Phase.PREFILLING
        self._num_sent = 0  # tokens whose rows have been sent, drafts that were refused left out
        self._num_answered = 0  # journal entries that have been answered
        self._held_frames = 0  # what the cloud kept when it was last opened
        self._void: set[int] = set()  # frames that were sent ahead on a wrong guess
        self._branches: set[int] = set()  # frames that begin with a second choice

    @property
    def num_new_tokens(self) -> int:
        """Tokens that the cloud has answered with."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_prompt_left(self) -> int:
        """Prompt tokens whose rows have not been sent yet."""
        return max(self.num_prompt_tokens - self._num_sent, 0)

    @property
    def num_outstanding(self) -> int:
        """Frames sent and not answered yet."""
        return len(self.journal) - self._num_answered

    @property
    def num_undecided(self) -> int:
        """Of them, those that may bring tokens."""
        return len(self._undecided())

    def is_void(self, sequence: int) -> bool:
        """Whether frame `sequence` was sent ahead on a guess that turned out wrong."""
        return sequence in self._void

    @property
    def num_journal_bytes(self) -> int:
        """Size of the encoded hidden states kept for a replay."""
        return sum(len(frame.hidden) for frame in self.journal)

    def open(self) -> None:
        """A stream is being opened, for the first time or again."""
        self._step(Event.OPEN)

    def opened(self, held_frames: int = 0) -> None:
        """The cloud has admitted the session; after a loss, send `replay()` next.

        held_frames: how many of the first frames it has, from a stream that broke or from a
        session that began the same.
        """
        self._step(Event.OPENED)
        self._held_frames = held_frames
        if self._num_sent == 0 and self.journal:  # nothing but what was known before
            del self.journal[held_frames:]
            self._num_answered = len(self.journal)
            self._num_sent = sum(len(frame.token_ids) for frame in self.journal)
        self.phase = self._resume_phase

    def lost(self) -> None:
        """The stream is gone; the journal stays."""
        if self.phase not in (Phase.OPENING, Phase.BROKEN):
            self._resume_phase = self.phase
        self._step(Event.LOST)

    def finish(self) -> None:
        self._step(Event.FINISH)

    def next_rows(self, drafts: Sequence[int] = ()) -> Rows | None:
        """What the front has to compute now; None while an answer has to come first.

        `drafts` continue the sequence as guesses; they go with a decode step only.
        """
        if self.phase is Phase.PREFILLING:
            return self.next_chunk()
        if self.phase is Phase.READY:
            return Rows(self._num_sent, (self.tokens[-1], *drafts), len(drafts), True)
        return None

    def guesses(self) -> tuple[int, ...]:
        """What is assumed to follow `tokens`: the guesses sent, second choices left out."""
        known = len(self.tokens)
        return tuple(
            token_id
            for index, frame in self._undecided()
            if index not in self._branches
            for place, token_id in enumerate(frame.token_ids, start=frame.first_position)
            if place >= known
        )

    def next_chunk(self) -> Rows:
        """The prompt's next rows, whether or not they may be sent yet."""
        chunk_tokens = min(self.chunk_tokens, self.max_frame_tokens)
        stop = min(self._num_sent + chunk_tokens, self.num_prompt_tokens)
        chunk = tuple(self.tokens[self._num_sent : stop])
        return Rows(self._num_sent, chunk, 0, stop == self.num_prompt_tokens)

    def rows_ahead(self, guesses: Sequence[int], *, at: int | None = None) -> Rows | None:
        """Rows to compute and send while an answer is outstanding; None when that is not possible.

        guesses: what follows the last row sent: the token that the outstanding answer will end
        with when all drafts are right, and drafts that continue it. at: they begin at this earlier
        position instead, as a second choice for what was guessed there.
        """
        if self.phase is not Phase.WAITING or not guesses:
            return None
        branches = [frame.first_position for i, frame in self._undecided() if i in self._branches]
        if at is None:
            possible, at = not branches, self._num_sent
        else:
            possible = len(self.tokens) <= at < min([self._num_sent, *(p + 1 for p in branches)])
        return Rows(at, tuple(guesses), len(guesses) - 1, True, ahead=True) if possible else None

    def sent(self, rows: Rows, hidden: bytes) -> Frame:
        """Record the encoded rows in the journal; returns the frame to put on the wire."""
        frame = Frame(
            sequence=len(self.journal),
            first_position=rows.first_position,
            token_ids=rows.token_ids,
            hidden=hidden,
            num_drafts=rows.num_drafts,
            want_token=rows.want_token,
            ahead=rows.ahead,
        )
        if rows.ahead:
            self._step(Event.SENT_AHEAD)
        else:
            self._step(Event.SENT_LAST if rows.want_token else Event.SENT_CHUNK)
        if rows.ahead and rows.first_position < self._num_sent:
            self._branches.add(frame.sequence)
        else:
            self._num_sent = rows.first_position + len(rows.token_ids)
        self.journal.append(frame)
        return frame

    def received(self, result: Result) -> tuple[int, ...]:
        """Take one answer; returns the new tokens, which now stand at the end of `tokens`.

        An answer to a frame that was answered before (a replay makes the cloud answer again)
        gives nothing. Raises SessionError for anything that does not answer the oldest
        outstanding frame as it was asked.
        """
        if result.sequence < self._num_answered:
            return ()
        if result.sequence != self._num_answered or not self.num_outstanding:
            raise SessionError(f"answer {result.sequence} does not belong to an open question")
        frame = self.journal[result.sequence]
        if not frame.want_token or result.sequence in self._void:
            if result.token_ids:
                raise SessionError(f"answer {result.sequence} has tokens that nobody asked for")
            self._step(Event.ACKNOWLEDGED)
            self._num_answered += 1
            return ()
        if not 1 <= len(result.token_ids) <= frame.num_drafts + 1:
            raise SessionError(
                f"answer {result.sequence} has {len(result.token_ids)} tokens for "
                f"{frame.num_drafts} drafts"
            )
        num_accepted = len(result.token_ids) - 1
        if result.token_ids[:-1] != frame.token_ids[-frame.num_drafts :][:num_accepted]:
            raise SessionError(f"answer {result.sequence} accepts drafts that were not sent")
        self._num_answered += 1
        self.tokens.extend(result.token_ids)
        if self._settle():
            self._step(Event.TOKENS_AS_GUESSED)
            return result.token_ids
        self._step(Event.TOKENS)
        self._void.update(range(self._num_answered, len(self.journal)))
        self._num_sent = len(self.tokens) - 1
        return result.token_ids

    def _undecided(self) -> list[tuple[int, Frame]]:
        """Outstanding frames that the cloud may run; the first of them it will."""
        return [
            (index, self.journal[index])
            for index in range(self._num_answered, len(self.journal))
            if index not in self._void
        ]

    def _settle(self) -> bool:
        """Find the frame that the cloud runs next, and void what it will not; False: there is none.

        The rule is the cloud's: a frame runs when it begins at the last token told.
        """
        at, token_id = len(self.tokens) - 1, self.tokens[-1]
        undecided = self._undecided()
        standing = [
            index
            for index, frame in undecided
            if frame.first_position == at and frame.token_ids[0] == token_id
        ]
        if not standing:
            return False
        chosen = standing[0]
        self._void.update(
            index
            for index, frame in undecided
            if index < chosen or (index > chosen and frame.first_position <= at)
        )
        if chosen in self._branches:
            self._branches.remove(chosen)
            self._num_sent = at + len(self.journal[chosen].token_ids)
        return True

    def replay(self) -> list[Frame]:
        """The frames that rebuild the cloud's cache, in order; after `opened`.

        Those already answered ask for no token and verify no draft: all their rows enter the
        cache again, and the frame that followed rolls the refused ones back, as it starts lower.
        What a frame sent ahead stood on is settled for all but the last outstanding ones: void
        frames fall again, since no answer comes before them, and the others need no guess.

        A cloud that kept the session gets the outstanding frames alone, as they were: it answers
        those that it knows once more, and runs the others.
        """
        held = self._held_frames
        if held and held >= self._num_answered:
            return self.journal[self._num_answered :]
        frames = [
            frame
            if index in self._void or index >= self._num_answered
            else replace(frame, num_drafts=0, want_token=False, ahead=False)
            for index, frame in enumerate(self.journal)
        ]
        if undecided := self._undecided():
            settled, frame = undecided[0]
            # From now on this is what was sent.
            self.journal[settled] = frames[settled] = replace(frame, ahead=False)
        return frames[held:]

    def _step(self, event: Event) -> None:
        following = TRANSITIONS.get((self.phase, event))
        if following is None:
            raise SessionError(f"{event.name} is not possible while {self.phase.name}")
        self.phase = following
