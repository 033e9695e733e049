"""Decodes the frames of many sessions in few calls, for a server whose sessions decode at once.

A frame of one row is decoded in a tenth of a millisecond, of which Python's lock is held for a
part. Frames of one level go through one call of the compiled kernel, which lets go of the lock.
Without the kernel, and for every frame that is not a plain short one, it is the ladder's own code.
"""

from __future__ import annotations

from collections.abc import Sequence

from codec.errors import FrameError
from codec.frame import ParsedFrame
from codec.ladder import Ladder, checked_finite
from codec.rows import DecodesTogether, Rows, TokenIds


def decode_together(
    ladder: Ladder, frames: Sequence[bytes], token_ids: Sequence[TokenIds]
) -> list[Rows | FrameError]:
    """What `ladder.decode` gives for each frame, or raises. token_ids: [T] of each frame."""
    found: list[Rows | FrameError | None] = [None] * len(frames)
    parsed: dict[int, ParsedFrame] = {}
    by_level: dict[int, list[int]] = {}
    for place, (frame, ids) in enumerate(zip(frames, token_ids, strict=True)):
        try:
            one = parsed[place] = ladder.parsed(frame, len(ids), ids)
            codec = ladder.checked(one.kind, one.level_index).codec
        except FrameError as error:
            found[place] = _bare(error)
            continue
        can = isinstance(codec, DecodesTogether) and codec.takes_together(len(ids))
        if can and one.kind == codec.kind:
            by_level.setdefault(one.level_index, []).append(place)
    for index, places in by_level.items():
        codec = ladder.levels[index].codec
        if isinstance(codec, DecodesTogether):
            payloads = [parsed[place].payload for place in places]
            rows = codec.decode_together(payloads, [token_ids[place] for place in places])
            for place, outcome in zip(places, rows, strict=True):
                found[place] = outcome
    return [
        _in_turn(ladder, parsed[place], token_ids[place]) if outcome is None else outcome
        for place, outcome in enumerate(found)
    ]


def _in_turn(ladder: Ladder, parsed: ParsedFrame, token_ids: TokenIds) -> Rows | FrameError:
    """One frame, as the ladder decodes it."""
    try:
        rows = ladder.rows_of(parsed.kind, parsed.level_index, parsed.payload, token_ids)
        return checked_finite(rows)
    except FrameError as error:
        return _bare(error)


def _bare(error: FrameError) -> FrameError:
    """The error without its traceback: that would keep the rows of all the other frames alive."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)
