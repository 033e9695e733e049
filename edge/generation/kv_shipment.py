"""A move that brings keys and values along: from the older session's end to the last frame.

A part of an answer that ends because the split moves towards the cloud leaves its stream open
(`OpenPart`). The next part names its session when it opens, and the server says whether it goes on
from there. Then the edge sends what it has cached of the moved layers (`KvShipment`). The frames
are token frames with keys and values beside the ids, so the journal keeps ids alone: whoever has to
replay it sends ids, and the cloud computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from codec.kv.frame import KeysValues, KvFrames
from edge.generation.row_span import RowSpan
from edge.net.transport import Received, Stream


class CachedKv(Protocol):
    """Cached keys and values of some layers (`edge.device.front_kv.CachedLayers` is one)."""

    @property
    def layers(self) -> range:
        """Of which layers."""
        ...

    @property
    def num_heads(self) -> int:
        """Of keys, and of values."""
        ...

    @property
    def head_dim(self) -> int:
        """Of a head."""
        ...

    def read(self, begin: int, end: int) -> KeysValues:
        """Of the tokens [begin, end): float32 [T, layers, 2, G, d]."""
        ...


class OpenPart:
    """The end of a part whose session the server still holds. `close` ends it, once.

    address: of its server. replica: which of the servers there it is; empty: the only one.
    """

    def __init__(self, session_id: str, stream: Stream, address: str, replica: str = "") -> None:
        self.session_id = session_id
        self.address = address
        self.replica = replica
        self._stream: Stream | None = stream

    def close(self, *, is_over: bool = False) -> None:
        """End the stream. is_over: the server has ended its session already."""
        stream, self._stream = self._stream, None
        if stream is not None and is_over:
            stream.abort()
        elif stream is not None:
            stream.close()


class OpenedSession(Protocol):
    """Whose session a stream has open (`edge.generation.connector.Connector` is one)."""

    @property
    def session_id(self) -> str:
        """Its id."""
        ...

    @property
    def address(self) -> str:
        """Of the server."""
        ...

    @property
    def replica(self) -> str:
        """Which of the servers at that address; empty: the only one."""
        ...


class LeavesOpen:
    """Base of a generation that may leave its session open for the next part of the answer."""

    def __init__(self) -> None:
        self.left_open: OpenPart | None = None
        self._stays_open = False

    def stay_open(self) -> None:
        """Leave the session open when `tokens` is closed next: `left_open` then has it."""
        self._stays_open = True

    def leave_open(self, stream: Stream, session: OpenedSession) -> bool:
        """At the end: leave it open where that was asked for. False: close the stream."""
        if not self._stays_open:
            return False
        self.left_open = OpenPart(session.session_id, stream, session.address, session.replica)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftBehind:
    """What a part leaves to the next one, at a lower split: its session, and what was cached.

    num_tokens: of the answer so far, that both sides have keys and values of.
    """

    part: OpenPart
    kv: CachedKv
    num_tokens: int


class KvShipment:
    """Frames of what was left behind, at a level of `codec.kv.frame`. hidden_size: the model's."""

    def __init__(self, left: LeftBehind, *, level: str, hidden_size: int) -> None:
        kv = left.kv
        self.level = level
        self.num_tokens = left.num_tokens
        self.part = left.part
        self._kv: CachedKv | None = kv
        self._frames = KvFrames(
            hidden_size=hidden_size,
            layers=kv.layers,
            num_heads=kv.num_heads,
            head_dim=kv.head_dim,
        )
        self._encoded: dict[tuple[int, int], bytes] = {}

    @property
    def num_elements(self) -> int:
        """Of one token."""
        return self._frames.num_elements

    @property
    def frame_tokens(self) -> int:
        """Most tokens of a frame."""
        return self._frames.max_tokens

    def encode_ahead(self, stream: Stream) -> Received | None:
        """Encode until the stream has an answer, which is returned, or all is encoded."""
        for begin in range(0, self.num_tokens, self.frame_tokens):
            if (received := stream.poll()) is not None:
                return received
            span = (begin, min(begin + self.frame_tokens, self.num_tokens))
            self._encoded[span] = self._encode(*span)
        return None

    def payload(self, rows: RowSpan) -> bytes:
        """Keys and values of these rows' tokens, which are asked for once and in order."""
        span = (rows.first_position, rows.first_position + len(rows.token_ids))
        payload = self._encoded.pop(span, b"") or self._encode(*span)
        if span[1] == self.num_tokens:
            self.release()
        return payload

    def release(self) -> None:
        """Nothing more is sent: let go of what was cached, whose memory the device may need."""
        self._kv = None
        self._encoded.clear()

    def _encode(self, begin: int, end: int) -> bytes:
        return (
            b"" if self._kv is None else self._frames.encode(self.level, self._kv.read(begin, end))
        )
