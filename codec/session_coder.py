"""Frames of one session, whose rows are predicted from the session's earlier rows.

Each side has a `SessionCoder`. A frame is coded against the rows at the positions before it, and
`take` adds its own once it is sure that the frame counts. Coding itself changes nothing. So a bad
frame, or one that was sent ahead on a wrong guess, leaves no trace.

The check of such a frame begins with a check over all rows that it may refer to. A side that holds
others refuses it: it can not come out wrong in silence. Frames of plain levels may come between.
What a calibrated one brings is held too.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from codec.arrays import I16
from codec.errors import FrameError
from codec.frame import (
    MIXED,
    MIXED_RECALLED,
    RECALLED,
    ParsedFrame,
    pack_frame,
    peek_level,
)
from codec.ladder import Ladder, Level, Mixed, checked_finite, mixed_body, split_mixed
from codec.levels.calibrated import CalibratedCodec
from codec.rows import RowMask, Rows, TokenIds, check_rows
from codec.session_rows import HeldBeginning, RowHistory


@dataclass(frozen=True, slots=True)
class Arrived:
    """What a frame leaves at both sides: values [T, D] and which of its rows have some. None: of
    none."""

    values: I16 | None = None
    taken: RowMask | None = None


class SessionCoder:
    """See the module's docstring. ladder: both sides' (`Ladder.can_recall`)."""

    def __init__(self, ladder: Ladder, beginning: HeldBeginning | None = None) -> None:
        """beginning: what the session begins with; None: nothing."""
        self._ladder = ladder
        self._held = (
            RowHistory(ladder.hidden_size) if beginning is None else RowHistory.behind(beginning)
        )

    @property
    def num_tokens(self) -> int:
        """Positions that were taken so far."""
        return self._held.num_tokens

    def check_before(self, position: int) -> int:
        """See RowHistory."""
        return self._held.check_before(position)

    def encode(
        self,
        level: str,
        rows: Rows,
        token_ids: TokenIds,
        *,
        first_position: int,
        plain: bool = False,
    ) -> tuple[bytes, Arrived]:
        """The frame of rows [T, D] that stand from first_position on, and what it leaves.

        plain: refer to no earlier rows. Raises EncodeError as `Ladder.encode` does.
        """
        ladder = self._ladder
        check_rows(rows, token_ids, ladder.hidden_size)
        index = ladder.index_of(level)
        recalled = None if plain else ladder.levels[index].recalled
        if recalled is None or not len(rows):
            frame = ladder.encode(level, rows, token_ids)
            arrived = self.decode(frame, token_ids=token_ids, first_position=first_position)[1]
            return frame, arrived
        encoded, values = recalled.encode(rows, token_ids, self._held, first_position)
        declined = encoded.declined
        kind, body = RECALLED, encoded.payload
        if declined.any():
            safe_body = ladder.safe_body(index, rows[declined], token_ids[declined])
            if declined.all():
                kind, index, body = safe_body
                return pack_frame(kind, index, len(rows), body, ladder.seed), Arrived()
            kind, body = MIXED_RECALLED, mixed_body(body, declined, safe_body)
        frame = pack_frame(kind, index, len(rows), body, self._seed(first_position))
        return frame, Arrived(values, ~declined)

    def decode(
        self, frame: bytes, *, token_ids: TokenIds, first_position: int
    ) -> tuple[Rows, Arrived]:
        """The rows [T, D] of a frame, and what it leaves. FrameError, nothing else, on bad bytes.

        token_ids: [T], the session's own.
        """
        seed = self.seed_of(frame, first_position)
        parsed = self._ladder.parsed(frame, len(token_ids), token_ids, seed)
        kind = parsed.kind
        level = self._ladder.checked(kind, parsed.level_index)
        if kind in (RECALLED, MIXED_RECALLED) or (level.recalled is not None and len(token_ids)):
            rows, arrived = self._decoded(parsed, level, token_ids, first_position)
        else:
            body = parsed.payload
            rows = self._ladder.rows_of(kind, parsed.level_index, body, token_ids)
            arrived = Arrived()
        return checked_finite(rows), arrived

    def take(self, first_position: int, token_ids: TokenIds, arrived: Arrived) -> None:
        """Hold a frame's rows, in place of whatever stood from first_position on."""
        self._held.extend(first_position, token_ids.tolist(), arrived.values, arrived.taken)

    def beginning(self, num_tokens: int) -> HeldBeginning:
        """What it holds of the first positions, for a session that begins with them."""
        return self._held.beginning(num_tokens)

    def seed_of(self, frame: bytes, first_position: int) -> int:
        """What a frame's check begins with. FrameError where it refers to rows that are to come."""
        if peek_level(frame)[0] not in (RECALLED, MIXED_RECALLED):
            return self._ladder.seed
        if first_position > self._held.num_tokens:
            raise FrameError("frame refers to rows that have not come")
        return self._seed(first_position)

    def _seed(self, first_position: int) -> int:
        """What the check of a frame begins with: all that it may refer to, and where it stands."""
        place = first_position.to_bytes(8, "little")
        before = self._held.check_before(first_position).to_bytes(4, "little")
        return zlib.crc32(place + before, self._ladder.seed)

    def _decoded(
        self, parsed: ParsedFrame, level: Level, token_ids: TokenIds, first_position: int
    ) -> tuple[Rows, Arrived]:
        """A frame of a level that has a coder for sessions."""
        num_rows = len(token_ids)
        mixed = Mixed(np.zeros(num_rows, dtype=np.bool_), parsed.payload, 0, 0, b"")
        if parsed.kind in (MIXED, MIXED_RECALLED):
            mixed = split_mixed(parsed.payload, num_rows)
        taken = ~mixed.declined
        recalled, codec = level.recalled, level.codec
        if recalled is None or not isinstance(codec, CalibratedCodec):
            raise FrameError(f"level {level.name} predicts no rows from earlier ones")
        if parsed.kind in (RECALLED, MIXED_RECALLED):
            found, values = recalled.decode(
                mixed.payload, token_ids, self._held, first_position, taken
            )
        else:
            components, side = codec.decoded_components(mixed.payload, int(taken.sum()))
            values = np.zeros((num_rows, self._ladder.hidden_size), dtype=np.int16)
            values[taken] = recalled.held(components)
            found = codec.restored(components, side, token_ids[taken])
        if taken.all():
            return found, Arrived(values, taken)
        rows = np.empty((num_rows, self._ladder.hidden_size), dtype=np.float32)
        rows[taken] = found
        rows[~taken] = self._ladder.rows_of(
            mixed.kind, mixed.below, mixed.rest, token_ids[~taken], depth=1
        )
        return rows, Arrived(values, taken)
