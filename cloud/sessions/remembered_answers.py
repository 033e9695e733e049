"""Answers by the sequence number of their frames: a frame that comes again is answered again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from cloud.errors import BadFrameError
from protos.messages import Frame, Result

# Answers kept for frames that come again. A client has far fewer frames on their way.
REMEMBERED_RESULTS: Final = 64


class _Answered(NamedTuple):
    frame_hash: int
    result: Result


class RememberedAnswers:
    """The last answers of one session."""

    def __init__(self) -> None:
        self._answered: OrderedDict[int, _Answered] = OrderedDict()

    def keep(self, frame: Frame, result: Result) -> None:
        """This frame was answered so."""
        self._answered[frame.sequence] = _Answered(hash(frame), result)
        if len(self._answered) > REMEMBERED_RESULTS:
            self._answered.popitem(last=False)

    def again(self, frame: Frame, *, num_begun: int) -> Result:
        """The answer to a frame that has come before; the first `num_begun` came elsewhere.

        Raises BadFrameError for one answered too long ago, and for another frame of its number.
        """
        if frame.sequence < num_begun and not frame.want_token:
            # Its edge lost a stream before it had the answer to this part of the prompt.
            num_tokens = frame.first_position + len(frame.token_ids)
            return Result(sequence=frame.sequence, token_ids=(), num_tokens=num_tokens)
        answered = self._answered.get(frame.sequence)
        if answered is None:
            raise BadFrameError(f"frame {frame.sequence} was answered too long ago to repeat it")
        if answered.frame_hash != hash(frame):
            raise BadFrameError(f"frame {frame.sequence} came again with other content")
        return answered.result
