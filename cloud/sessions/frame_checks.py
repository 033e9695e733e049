"""What a frame must keep to in its session, and the rows that it brings. No state, no I/O."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from cloud.engine.batch_entry import FloatRows
from cloud.errors import BadFrameError
from codec.errors import FrameError
from codec.ladder import Ladder
from codec.together import decode_together
from protos.messages import Frame


def check_frame(
    frame: Frame, starts: range, *, max_rows: int, max_tokens: int, vocab_size: int
) -> None:
    """Raise BadFrameError for what no session may send; it starts in `starts` or right behind them.

    max_rows: of a frame. max_tokens: that the session has reserved.
    """
    count = len(frame.token_ids)
    if count > max_rows:
        raise BadFrameError(f"frame of {count} rows, at most {max_rows}")
    if frame.first_position > starts.stop:
        raise BadFrameError(
            f"frame {frame.sequence} starts at position {frame.first_position}, "
            f"the cache ends at {starts.stop}"
        )
    if frame.first_position < starts.start:
        raise BadFrameError(
            f"frame {frame.sequence} starts at position {frame.first_position}, but the first "
            f"{starts.start} are shared with other sessions"
        )
    if frame.first_position + count > max_tokens:
        raise BadFrameError(
            f"frame {frame.sequence} reaches position {frame.first_position + count}, "
            f"the session reserved {max_tokens}"
        )
    if not frame.want_token and frame.num_drafts:
        raise BadFrameError(f"frame {frame.sequence} has drafts but wants no token")
    if max(frame.token_ids) >= vocab_size:
        raise BadFrameError(f"frame {frame.sequence} names a token beyond the vocabulary")


def decoded_rows(ladder: Ladder, frame: Frame) -> FloatRows:
    """The rows of a frame that brings them, float32 [T, D]. Raises BadFrameError."""
    try:
        rows = ladder.decode(
            frame.hidden,
            num_rows=len(frame.token_ids),
            token_ids=np.asarray(frame.token_ids, dtype=np.int64),
        )
    except FrameError as error:
        raise _bad_frame(frame, error) from error
    return _for_torch(rows)


@dataclass(frozen=True, slots=True)
class PlainRows:
    """`decoded_rows` of a frame, to be called later. Frames of one ladder go together."""

    ladder: Ladder
    frame: Frame

    @property
    def group(self) -> Hashable:
        """See `cloud.engine.frame_decoding.JoinableDecoder`."""
        return id(self.ladder)

    def __call__(self) -> FloatRows:
        """The rows. Raises BadFrameError."""
        return decoded_rows(self.ladder, self.frame)

    def together(self, decoders: Sequence[object]) -> list[FloatRows | BaseException]:
        """See `cloud.engine.frame_decoding.JoinableDecoder`."""
        frames = [each.frame for each in decoders if isinstance(each, PlainRows)]
        outcomes = decode_together(
            self.ladder,
            [frame.hidden for frame in frames],
            [np.asarray(frame.token_ids, dtype=np.int64) for frame in frames],
        )
        return [
            _bad_frame(frame, outcome) if isinstance(outcome, FrameError) else _for_torch(outcome)
            for frame, outcome in zip(frames, outcomes, strict=True)
        ]


def _bad_frame(frame: Frame, error: FrameError) -> BadFrameError:
    bad = BadFrameError(f"frame {frame.sequence}: {error}")
    bad.__cause__ = error
    return bad


def _for_torch(rows: FloatRows) -> FloatRows:
    """A decoder may hand out a read-only view of the frame, which torch does not take."""
    return np.require(rows, dtype=np.float32, requirements=["C", "W"])


def first_drawn(frame: Frame) -> int:
    """The position of the first token that the frame asks for."""
    return frame.first_position + len(frame.token_ids) - frame.num_drafts


def guess_was_right(frame: Frame, num_cached: int, last_token: int | None) -> bool:
    """Whether the guess was right on which a frame was sent ahead.

    num_cached: tokens in the session's cache. last_token: what its last answer ended with. The
    frame's first position stands for all guesses before its first row, because each frame begins
    where the one before it ends. After a refused draft, or after another wrong guess, the cache is
    shorter.
    """
    return frame.first_position == num_cached and frame.token_ids[0] == last_token
