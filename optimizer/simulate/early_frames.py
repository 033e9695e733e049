"""Frames that leave behind an Open: they wait at the server until it has opened the session."""

from __future__ import annotations

from optimizer.simulate.sessions import FrameInFlight, SessionOwner, SimulatedSession
from protos.limits import DEFAULT_FRAMES_IN_FLIGHT


class EarlyFrames:
    """A SessionHost that stands in for the server until there is a session.

    `session`: what the frames name meanwhile.
    """

    __slots__ = ("_num_sent", "_opened", "_waiting", "session")

    def __init__(self, owner: SessionOwner, blocks: int) -> None:
        self.session = SimulatedSession(self, owner, blocks)
        self._num_sent = 0
        self._waiting: list[FrameInFlight] = []
        self._opened: SimulatedSession | None = None

    def takes_more(self) -> bool:
        """Count one more frame, where there may be one: a session has so many unanswered."""
        self._num_sent += 1
        return self._num_sent <= DEFAULT_FRAMES_IN_FLIGHT

    def admitted(self, session: SimulatedSession) -> None:
        """The server has opened the session: it reads what came behind the Open."""
        self._opened = session
        for frame in self._waiting:
            self.receive(frame)
        self._waiting.clear()

    def receive(self, frame: FrameInFlight) -> None:
        """See SessionHost."""
        if self._opened is None:
            self._waiting.append(frame)
            return
        frame.session = self._opened
        self._opened.server.receive(frame)

    def leave(self, session: SimulatedSession) -> None:
        """See SessionHost: nothing is held here."""
