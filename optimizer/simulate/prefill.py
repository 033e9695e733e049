"""How far a generation's prompt has been sent, and what its chunks took."""

from __future__ import annotations

from optimizer.policy.prefill_chunks import StageTimes, next_chunk
from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.frames import SimulatedFrameSender
from optimizer.simulate.sessions import FrameInFlight, SimulatedSession
from protos.limits import MAX_FRAME_TOKENS


class PrefillProgress:
    """`position`: prompt tokens sent. `front_s`, `encode_s`: seconds of all chunks so far.
    `answered`: the chunks whose answers have come. `num_ids`: first tokens that go as ids, which
    the device computes too, for its own cache. `free_s`: when the device has sent its last chunk
    and filled its cache."""

    __slots__ = (
        "_context",
        "_device",
        "_num_frames",
        "_num_tokens",
        "_unfilled",
        "answered",
        "encode_s",
        "free_s",
        "front_s",
        "num_ids",
        "position",
    )

    def __init__(
        self, context: SimulationContext, device: Device, *, num_tokens: int, at_s: float
    ) -> None:
        self.position = 0
        self.front_s = self.encode_s = 0.0
        self.answered: list[StageTimes] = []
        self.num_ids = device.num_ids(num_tokens)
        self.free_s = at_s
        self._context = context
        self._device = device
        self._num_tokens = num_tokens
        self._num_frames = 0
        self._unfilled = self.num_ids  # first tokens that the device has yet to compute

    @property
    def is_sent(self) -> bool:
        """Whether the whole prompt has been sent."""
        return self.position == self._num_tokens

    def send_next(
        self,
        sender: SimulatedFrameSender,
        session: SimulatedSession,
        at_s: float,
        behind_s: float | None,
    ) -> None:
        """Send the next frame of the prompt, begun at `at_s`. behind_s: as in `send_chunk`."""
        position = self.position
        if position < self.num_ids:
            rows = min(self.num_ids - position, MAX_FRAME_TOKENS)
            is_last = position + rows == self._num_tokens
            sender.send_ids(
                session,
                at_s,
                position=position,
                rows=rows,
                number=self._num_frames,
                is_last=is_last,
                behind_s=behind_s,
            )
            self.free_s = at_s
            if is_last and behind_s is None:
                self.fill(at_s)
        else:
            if self._unfilled:
                self.front_s += self.fill(at_s)
                at_s = self.free_s
            rows = self._rows()
            self.free_s = sender.send_chunk(
                session,
                at_s,
                position=position,
                rows=rows,
                is_last=position + rows == self._num_tokens,
                behind_s=behind_s,
            )
        self._num_frames += 1
        self.position += rows
        self.front_s += sender.front_s
        self.encode_s += sender.encode_s

    def fill(self, at_s: float) -> float:
        """Compute from `at_s` on what went as ids; returns the seconds that it takes.

        Where a whole prompt goes as ids behind the Open, the device does so once the session is
        open.
        """
        chunk, seconds = self._context.plan.prefill_chunk, 0.0
        for position in range(0, self._unfilled, chunk):
            rows = min(chunk, self._unfilled - position)
            seconds += self._device.front.seconds(rows, position)
        self._device.front.busy_s += seconds
        if self._unfilled:
            self.free_s = max(at_s, self.free_s) + seconds
        self._unfilled = 0
        return seconds

    def acknowledged(self, frame: FrameInFlight) -> None:
        """A chunk's answer has come. While chunks queue on the link its share is unknown."""
        if not frame.as_ids:
            self.answered.append(StageTimes(frame.num_rows, frame.edge_s, 0.0, frame.cloud_s))

    def _rows(self) -> int:
        """Rows of the next chunk."""
        num_left, planned = self._num_tokens - self.position, self._context.plan.prefill_chunk
        if self._context.scenario.adaptive_chunks:
            return next_chunk(num_left, planned, self.answered)
        return min(planned, num_left)
