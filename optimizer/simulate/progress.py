"""What a generation remembers of its own frames: the journal, the prompt so far, their seconds."""

from __future__ import annotations

from typing import NamedTuple

from optimizer.simulate.ports import ChunkSeen
from optimizer.simulate.server import Frame


class Sent(NamedTuple):
    """A frame in the journal."""

    position: int
    num_rows: int
    num_bytes: int
    decode_s: float


class OwnTime:
    """Seconds of the device for the frame that it sent last. `right`: how many of its drafts will
    be, where that was drawn with them."""

    __slots__ = ("encode_s", "front_s", "right")

    def __init__(self) -> None:
        self.front_s = self.encode_s = 0.0
        self.right = 0


class Prefill:
    """How far the prompt is, and what its chunks took."""

    __slots__ = ("answered", "encode_s", "front_s", "position")

    def __init__(self) -> None:
        self.position = 0
        self.front_s = self.encode_s = 0.0
        self.answered: list[ChunkSeen] = []

    def acknowledged(self, frame: Frame) -> None:
        """A chunk's answer has come. The link's share is not known while chunks queue on it."""
        self.answered.append(ChunkSeen(frame.num_rows, frame.edge_s, 0.0, frame.cloud_s))
