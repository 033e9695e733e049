"""From token ids to a frame on the wire: compute, encode, journal, send, and note the times."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge.generation.draft_frames import DraftedFrame, DraftedFrames
from edge.generation.kv_shipment import KvShipment
from edge.generation.level_selector import LevelSelector
from edge.generation.pending import PendingStep
from edge.generation.room import RoomMaker
from edge.generation.row_span import RowSpan
from edge.generation.session import EdgeSession
from edge.generation.step_observer import StepObserver
from edge.generation.token_source import FrontSegment, compute_rows
from edge.net.transport import Stream
from edge.step_trace import IDS_LEVEL, KV_LEVELS
from optimizer.policy.retry import Clock
from protos.messages import Result


class ComputedRows(NamedTuple):
    """Rows to be sent, their hidden states [T, D], and the seconds they took."""

    rows: RowSpan
    hidden: npt.NDArray[np.float32]
    front_s: float


class FrameSender:
    """Sends the frames of one generation.

    observer: is told of every frame sent. drafted: makes frames with guesses, and sees the
    prompt's rows; None: plain decoding. shipment: keys and values that go beside ids. room: makes
    room in the caches; None: all tokens stay.
    """

    def __init__(
        self,
        *,
        front: FrontSegment,
        selector: LevelSelector,
        observer: StepObserver,
        clock: Clock,
        drafted: DraftedFrames | None = None,
        shipment: KvShipment | None = None,
        room: RoomMaker | None = None,
    ) -> None:
        self._room = room
        self._front = front
        self._selector = selector
        self._observer = observer
        self._clock = clock
        self._drafted = drafted
        self._shipment = shipment

    def now_s(self) -> float:
        """Seconds on the generation's clock."""
        return self._clock.now()

    def make_room(self, session: EdgeSession) -> bool:
        """Let tokens leave where the next row has no place. False: answers have to come first."""
        return self._room is None or self._room.make(session, self._drafted)

    def hear(self, session: EdgeSession, result: Result) -> None:
        """A new answer: it may say how surprising tokens were."""
        if self._room is not None:
            self._room.hear(session.journal.frames[result.sequence], result)

    def compute(self, rows: RowSpan) -> npt.NDArray[np.float32]:
        """The hidden states [T, D] of known tokens."""
        if self._drafted is not None:
            return self._drafted.prompt(rows)
        return compute_rows(self._front, rows)

    def catch_up(self, rows: RowSpan) -> None:
        """Bring the front's cache to the end of a frame that the cloud may hold already."""
        if self._front.num_tokens < rows.first_position + len(rows.token_ids):
            self.compute(rows)
        elif self._drafted is not None:
            self._drafted.known(rows)

    def fill(self, rows: RowSpan) -> None:
        """Compute rows of the prompt that the cloud got as ids: the front's cache needs them."""
        hidden = self.compute(rows)
        self._selector.weigh(hidden, np.asarray(rows.token_ids, dtype=np.int64))

    def send(
        self, session: EdgeSession, stream: Stream, rows: RowSpan, *, early: bool = False
    ) -> None:
        """Send one frame of known tokens. early: the session is not open yet."""
        started_s = self._clock.now()
        if rows.as_ids:
            hidden = np.empty((len(rows.token_ids), 0), dtype=np.float32)
            computed_s = started_s
        else:
            hidden = self.compute(rows)
            computed_s = self._clock.now()
        computed = ComputedRows(rows, hidden, computed_s - started_s)
        self._dispatch(session, stream, computed, started_s, computed_s, early=early)

    def send_drafted(
        self, session: EdgeSession, stream: Stream, frame: DraftedFrame, started_s: float
    ) -> None:
        """Send a frame with guesses, computed since `started_s`."""
        computed_s = self._clock.now()
        computed = ComputedRows(frame.rows, frame.hidden, computed_s - started_s)
        self._dispatch(session, stream, computed, started_s, computed_s, frame.run.expected)

    def _dispatch(
        self,
        session: EdgeSession,
        stream: Stream,
        computed: ComputedRows,
        started_s: float,
        computed_s: float,
        expected_tokens: float = 1.0,
        early: bool = False,
    ) -> None:
        """Encode, journal, wire."""
        rows, hidden, front_s = computed
        token_ids = np.asarray(rows.token_ids, dtype=np.int64)
        payload = b""
        if not rows.as_ids:
            payload = self._selector.encode(hidden, token_ids, session, rows.first_position)
        # Behind an Open that is on its way, a round trip holds more than the link and the server.
        is_alone = not early and not session.journal.undecided()
        frame = session.sent(rows, payload)
        level = IDS_LEVEL if rows.as_ids else self._selector.level_of(payload)
        if rows.with_kv and self._shipment is not None:  # the journal keeps the ids alone
            level = KV_LEVELS + self._shipment.level
            frame = replace(frame, kv=self._shipment.payload(rows))
        sent_s = self._clock.now()
        uplink_bytes = stream.send(frame)
        pending = PendingStep(
            rows=rows,
            is_prefill=rows.first_position < session.num_prompt_tokens,
            started_s=started_s,
            front_s=front_s,
            encode_s=sent_s - computed_s,
            sent_s=sent_s,
            level=level,
            hidden_bytes=len(payload),
            uplink_bytes=uplink_bytes,
            alone=is_alone,
            expected_tokens=expected_tokens,
        )
        self._observer.sent(frame.sequence, pending)
        if not rows.as_ids:
            self._selector.weigh(hidden, token_ids)  # after sending: the first chunk is on its way
