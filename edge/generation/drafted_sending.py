"""Sending frames with guesses: the decode step, and the frames ahead of its answer."""

from __future__ import annotations

from edge.generation.draft_frames import DraftedFrame, DraftedFrames, Heard
from edge.generation.frame_sender import FrameSender
from edge.generation.level_selector import LevelSelector
from edge.generation.phases import Phase
from edge.generation.session import EdgeSession
from edge.net.transport import Stream


class DraftedSending:
    """One generation's."""

    def __init__(
        self, drafted: DraftedFrames, sender: FrameSender, selector: LevelSelector
    ) -> None:
        self._drafted = drafted
        self._sender = sender
        self._selector = selector

    def step(self, session: EdgeSession, stream: Stream, heard: Heard) -> None:
        """One step with drafts, and the frames ahead of its answer that are worth it."""
        self._drafted.drafting.limit_in_flight(session.max_frames_in_flight)
        started_s = self._sender.now_s()
        frame = self._drafted.step(session, self._selector.max_drafts, heard.has_answer)
        if frame is not None:
            self._send(session, stream, frame, started_s)
            self._ahead(session, stream, heard)

    def go_on(self, session: EdgeSession, stream: Stream, heard: Heard) -> None:
        """More frames ahead, where the cloud has guessed something since the last one, or the first
        of those under way was right."""
        if session.phase is Phase.WAITING and self._drafted.drafting.may_go_on:
            self._ahead(session, stream, heard)

    def _ahead(self, session: EdgeSession, stream: Stream, heard: Heard) -> None:
        while self._drafted.drafting.sends_ahead():
            started_s = self._sender.now_s()
            if (frame := self._drafted.ahead(session, heard)) is None:
                return
            self._send(session, stream, frame, started_s)

    def _send(
        self, session: EdgeSession, stream: Stream, frame: DraftedFrame, started_s: float
    ) -> None:
        self._drafted.drafting.sent(len(session.journal), frame.run)
        self._sender.send_drafted(session, stream, frame, started_s)
