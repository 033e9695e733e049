"""How far a generation's prompt has been sent, and what its chunks took."""

from __future__ import annotations

from optimizer.policy.prefill_chunks import StageTimes
from optimizer.simulate.sessions import FrameInFlight


class PrefillProgress:
    """`position`: prompt tokens sent. `front_s`, `encode_s`: seconds of all chunks so far.
    `answered`: the chunks whose answers have come."""

    __slots__ = ("answered", "encode_s", "front_s", "position")

    def __init__(self) -> None:
        self.position = 0
        self.front_s = self.encode_s = 0.0
        self.answered: list[StageTimes] = []

    def sent(self, rows: int, front_s: float, encode_s: float) -> None:
        """A chunk of `rows` tokens was sent."""
        self.position += rows
        self.front_s += front_s
        self.encode_s += encode_s

    def acknowledged(self, frame: FrameInFlight) -> None:
        """A chunk's answer has come. While chunks queue on the link its share is unknown."""
        self.answered.append(StageTimes(frame.num_rows, frame.edge_s, 0.0, frame.cloud_s))
