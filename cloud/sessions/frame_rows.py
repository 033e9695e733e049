"""What decodes a session's frames, and what it holds of their rows for later ones to refer to."""

from __future__ import annotations

import numpy as np

from cloud.engine.batch_entry import FloatRows
from cloud.engine.frame_decoding import Decoded, RowDecoder
from cloud.errors import BadFrameError
from cloud.sessions.frame_checks import PlainRows, decoded_rows
from cloud.sessions.row_memory import RowRoom
from codec.errors import FrameError
from codec.ladder import Ladder
from codec.session_coder import Arrived, SessionCoder
from codec.session_rows import HeldBeginning
from protos.messages import Frame


class FrameRows:
    """One session's. coder: holds its rows (`codec.session_coder`); None: none does. room: the
    memory that they may take, given back by `close`."""

    def __init__(
        self, ladder: Ladder, coder: SessionCoder | None = None, room: RowRoom | None = None
    ) -> None:
        self._ladder = ladder
        self._coder = coder
        self._room = room
        self._decode: _SessionDecode | None = None  # the last one that was asked for

    @property
    def are_held(self) -> bool:
        """Whether frames may refer to earlier rows."""
        return self._coder is not None

    def close(self) -> None:
        """Nothing is held any more; doing it again does nothing."""
        if self._room is not None:
            self._room.close()

    def decoder(self, frame: Frame) -> RowDecoder:
        """What decodes the frame, on any thread, once. It changes nothing."""
        if self._coder is None:
            return PlainRows(self._ladder, frame)
        self._decode = _SessionDecode(self._coder, frame)
        return self._decode

    def take(self, frame: Frame, decoded: Decoded | None) -> FloatRows:
        """The rows of the next frame, float32 [T, D]; they are held from now on.

        decoded: what its `decoder` came to, if it was called. Raises BadFrameError, and then
        nothing has changed.
        """
        if self._coder is None:
            return decoded_rows(self._ladder, frame) if decoded is None else decoded.rows()
        decode, self._decode = self._decode, None
        rows = None if decoded is None else decoded.rows()
        if rows is None or decode is None or decode.frame is not frame or decode.arrived is None:
            decode = _SessionDecode(self._coder, frame)
            rows = decode()
        if decode.arrived is not None:
            self._hold(frame, decode.arrived)
        return rows

    def skip(self, frame: Frame) -> None:
        """A frame that brings no rows to refer to."""
        self._hold(frame, Arrived())

    def beginning(self, num_tokens: int) -> HeldBeginning | None:
        """What is held of the first positions, for other sessions."""
        return None if self._coder is None else self._coder.beginning(num_tokens)

    def _hold(self, frame: Frame, arrived: Arrived) -> None:
        if self._coder is not None:
            token_ids = np.asarray(frame.token_ids, dtype=np.int64)
            self._coder.take(frame.first_position, token_ids, arrived)


class _SessionDecode:
    """Decodes a frame that may refer to earlier rows; `arrived` is what it leaves, once it has."""

    def __init__(self, coder: SessionCoder, frame: Frame) -> None:
        self._coder = coder
        self.frame = frame
        self.arrived: Arrived | None = None

    def __call__(self) -> FloatRows:
        frame = self.frame
        token_ids = np.asarray(frame.token_ids, dtype=np.int64)
        try:
            rows, self.arrived = self._coder.decode(
                frame.hidden, token_ids=token_ids, first_position=frame.first_position
            )
        except FrameError as error:
            raise BadFrameError(f"frame {frame.sequence}: {error}") from error
        # A decoder may hand out a read-only view of the frame, which torch does not take.
        return np.require(rows, dtype=np.float32, requirements=["C", "W"])
