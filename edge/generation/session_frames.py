"""Encodes one generation's frames, so that rows are predicted from the session's earlier ones.

Device and server hold the rows as they arrived (`codec.session_coder`). What counts as earlier is
what the server will have run before the frame: all frames of the journal but the void ones and the
alternatives to a guess. A journal that is replayed makes another server hold the same.

The first frames go before the server has said that it holds rows. They refer to each other all the
same, else what arrives would depend on the link's speed. A server that holds none makes the device
take them back, and is not asked again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codec.ladder import Ladder
from codec.session_coder import Arrived, SessionCoder
from edge.generation.journal import Journal
from protos.messages import Frame


@dataclass(slots=True)
class RecallGrant:
    """Whether servers of a split hold rows, as far as is known. Generations share it."""

    is_refused: bool = False


@dataclass(frozen=True, slots=True)
class _Taken:
    """A frame of the journal that the coder holds."""

    hidden: bytes
    first_position: int
    end: int

    @classmethod
    def of(cls, frame: Frame) -> _Taken:
        end = frame.first_position + len(frame.token_ids)
        return cls(frame.hidden, frame.first_position, end)

    def is_of(self, frame: Frame) -> bool:
        """Whether it is this frame. Its bytes are the same object in every copy of it."""
        return self.hidden is frame.hidden and self == _Taken.of(frame)


class SessionFrames:
    """One generation's."""

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        self._coder = SessionCoder(ladder)
        self._num_settled = 0  # first frames of the journal whose rows stay what they are
        self._taken: list[_Taken] = []  # frames behind these
        self._arrived: dict[int, tuple[bytes, Arrived]] = {}  # of frames not taken, by number

    def encode(
        self,
        level: str,
        rows: npt.NDArray[np.float32],
        token_ids: npt.NDArray[np.int64],
        *,
        first_position: int,
        journal: Journal,
    ) -> bytes:
        """The journal's next frame: rows [T, D] from first_position on."""
        self._follow(journal)
        payload, arrived = self._coder.encode(level, rows, token_ids, first_position=first_position)
        self._arrived[len(journal)] = payload, arrived
        return payload

    def _follow(self, journal: Journal) -> None:
        """Hold the rows of the frames that run before the next one."""
        wanted = journal.running(self._num_settled)
        same = 0
        most = min(len(wanted), len(self._taken))
        while same < most and self._taken[same].is_of(wanted[same][1]):
            same += 1
        if same < len(self._taken):  # a guess was wrong, or frames were taken back
            same = self._take_back(same)
        for index, frame in wanted[same:]:
            self._take(index, frame)
        # What is answered stays, and so do the rows that it left.
        num_open = sum(index >= journal.num_answered for index, _ in wanted)
        del self._taken[: len(self._taken) - num_open]
        self._num_settled = journal.num_answered
        for index in [index for index in self._arrived if index < self._num_settled]:
            del self._arrived[index]

    def _take_back(self, count: int) -> int:
        """Hold no more than the first `count` frames; returns how many of these are held whole.

        A frame that was taken back may have stood in the place of an earlier one's last rows.
        """
        lowest = min(taken.first_position for taken in self._taken[count:])
        while count and self._taken[count - 1].end > lowest:
            count -= 1
        del self._taken[count:]
        return count

    def _take(self, index: int, frame: Frame) -> None:
        token_ids = np.asarray(frame.token_ids, dtype=np.int64)
        payload, arrived = self._arrived.pop(index, (b"", Arrived()))
        if payload is not frame.hidden and frame.hidden:  # of an earlier prompt, or taken again
            _, arrived = self._coder.decode(
                frame.hidden, token_ids=token_ids, first_position=frame.first_position
            )
        self._coder.take(frame.first_position, token_ids, arrived)
        self._taken.append(_Taken.of(frame))
