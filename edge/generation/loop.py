"""One generation from prompt tokens to new tokens: the loop around the session.

Front forward -> encode -> send -> receive -> next, with the prompt cut into chunks that are
computed while earlier ones travel. When the stream breaks, the loop opens a new one, here or
at the next address, replays the session's journal and goes on.

What to send next is the session's business, how to encode it the selector's, where to the
connector's; this loop only carries things from one to the other and keeps the times.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from codec.ladder import Ladder
from edge.errors import (
    BusyError,
    ConnectError,
    DeadlineError,
    LostError,
    PeerError,
    SessionError,
    TooSlowError,
    TransportError,
)
from edge.generation.connector import Connector
from edge.generation.draft_frames import DraftedFrames
from edge.generation.drafting import Drafting
from edge.generation.level_selector import LevelSelector
from edge.generation.pending import Answer, PendingStep, stage_times
from edge.generation.prefix_memory import PrefixMemory
from edge.generation.report import StepTrace
from edge.generation.session import Phase, Rows, Session
from edge.net.transport import Received, Stream
from optimizer.policy.prefill_chunks import StageTimes, next_chunk
from optimizer.policy.retry import Clock, RetryPolicy
from protos.messages import Closed, Opened, Result


class Front(Protocol):
    """What a generation needs of the front segment (`edge.device.front.FrontEngine` is one)."""

    @property
    def num_tokens(self) -> int:
        """Tokens in the KV cache."""
        ...

    def forward(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Append [T] tokens; returns their rows [T, D] (or logits [T, V] of a whole model)."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Forget every token from `num_tokens` on."""
        ...


class NewToken(NamedTuple):
    """One token of the answer. `at_s` on the clock that the generation was given."""

    token_id: int
    logprob: float
    at_s: float


class ComputedRows(NamedTuple):
    """Rows that wait to be sent, their hidden states [T, D], and what computing them took."""

    rows: Rows
    hidden: npt.NDArray[np.float32]
    front_s: float


OnStep = Callable[[StepTrace], None]


class TokenSource(Protocol):
    """What brings the tokens of one answer: a generation against a cloud, or without one."""

    @property
    def reconnects(self) -> int: ...

    def tokens(
        self, prompt_ids: Sequence[int], on_step: OnStep
    ) -> Generator[NewToken, None, None]: ...

    def cancel(self) -> None:
        """End `tokens` soon, from another thread, whatever it is waiting for."""
        ...


