"""The frames of one session as they were encoded: which are answered, which are void.

An answer may be outstanding while further frames are sent ahead of it. Each such frame begins with
a guess of the token that the previous answer ends with. When an answer names another token, all
frames behind it are void: the cloud answers them without tokens.

Alternatives may follow the last guess. An alternative is a frame that begins with another token for
a position than the guess there. The cloud runs whichever frame begins where an answer ended, with
the token that it ended with. `settle` finds the same frame from the same rule. The rule looks at
one token only; the order of the frames makes it safe. Alternatives come last, none begins later
than the one before it, and nothing continues the guesses until every alternative is settled. So
when an alternative could run, no other one has run (the cache would reach beyond its beginning),
and the cache holds exactly the tokens that the alternative was computed behind.

When the stream or the server is lost, `replay` gives the frames that rebuild the cloud's cache from
the very same bytes. Every position draws its token from its own random number
(decoding.sampler), so the outstanding answer is the one that the lost server would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from protos.messages import Frame


class Journal:
    """See the module's docstring. frames: those that the prompt begins with, if any are known."""

    def __init__(self, frames: Sequence[Frame] = ()) -> None:
        self.frames: list[Frame] = list(frames)
        self.num_answered = 0
        self._void: set[int] = set()  # frames that were sent ahead on a wrong guess
        self._alternatives: set[int] = set()  # frames that begin with an alternative

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def num_outstanding(self) -> int:
        """Frames sent and not answered yet."""
        return len(self.frames) - self.num_answered

    def token_rows_behind(self, num_held: int) -> int:
        """Where the last token frame behind the first `num_held` frames ends; 0: none."""
        ends = [
            frame.first_position + len(frame.token_ids)
            for frame in self.frames[num_held:]
            if frame.is_tokens
        ]
        return max(ends, default=0)

    def is_void(self, sequence: int) -> bool:
        """Whether frame `sequence` was sent ahead on a guess that turned out wrong."""
        return sequence in self._void

    def append(self, frame: Frame, *, is_alternative: bool = False) -> None:
        """Add the next frame. is_alternative: it replaces a guess that was sent before."""
        if is_alternative:
            self._alternatives.add(frame.sequence)
        self.frames.append(frame)

    def keep_first(self, count: int) -> None:
        """Forget all frames but the first `count`, which the cloud holds already."""
        del self.frames[count:]
        self.num_answered = len(self.frames)

    def undecided(self) -> list[tuple[int, Frame]]:
        """Outstanding frames that the cloud may run, by number; it will run the first of them."""
        return [
            (index, self.frames[index])
            for index in range(self.num_answered, len(self.frames))
            if index not in self._void
        ]

    def running(self, begin: int) -> list[tuple[int, Frame]]:
        """The frames from number `begin` on that run in the cloud if all guesses are right.

        Alternatives are left out.
        """
        return [
            (index, self.frames[index])
            for index in range(begin, len(self.frames))
            if index not in self._void and index not in self._alternatives
        ]

    def guesses_from(self, position: int) -> tuple[int, ...]:
        """The guessed tokens under way from `position` on, alternatives left out."""
        return tuple(
            token_id
            for index, frame in self.undecided()
            if index not in self._alternatives
            for at, token_id in enumerate(frame.token_ids, start=frame.first_position)
            if at >= position
        )

    def alternative_positions(self) -> list[int]:
        """Where the alternatives under way begin."""
        return [frame.first_position for i, frame in self.undecided() if i in self._alternatives]

    def settle(self, position: int, token_id: int) -> Frame | None:
        """Find the frame that the cloud runs next, and void those that it will not run.

        position, token_id: the last token that the cloud has told. The rule is the cloud's: a
        frame runs when it begins with that token at that position. None when no frame does; every
        outstanding frame is void then. An alternative that runs is none any more.
        """
        undecided = self.undecided()
        chosen = next(
            (
                index
                for index, frame in undecided
                if frame.first_position == position and frame.token_ids[0] == token_id
            ),
            None,
        )
        if chosen is None:
            self._void.update(range(self.num_answered, len(self.frames)))
            return None
        self._void.update(
            index
            for index, frame in undecided
            if index < chosen or (index > chosen and frame.first_position <= position)
        )
        return self.frames[chosen]

    def stands(self, sequence: int, token_ids: Sequence[int]) -> bool:
        """Whether the guesses behind frame `sequence` are right if its answer brings these tokens:
        the frame after it begins with the last of them."""
        if not token_ids or not 0 <= sequence < len(self.frames):
            return False
        frame = self.frames[sequence]
        begin = frame.first_position + len(frame.token_ids) - frame.num_drafts - 1
        position = begin + len(token_ids)
        return any(
            later.first_position == position and later.token_ids[0] == token_ids[-1]
            for index, later in self.running(self.num_answered)
            if index > sequence
        )

    def adopt(self, frame: Frame) -> bool:
        """Make `frame` part of the guesses; True when it was an alternative until now."""
        if frame.sequence not in self._alternatives:
            return False
        self._alternatives.remove(frame.sequence)
        return True

    def replay(self, num_held: int) -> list[Frame]:
        """The frames that rebuild the cloud's cache, in order, behind the first `num_held`.

        Answered frames ask for no token and verify no draft. All their rows enter the cache
        again, and the frame that followed rolls the refused rows back, because it starts lower.
        Void frames fall again, because no answer comes before them. Of the others only the last
        outstanding ones still need a guess.

        A cloud that kept the session gets the outstanding frames alone, unchanged: it answers
        those that it knows once more and runs the others.
        """
        if num_held and num_held >= self.num_answered:
            return self.frames[self.num_answered :]
        frames = [
            frame
            if index in self._void or index >= self.num_answered
            else replace(frame, num_drafts=0, want_token=False, ahead=False)
            for index, frame in enumerate(self.frames)
        ]
        if undecided := self.undecided():
            settled, frame = undecided[0]
            # From now on this is the frame that was sent.
            self.frames[settled] = frames[settled] = replace(frame, ahead=False)
        return frames[num_held:]
