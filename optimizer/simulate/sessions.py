"""What a simulated server holds for a client: the session, and the frames that come in for it."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class SessionOwner(Protocol):
    """Whoever opened a session. It is told the answers, and the loss of the server."""

    def answered(self, frame: FrameInFlight, at_s: float) -> None: ...
    def lost(self, session: SimulatedSession, at_s: float) -> None: ...


class SessionHost(Protocol):
    """The server of a session, as far as frames and clients call it."""

    def receive(self, frame: FrameInFlight) -> None: ...
    def leave(self, session: SimulatedSession) -> None: ...


class SimulatedSession:
    """One admitted session: its KV blocks, and its frames in order.

    `current`: the frame in the server's queue. `frames`: those behind it. `continues`: whether it
    goes on from an older session of its device. `older`: that one, until it has got all keys and
    values from it.
    """

    __slots__ = (
        "blocks",
        "closed",
        "continues",
        "current",
        "frames",
        "older",
        "owner",
        "server",
    )

    def __init__(self, server: SessionHost, owner: SessionOwner, blocks: int) -> None:
        self.server = server
        self.owner = owner
        self.blocks = blocks
        self.frames: deque[FrameInFlight] = deque()
        self.current: FrameInFlight | None = None
        self.closed = False
        self.continues = False
        self.older: SimulatedSession | None = None


class FrameInFlight:
    """One message of rows, from the device through the server.

    `left`: rows that have not run. `num_logits`: rows whose logits are computed. `position`: tokens
    cached before its first row. `edge_s`, `decode_s`, `cloud_s`: seconds on the device, in the
    server's decoder, and in the server so far. `wanted`: whether its answer has to bring tokens.
    `entry`: the first layer that the server runs on it, 0 for a token frame; None: that of the
    plan's split. `kv_left`: for how many tokens behind its own keys and values are still to come;
    None: it brings none, and the server runs its layers on it. `tokens`: what it will bring, 0
    where it was sent ahead on a wrong guess; None: it was not sent ahead, nor followed. `is_ahead`:
    it did not wait for the token before its rows.
    """

    __slots__ = (
        "arrived_s",
        "cloud_s",
        "decode_s",
        "edge_s",
        "entry",
        "is_ahead",
        "kv_left",
        "left",
        "num_logits",
        "num_rows",
        "position",
        "sent_s",
        "session",
        "tokens",
        "wanted",
    )

    def __init__(
        self,
        session: SimulatedSession,
        *,
        num_rows: int,
        num_logits: int,
        position: int,
        decode_s: float,
        sent_s: float,
        edge_s: float,
        wanted: bool,
        entry: int | None = None,
        kv_left: int | None = None,
        tokens: int | None = None,
        is_ahead: bool = False,
    ) -> None:
        self.session = session
        self.num_rows = num_rows
        self.left = num_rows
        self.num_logits = num_logits
        self.position = position
        self.decode_s = decode_s
        self.sent_s = sent_s
        self.edge_s = edge_s
        self.wanted = wanted
        self.entry = entry
        self.kv_left = kv_left
        self.tokens = tokens
        self.is_ahead = is_ahead
        self.arrived_s = 0.0
        self.cloud_s = 0.0

    def arrive(self, _: object) -> None:
        """The last byte is in (an event's callback)."""
        self.session.server.receive(self)
