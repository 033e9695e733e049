"""How far a generation's prompt has been sent, and what its chunks took."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from optimizer.policy.prefill_chunks import StageTimes, next_chunk
from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.frames import SimulatedFrameSender
from optimizer.simulate.move_ways import KvFrameCost
from optimizer.simulate.sessions import FrameInFlight, SimulatedSession
from optimizer.simulate.times import FrontTimes
from protos.limits import MAX_FRAME_TOKENS


class PrefillProgress:
    """`position`: prompt tokens sent. `front_s`, `encode_s`: seconds of all chunks so far.
    `answered`: the chunks whose answers have come. `id_bytes`: of all frames of ids, with the keys
    and values beside them. `free_s`: when the device has sent its last chunk and filled its cache.

    front: computes the chunks. num_tokens: of the prompt; where the split has moved (is_move), all
    tokens so far. num_ids: first tokens that go as ids, which the device computes too, for its own
    cache. num_cached: first tokens that it has there already, of those that go as ids. kv_frames:
    frames with keys and values to begin with, where the server goes on from an older session.
    """

    __slots__ = (
        "_context",
        "_device",
        "_front",
        "_is_move",
        "_kv",
        "_kv_ready_s",
        "_num_cached",
        "_num_tokens",
        "answered",
        "encode_s",
        "free_s",
        "front_s",
        "id_bytes",
        "num_ids",
        "position",
    )

    def __init__(
        self,
        context: SimulationContext,
        device: Device,
        front: FrontTimes,
        *,
        num_tokens: int,
        num_ids: int,
        num_cached: int,
        is_move: bool,
        at_s: float,
        kv_frames: Sequence[KvFrameCost] = (),
    ) -> None:
        self.position = self.id_bytes = 0
        self.front_s = self.encode_s = 0.0
        self.answered: list[StageTimes] = []
        self.num_ids = num_ids
        self.free_s = at_s
        self._context = context
        self._device = device
        self._front = front
        self._num_tokens = num_tokens
        self._num_cached = num_cached
        self._is_move = is_move
        self._kv = deque(kv_frames)
        self._kv_ready_s: deque[float] = deque()

    @property
    def is_sent(self) -> bool:
        """Whether the whole prompt has been sent."""
        return self.position == self._num_tokens

    @property
    def has_kv(self) -> bool:
        """Whether the next frame brings keys and values."""
        return bool(self._kv)

    def encode_kv(self, at_s: float) -> None:
        """Encode them from `at_s` on, one frame after the other."""
        for frame in self._kv:
            at_s += frame.encode_s
            self._kv_ready_s.append(at_s)
            self._device.front.busy_s += frame.encode_s

    def forget_kv(self) -> None:
        """The server has no older session to go on from: every token of a move goes as an id."""
        self._kv.clear()
        if self._is_move:
            self.num_ids = self._num_tokens

    def send_next(
        self,
        sender: SimulatedFrameSender,
        session: SimulatedSession,
        at_s: float,
        behind_s: float | None,
    ) -> None:
        """Send the next frame of the prompt, begun at `at_s`. behind_s: as in `send_chunk`."""
        position = self.position
        if self._kv:
            rows = self._send_kv(sender, session, at_s)
        elif position < self.num_ids:
            rows = min(self.num_ids - position, MAX_FRAME_TOKENS)
            is_last = position + rows == self._num_tokens
            sender.send_ids(
                session,
                at_s,
                position=position,
                rows=rows,
                is_last=is_last,
                behind_s=behind_s,
            )
            self.id_bytes += sender.num_bytes
            if not self._is_move:
                self._context.record.prompt_ids += rows
                self._context.record.id_bytes += sender.num_bytes
            self.free_s = at_s
            if is_last and behind_s is None:
                self.fill(at_s)
        else:
            if self._num_cached < self.num_ids:
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
        self.position += rows
        self.front_s += sender.front_s
        self.encode_s += sender.encode_s

    def _send_kv(self, sender: SimulatedFrameSender, session: SimulatedSession, at_s: float) -> int:
        """Send the next frame with keys and values, once it is encoded; returns its tokens."""
        frame = self._kv.popleft()
        self.free_s = max(at_s, self._kv_ready_s.popleft())
        sender.send_ids(
            session,
            self.free_s,
            position=self.position,
            rows=frame.num_rows,
            is_last=False,
            kv=frame,
            kv_left=sum(later.num_rows for later in self._kv),
        )
        self.id_bytes += sender.num_bytes
        return frame.num_rows

    def fill(self, at_s: float) -> float:
        """Compute from `at_s` on what went as ids; returns the seconds that it takes.

        Where a whole prompt goes as ids behind the Open, the device does so once the session is
        open.
        """
        chunk, seconds = self._context.plan.prefill_chunk, 0.0
        for position in range(self._num_cached, self.num_ids, chunk):
            rows = min(chunk, self.num_ids - position)
            seconds += self._front.seconds(rows, position)
        self._device.front.busy_s += seconds
        if self._num_cached < self.num_ids:
            self.free_s = max(at_s, self.free_s) + seconds
        self._num_cached = self.num_ids
        return seconds

    def acknowledged(self, frame: FrameInFlight) -> None:
        """A chunk's answer has come. While chunks queue on the link its share is unknown."""
        if frame.entry != 0:
            self.answered.append(StageTimes(frame.num_rows, frame.edge_s, 0.0, frame.cloud_s))

    def _rows(self) -> int:
        """Rows of the next chunk."""
        num_left, planned = self._num_tokens - self.position, self._context.plan.prefill_chunk
        if self._context.scenario.adaptive_chunks:
            return next_chunk(num_left, planned, self.answered)
        return min(planned, num_left)