class RemoteGeneration:
    """One generation against a cloud. Iterate `tokens()` once; then read what it cost.

    front: with an empty cache. connector: where streams come from. selector: which level to encode
    at. chunk_tokens: most prompt tokens a frame, or always so many. drafting: guesses that go
    along with decode steps; None: plain decoding.
    """

    def __init__(
        self,
        *,
        front: Front,
        ladder: Ladder,
        selector: LevelSelector,
        connector: Connector,
        chunk_tokens: int,
        adaptive_chunks: bool = True,
        patience: RetryPolicy,
        clock: Clock,
        drafting: Drafting | None = None,
        prefixes: PrefixMemory | None = None,
    ) -> None:
        self.reconnects = 0
        self._prefixes = prefixes or PrefixMemory(max_bytes=0)
        self._front = front
        self._ladder = ladder
        self._selector = selector
        self._connector = connector
        self._chunk_tokens = chunk_tokens
        self._adaptive_chunks = adaptive_chunks
        self._patience = patience
        self._clock = clock
        self._pending: dict[int, PendingStep] = {}
        self._chunks: list[StageTimes] = []  # the prompt's, as they were answered
        self._lost_at_s: float | None = None  # since when nothing new was answered
        self._last_at_s = 0.0  # when the last tokens had come
        self._stream: Stream | None = None
        self._cancelled = False
        self._drafting = drafting
        self._drafted = None
        if drafting is not None:
            compute = partial(compute_rows, front)
            self._drafted = DraftedFrames(drafting, compute, max_tokens=connector.max_tokens)
        self._computed: ComputedRows | None = None  # the first chunk, until it is sent
        self._early: Received | None = None  # an answer that came while guesses were made

    def tokens(self, prompt_ids: Sequence[int], on_step: OnStep) -> Generator[NewToken, None, None]:
        """Yield new tokens until the caller stops iterating; `on_step` gets every answered frame.

        Closing the iterator closes the stream, and the cloud frees its cache. Raises a
        TransportError when no server answered within the time that `RetryPolicy` grants, PeerError
        when one broke the protocol, and TooSlowError when the selector gives up on the deadline.
        """
        level = self._selector.level
        known = self._prefixes.matching(level, prompt_ids)
        session = Session(prompt_ids, chunk_tokens=self._chunk_tokens, known=known)
        try:
            # A prompt that the cloud may know the beginning of has no first chunk to compute yet.
            meanwhile = None if known else partial(self._compute_first, session)
            self._stream = self._connector.connect(
                session, self._patience.connect_s, meanwhile=meanwhile
            )
            self._catch_up(session)
            while not self._cancelled:
                yield from self._round(session, self._stream, on_step)
                if (reason := self._selector.gave_up) is not None:
                    raise TooSlowError(reason)
        except TransportError:
            if not self._cancelled:  # else it is what cancelling has broken
                raise
        finally:
            session.finish()
            self._prefixes.remember(level, session.journal)
            if self._stream is not None:
                self._stream.close()

    def _compute_first(self, session: Session) -> None:
        """Compute the first chunk while the session opens; does its work once."""
        if self._computed is None:
            self._size_chunk(session)
            rows = session.next_chunk()
            started_s = self._clock.now()
            hidden = self._prompt_rows(rows)
            self._computed = ComputedRows(rows, hidden, self._clock.now() - started_s)

    def _catch_up(self, session: Session) -> None:
        """Bring the front's cache to where the frames end that the cloud holds already."""
        for frame in session.journal:
            self._prompt_rows(Rows(frame.first_position, frame.token_ids, 0, False))

    def _prompt_rows(self, rows: Rows) -> npt.NDArray[np.float32]:
        if self._drafted is not None:
            return self._drafted.prompt(rows)
        return compute_rows(self._front, rows)

    def _size_chunk(self, session: Session) -> None:
        if self._adaptive_chunks:
            session.chunk_tokens = next_chunk(
                session.num_prompt_left, self._chunk_tokens, self._chunks
            )

    def cancel(self) -> None:
        """See TokenSource."""
        self._cancelled = True
        self._connector.cancel()
        if self._stream is not None:
            self._stream.hang_up()  # with a goodbye, so that the cloud keeps nothing for a return

    def _round(self, session: Session, stream: Stream, on_step: OnStep) -> list[NewToken]:
        """Send what can be sent and take one answer; a lost stream is replaced by a new one."""
        try:
            self._send_all(session, stream, on_step)
            return self._take(session, self._receive(session, stream), on_step)
        except (LostError, DeadlineError, ConnectError, BusyError) as error:
            if self._cancelled:
                raise
            stream.abort()
            self._stream = self._recover(session, error)
            return []

    def _send_all(self, session: Session, stream: Stream, on_step: OnStep) -> None:
        """Compute, encode and send until the session needs an answer to go on.

        Between two chunks of the prompt it takes the answers that have come meanwhile: they say
        how large the next chunk should be.
        """
        while True:
            if session.phase is Phase.PREFILLING:
                while (received := stream.poll()) is not None:
                    self._take(session, received, on_step)
                self._size_chunk(session)
            if session.phase is Phase.READY and self._drafted is not None:
                self._send_drafted(session, stream, self._drafted, on_step)
                return
            if (rows := session.next_rows()) is None:
                return
            self._send(session, stream, rows)

    def _send(self, session: Session, stream: Stream, rows: Rows) -> None:
        """One frame of known tokens."""
        started_s = self._clock.now()
        computed, self._computed = self._computed, None
        if computed is not None and computed.rows == rows:
            front_s = computed.front_s
            self._dispatch(session, stream, rows, computed.hidden, started_s, front_s=front_s)
        else:
            self._dispatch(session, stream, rows, self._prompt_rows(rows), started_s)

    def _send_drafted(
        self, session: Session, stream: Stream, drafted: DraftedFrames, on_step: OnStep
    ) -> None:
        """One step with drafts, and the frames ahead of its answer that are worth it."""
        drafted.drafting.limit_in_flight(session.max_frames_in_flight)
        started_s = self._clock.now()
        frame = drafted.step(session, self._selector.max_drafts)
        while frame is not None:
            rows, hidden, chain = frame
            drafted.drafting.sent(len(session.journal), chain)
            self._dispatch(session, stream, rows, hidden, started_s, chain.expected)
            if not drafted.drafting.flies():
                return
            started_s = self._clock.now()
            frame = drafted.ahead(session, partial(self._has_answer, session, stream, on_step))

    def _has_answer(self, session: Session, stream: Stream, on_step: OnStep) -> bool:
        """Whether an answer is there; it is kept for `_receive`. That void frames fell is no news,
        and taken on the way."""
        while self._early is None and (received := stream.poll()) is not None:
            message = received.message
            if isinstance(message, Result) and session.is_void(message.sequence):
                self._take(session, received, on_step)
            else:
                self._early = received
        return self._early is not None

    def _dispatch(
        self,
        session: Session,
        stream: Stream,
        rows: Rows,
        hidden: npt.NDArray[np.float32],
        started_s: float,
        expected_tokens: float = 1.0,
        *,
        front_s: float | None = None,
    ) -> None:
        """Encode, journal, wire. hidden: [T, D], computed since `started_s`, or before, in
        `front_s`."""
        computed_s = self._clock.now()
        token_ids = np.asarray(rows.token_ids, dtype=np.int64)
        payload = self._ladder.encode(self._selector.level, hidden, token_ids)
        is_alone = session.num_undecided == 0
        frame = session.sent(rows, payload)
        sent_s = self._clock.now()
        uplink_bytes = stream.send(frame)
        self._pending[frame.sequence] = PendingStep(
            rows=rows,
            is_prefill=rows.first_position < session.num_prompt_tokens,
            started_s=started_s,
            front_s=computed_s - started_s if front_s is None else front_s,
            encode_s=sent_s - computed_s,
            sent_s=sent_s,
            level=self._ladder.level_of(payload),
            hidden_bytes=len(payload),
            uplink_bytes=uplink_bytes,
            alone=is_alone,
            expected_tokens=expected_tokens,
        )
        self._selector.weigh(hidden, token_ids)  # after sending: the first chunk is on its way

    def _receive(self, session: Session, stream: Stream) -> Received:
        """The next message, waited for as long as patience and deadline allow."""
        if self._early is not None:
            received, self._early = self._early, None
            return received
        stall_s = self._selector.stall_s if session.num_new_tokens else None
        if stall_s is None or stall_s > self._patience.step_s:
            return stream.receive(self._patience.step_s)
        try:
            return stream.receive(stall_s)
        except DeadlineError as error:
            raise TooSlowError(f"{error}, with a deadline between tokens") from error

    def _take(self, session: Session, received: Received, on_step: OnStep) -> list[NewToken]:
        """One message into the session; returns its tokens. PeerError when it makes no sense."""
        result = received.message
        if isinstance(result, Closed):
            raise LostError(f"the server closed the session: {result.detail}")
        if isinstance(result, Opened):
            raise LostError("the server opened the session twice")
        try:
            new_ids = session.received(result)
        except SessionError as error:
            raise PeerError(f"the server broke the protocol: {error}") from error
        self._lost_at_s = None
        self._trace(Answer(result, received.num_bytes, received.at_s), new_ids, on_step)
        logprobs = result.logprobs or (0.0,) * len(new_ids)
        return [
            NewToken(token_id, logprob, received.at_s)
            for token_id, logprob in zip(new_ids, logprobs, strict=True)
        ]

    def _trace(self, answer: Answer, new_ids: tuple[int, ...], on_step: OnStep) -> None:
        """Tell the selector, the drafter, the chunk sizes and the caller what this frame took."""
        pending = self._pending.pop(answer.result.sequence, None)
        if pending is None:  # an answer given again after a replay: it was traced the first time
            return
        step = pending.trace(answer, len(new_ids))
        if pending.is_prefill:
            if pending.alone:
                self._selector.crossed(step.uplink_bytes, step.wire_s)
            self._chunks.append(stage_times(step, self._selector.seconds_per_byte))
        elif new_ids:  # a frame that was sent ahead in vain says nothing of the link
            # A frame that was sent ahead also waited for those before it.
            step_s = answer.at_s - max(pending.started_s, self._last_at_s)
            decision = self._selector.after(step, step_s, alone=pending.alone)
            step = replace(step, decision=decision) if decision else step
        self._last_at_s = answer.at_s if new_ids else self._last_at_s
        if self._drafting is not None and not pending.is_prefill:
            self._drafting.answered(step, new_ids, answer.at_s, alone=pending.alone)
        on_step(step)

    def _recover(self, session: Session, error: TransportError) -> Stream:
        """A new stream with the journal replayed into it, or the error that broke the old one.

        The limit counts from the first loss: a server that takes the session and loses it again,
        with nothing answered in between, does not start it anew.
        """
        session.lost()
        self._early = None  # the replay asks again
        limit_s = self._patience.recover_s
        if (stall_s := self._selector.stall_s) is not None and session.num_new_tokens:
            limit_s = min(limit_s, stall_s)
        is_first = self._lost_at_s is None
        now_s = self._clock.now()
        self._lost_at_s = now_s if self._lost_at_s is None else self._lost_at_s
        left_s = self._lost_at_s + limit_s - now_s
        try:
            if left_s <= 0:
                raise error
            stream = self._connector.connect(session, left_s, wait_first=not is_first)
        except TransportError as unreachable:
            raise LostError(f"{error}; no way back within {limit_s:g} s: {unreachable}") from error
        self.reconnects += 1
        for frame in session.replay():
            stream.send(frame)
        return stream


def compute_rows(front: Front, rows: Rows) -> npt.NDArray[np.float32]:
    """Run the front on `rows`, rolling its cache back first when drafts were refused."""
    if front.num_tokens > rows.first_position:
        front.rollback(rows.first_position)
    return front.forward(np.asarray(rows.token_ids, dtype=np.int64))
