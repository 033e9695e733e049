"""One generation as a state machine without I/O: what to send next, and what an answer means.

The session knows tokens, positions and sequence numbers. It never touches the front engine, a
codec, a socket or a clock; `edge.generation.loop` does, and tells the session what happened. What
may follow what is the table in `edge.generation.phases`. The frames sent so far, and which of them
are void, are in the journal (`edge.generation.journal`).

When an answer contradicts a guess, the session is READY at once to send the token that it was told;
it does not wait for the answers to the void frames. After a loss, `open` the session again and send
`replay()`.

What a server says is checked like what a client says (`edge.generation.answer_checks`). Each frame
sent on a stream is answered once, in the order in which it was sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from edge.errors import SessionError
from edge.generation.answer_checks import AnswerTerms, check_answer
from edge.generation.journal import Journal
from edge.generation.phases import RESUMING, Event, Phase, next_phase
from edge.generation.row_span import RowSpan
from protos.kept_places import KeptPlaces, places_to_bytes
from protos.limits import MAX_FRAME_TOKENS
from protos.messages import Frame, Result
from protos.wire import DEFAULT_FRAMES_IN_FLIGHT

# Answers of one stream that repeat what is known, and that no frame of it asked for.
MAX_REPEATED: Final = 16


class EdgeSession:
    """See the module's docstring. `prompt_ids` must not be empty."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        *,
        chunk_tokens: int,
        known: Sequence[Frame] = (),
        terms: AnswerTerms | None = None,
    ) -> None:
        """Start in IDLE.

        chunk_tokens: the most prompt tokens a frame. known: frames that the prompt begins with, as
        an earlier session sent them. Those that the cloud does not hold are forgotten when the
        session opens. terms: what answers must keep to besides (None: nothing). Raises
        SessionError for an empty prompt.
        """
        if not prompt_ids:
            raise SessionError("the prompt has no tokens")
        self.tokens: list[int] = list(prompt_ids)
        self.num_prompt_tokens = len(prompt_ids)
        self.chunk_tokens = chunk_tokens
        self.max_frame_tokens = MAX_FRAME_TOKENS  # the server's limit, once it has told
        self.max_frames_in_flight = DEFAULT_FRAMES_IN_FLIGHT  # likewise
        self.token_rows = 0  # tokens before this position go as ids
        self._with_kv = (0, 0)  # so many first tokens go with keys and values, so many a frame
        self._granted_token_rows = 0  # the most that the server takes so
        self.journal = Journal(known)
        self._terms = replace(terms or AnswerTerms(), num_prompt=len(prompt_ids))
        self._asked: deque[int] = deque()  # frames of this stream that wait for their answer
        self._num_repeated = 0  # answers of this stream that no frame of it asked for
        self._phase = Phase.IDLE
        self._opened_phase = Phase.PREFILLING  # where an opened stream goes on
        self.capacity: int | None = None  # places in the cache, where tokens may leave it
        self._num_new = 0  # tokens that the cloud has answered with
        self._kept = b""  # places that stay when the next frame has come
        self._num_sent = 0  # tokens whose rows have been sent, refused drafts left out
        self._num_held = 0  # frames that the cloud kept when it was last opened
        self._was_opened = False
        self.recalls = True  # whether frames may refer to earlier rows, where it was asked for
        self.has_recalled = False  # whether one did

    @property
    def phase(self) -> Phase:
        """Where the session stands. Events alone change it."""
        return self._phase

    @property
    def num_new_tokens(self) -> int:
        """Tokens that the cloud has answered with."""
        return self._num_new

    @property
    def num_sent(self) -> int:
        """Tokens that have been sent, refused drafts left out."""
        return self._num_sent

    @property
    def num_prompt_left(self) -> int:
        """Prompt tokens whose rows have not been sent yet."""
        return max(self.num_prompt_tokens - self._num_sent, 0)

    @property
    def has_only_known_frames(self) -> bool:
        """Whether no stream has opened it yet, and its frames are those of earlier sessions."""
        return not self._was_opened and self._num_sent == 0 and len(self.journal) > 0

    def open(self) -> None:
        """A stream is being opened, for the first time or again."""
        self._step(Event.OPEN)
        self._asked.clear()
        self._num_repeated = 0

    def opened(self, held_frames: int = 0) -> None:
        """The cloud has admitted the session; after a loss, send `replay()` next.

        held_frames: how many of the first frames it has, from a stream that broke or from a
        session that began the same. SessionError for more than there are.
        """
        if held_frames > len(self.journal):
            raise SessionError(f"it holds {held_frames} frames of {len(self.journal)}")
        self._step(RESUMING[self._opened_phase])
        self._was_opened = True
        self._num_held = held_frames
        if self._num_sent == 0 and len(self.journal):  # only frames of earlier sessions
            self.journal.keep_first(held_frames)
            self._num_sent = sum(len(frame.token_ids) for frame in self.journal.frames)

    def granted(self, token_rows: int) -> None:
        """So many first tokens the server takes in token frames."""
        self._granted_token_rows = token_rows
        self.token_rows = min(self.token_rows, token_rows)

    def send_as_ids(self, num_tokens: int) -> None:
        """Send the first `num_tokens` tokens in token frames, as far as the server takes them."""
        self.token_rows = min(num_tokens, self._granted_token_rows)

    def send_with_kv(self, num_tokens: int, frame_tokens: int) -> None:
        """Send keys and values beside the ids of the first `num_tokens` tokens, on this stream."""
        self._with_kv = (num_tokens, frame_tokens)

    def lost(self) -> None:
        """The stream is gone; the journal stays. It has ids alone, so no other stream gets KV."""
        self._with_kv = (0, 0)
        if self._phase in RESUMING:
            self._opened_phase = self._phase
        self._step(Event.LOST)

    def must_withdraw(
        self, max_frame_tokens: int, token_rows: int, *, recall: bool = False
    ) -> bool:
        """Whether frames went behind the Open that a server with these limits will not run."""
        journal = self.journal
        return (
            not self._was_opened
            and self._num_sent > 0
            and (
                journal.token_rows_behind(0) > token_rows
                or (self.has_recalled and not recall)
                or max(len(frame.token_ids) for frame in journal.frames) > max_frame_tokens
            )
        )

    def withdraw(self) -> None:
        """Take back what was sent behind the Open, before `opened`. The stream counts as lost.

        Raises SessionError once a stream has opened the session.
        """
        if self._was_opened:
            raise SessionError("frames of an open session cannot be taken back")
        self.lost()
        self.journal.keep_first(0)
        self._num_sent = 0
        self._opened_phase = Phase.PREFILLING
        self.send_as_ids(0)
        self.has_recalled = False

    def keep_places(self, places: Sequence[int]) -> None:
        """Of the tokens that were sent, those in these rising places stay in the cloud's cache.

        From now on `tokens` begins with them, and its places are those of the cache. The next frame
        tells the cloud. SessionError while an answer with tokens is outstanding.
        """
        if self._phase not in (Phase.PREFILLING, Phase.READY):
            raise SessionError(f"no token can leave while {self._phase.name}")
        kept = places_to_bytes(KeptPlaces(places, self._num_sent))
        gone = {*range(self._num_sent)} - {*places}
        self.num_prompt_tokens -= sum(place < self.num_prompt_tokens for place in gone)
        self._terms = replace(self._terms, num_prompt=self.num_prompt_tokens)
        self.tokens[: self._num_sent] = [self.tokens[place] for place in places]
        self._num_sent = len(places)
        self._kept = kept

    def finish(self) -> None:
        """The generation has ended, whatever the phase."""
        self._step(Event.FINISH)

    def next_rows(self, drafts: Sequence[int] = ()) -> RowSpan | None:
        """What the front has to compute now; None while an answer has to come first.

        `drafts` continue the sequence as guesses; they go with a decode step only.
        """
        if self._phase is Phase.PREFILLING:
            return self.next_chunk()
        if self._phase is Phase.READY:
            token_ids = (self.tokens[-1], *drafts)
            as_ids = self._go_as_ids(self._num_sent, len(token_ids))
            return RowSpan(self._num_sent, token_ids, len(drafts), True, as_ids=as_ids)
        return None

    def next_chunk(self) -> RowSpan:
        """The prompt's next rows, whether or not they may be sent yet."""
        as_ids = self._num_sent < self.token_rows
        most = self.max_frame_tokens if as_ids else min(self.chunk_tokens, self.max_frame_tokens)
        end = min(self.token_rows, self.num_prompt_tokens) if as_ids else self.num_prompt_tokens
        num_with_kv, most_with_kv = self._with_kv
        if with_kv := as_ids and self._num_sent < num_with_kv:
            most, end = min(most, most_with_kv), min(end, num_with_kv)
        stop = min(self._num_sent + most, end)
        if self.capacity is not None:
            stop = min(stop, self.capacity)
        chunk = tuple(self.tokens[self._num_sent : stop])
        is_last = stop == self.num_prompt_tokens
        return RowSpan(self._num_sent, chunk, 0, is_last, as_ids=as_ids, with_kv=with_kv)

    def guesses(self) -> tuple[int, ...]:
        """What is assumed to follow `tokens`: the guesses sent, alternatives left out."""
        return self.journal.guesses_from(len(self.tokens))

    def rows_ahead(self, guesses: Sequence[int], *, at: int | None = None) -> RowSpan | None:
        """Rows to compute and send while an answer is outstanding; None when that is not possible.

        guesses: what follows the last row sent. The first one guesses the token that the
        outstanding answer will end with when all drafts are right; the others continue it. at: the
        guesses begin at this earlier position instead, as an alternative to the guess there.
        """
        if self._phase is not Phase.WAITING or not guesses:
            return None
        taken = self.journal.alternative_positions()
        if at is None:
            possible, at = not taken, self._num_sent
        else:
            possible = len(self.tokens) <= at < min([self._num_sent, *(p + 1 for p in taken)])
        if not possible:
            return None
        as_ids = self._go_as_ids(at, len(guesses))
        return RowSpan(at, tuple(guesses), len(guesses) - 1, True, ahead=True, as_ids=as_ids)

    def _go_as_ids(self, first_position: int, count: int) -> bool:
        return first_position + count <= self.token_rows

    def sent(self, rows: RowSpan, hidden: bytes) -> Frame:
        """Record the encoded rows in the journal; returns the frame to put on the wire."""
        frame = Frame(
            sequence=len(self.journal),
            first_position=rows.first_position,
            token_ids=rows.token_ids,
            hidden=hidden,
            num_drafts=rows.num_drafts,
            want_token=rows.want_token,
            ahead=rows.ahead,
            kept=self._kept,
        )
        self._kept = b""
        if rows.ahead:
            self._step(Event.SENT_AHEAD)
        else:
            if self._phase is Phase.OPENING:
                self._opened_phase = Phase.WAITING if rows.want_token else Phase.PREFILLING
            self._step(Event.SENT_LAST if rows.want_token else Event.SENT_CHUNK)
        is_alternative = rows.ahead and rows.first_position < self._num_sent
        if not is_alternative:
            self._num_sent = rows.first_position + len(rows.token_ids)
        self.journal.append(frame, is_alternative=is_alternative)
        self._asked.append(frame.sequence)
        return frame

    def received(self, result: Result) -> tuple[int, ...]:
        """Take one answer; returns the new tokens, which now stand at the end of `tokens`.

        An answer to a frame that was answered before gives nothing (after a replay the cloud
        answers again). Raises SessionError for anything that does not answer the oldest
        outstanding frame as it was asked, and for too many answers that no frame asked for.
        """
        journal = self.journal
        self._count_answer(result.sequence)
        if result.sequence < journal.num_answered:
            return ()
        if result.sequence != journal.num_answered or not journal.num_outstanding:
            raise SessionError(f"answer {result.sequence} does not belong to an open question")
        frame = journal.frames[result.sequence]
        if not frame.want_token or journal.is_void(result.sequence):
            if result.token_ids:
                raise SessionError(f"answer {result.sequence} has tokens that nobody asked for")
            check_answer(frame, result, self._terms, is_void=journal.is_void(result.sequence))
            self._step(Event.ACKNOWLEDGED)
            journal.num_answered += 1
            return ()
        check_answer(frame, result, self._terms, is_void=False)
        journal.num_answered += 1
        self.tokens.extend(result.token_ids)
        self._num_new += len(result.token_ids)
        position = len(self.tokens) - 1
        running = journal.settle(position, self.tokens[-1])
        if running is None:
            self._step(Event.TOKENS)
            self._num_sent = position
        else:
            self._step(Event.TOKENS_AS_GUESSED)
            if journal.adopt(running):
                self._num_sent = position + len(running.token_ids)
        return result.token_ids

    def unsent(self) -> list[Frame]:
        """What to send first on the first stream that opened: `replay()`, where the frames went
        behind an earlier Open that came to nothing."""
        return self.replay() if self.journal.num_outstanding and not self._asked else []

    def replay(self) -> list[Frame]:
        """The frames that rebuild the cloud's cache, in order; after `opened`. See Journal."""
        frames = self.journal.replay(self._num_held)
        self._asked.extend(frame.sequence for frame in frames)
        return frames

    def _count_answer(self, sequence: int) -> None:
        """Match an answer with the oldest frame of this stream that waits for one."""
        if self._asked and self._asked[0] == sequence:
            self._asked.popleft()
            return
        self._num_repeated += 1
        if sequence >= self.journal.num_answered or self._num_repeated > MAX_REPEATED:
            raise SessionError(f"answer {sequence} does not belong to an open question")

    def _step(self, event: Event) -> None:
        """The only place where the phase changes."""
        self._phase = next_phase(self._phase, event)
