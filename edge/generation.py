"""One generation from prompt tokens to new tokens: the loop around the session.

Front forward -> encode -> send -> receive -> next, with the prompt cut into chunks that are
computed while earlier ones travel. When the stream breaks, the loop opens a new one, here or
at the next address, replays the session's journal and goes on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from codec.ladder import Ladder
from edge.errors import (
    BusyError,
    ConnectError,
    DeadlineError,
    LostError,
    RefusedError,
    SessionError,
    TransportError,
)
from edge.report import StepTrace
from edge.session import Rows, Session
from edge.transport import Stream, Transport
from protos.messages import Closed, Open, Opened, Result


class Front(Protocol):
    """What a generation needs of the front segment (`edge.front.FrontEngine` is one)."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for what, in seconds, and how to knock again.

    A broken stream is reopened after `first_backoff_s`, then twice that and so on up to
    `max_backoff_s`, each shortened by a random part of up to a half so that many devices do
    not come back at once.
    """

    connect_s: float = 10.0
    step_s: float = 60.0
    recover_s: float = 60.0
    first_backoff_s: float = 0.1
    max_backoff_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time as the loop sees it; tests pass their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class RemoteGeneration:
    """One generation against a cloud. Iterate `tokens()` once; then read what it cost.

    front: with an empty cache. request: what to announce; its hidden_size and tables must be
    the ladder's. transports: addresses to try, the first one first.
    """

    def __init__(
        self,
        *,
        front: Front,
        ladder: Ladder,
        level: str,
        request: Open,
        transports: Sequence[Transport],
        chunk_tokens: int,
        patience: Patience,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.reconnects = 0
        self._front = front
        self._ladder = ladder
        self._level = level
        self._request = request
        self._transports = transports
        self._chunk_tokens = chunk_tokens
        self._patience = patience
        self._clock = clock
        self._rng = rng
        self._next_transport = 0
        self._pending: dict[int, _PendingStep] = {}

    def tokens(
        self, prompt_ids: Sequence[int], on_step: Callable[[StepTrace], None]
    ) -> Generator[NewToken, None, None]:
        """Yield new tokens until the caller stops iterating; `on_step` gets every answered frame.

        Closing the iterator closes the stream, and the cloud frees its cache. Raises a
        TransportError when no server could be had within the time that `Patience` grants.
        """
        session = Session(prompt_ids, chunk_tokens=self._chunk_tokens)
        stream = self._connect(session, self._patience.connect_s)
        try:
            while True:
                try:
                    self._send_all(session, stream)
                    result = self._receive(stream)
                    new_ids = session.received(result.message)
                except (LostError, DeadlineError, ConnectError, BusyError) as error:
                    stream.abort()
                    stream = self._recover(session, error)
                    continue
                except SessionError as error:
                    raise LostError(f"the server broke the protocol: {error}") from error
                if (step := self._step_trace(result, len(new_ids))) is not None:
                    on_step(step)
                logprobs = result.message.logprobs or (0.0,) * len(new_ids)
                for token_id, logprob in zip(new_ids, logprobs, strict=True):
                    yield NewToken(token_id, logprob, result.at_s)
        finally:
            session.finish()
            stream.close()

    def _send_all(self, session: Session, stream: Stream) -> None:
        """Compute, encode and send until the session needs an answer to go on."""
        while (rows := session.next_rows()) is not None:
            started_s = self._clock.now()
            hidden = compute_rows(self._front, rows)
            computed_s = self._clock.now()
            token_ids = np.asarray(rows.token_ids, dtype=np.int64)
            payload = self._ladder.encode(self._level, hidden, token_ids)
            frame = session.sent(rows, payload)
            sent_s = self._clock.now()
            uplink_bytes = stream.send(frame)
            self._pending[frame.sequence] = _PendingStep(
                rows=rows,
                is_prefill=rows.first_position < session.num_prompt_tokens,
                front_s=computed_s - started_s,
                encode_s=sent_s - computed_s,
                sent_s=sent_s,
                level=self._ladder.level_of(payload),
                hidden_bytes=len(payload),
                uplink_bytes=uplink_bytes,
            )

    def _receive(self, stream: Stream) -> _ReceivedResult:
        received = stream.receive(self._patience.step_s)
        if isinstance(received.message, Closed):
            raise LostError(f"the server closed the session: {received.message.detail}")
        if isinstance(received.message, Opened):
            raise LostError("the server opened the session twice")
        return _ReceivedResult(received.message, received.num_bytes, received.at_s)

    def _connect(self, session: Session, timeout_s: float) -> Stream:
        """Open a stream somewhere within `timeout_s`, knocking again while servers are busy."""
        deadline_s = self._clock.now() + timeout_s
        backoff_s = self._patience.first_backoff_s
        while True:
            transport = self._transports[self._next_transport % len(self._transports)]
            try:
                return self._open(session, transport, max(deadline_s - self._clock.now(), 0.05))
            except RefusedError:
                # Another server may be the right one; when the last has refused, so it is.
                if self._next_transport + 1 >= len(self._transports):
                    raise
                wait_s = 0.0
            except BusyError as error:
                wait_s = error.retry_after_s
                self._check_time_left(error, deadline_s, wait_s)
            except (ConnectError, LostError, DeadlineError) as error:
                wait_s = backoff_s * self._rng.uniform(0.5, 1.0)
                backoff_s = min(2 * backoff_s, self._patience.max_backoff_s)
                self._check_time_left(error, deadline_s, wait_s)
            session.lost()
            self._next_transport += 1
            self._clock.sleep(wait_s)

    def _check_time_left(self, error: TransportError, deadline_s: float, wait_s: float) -> None:
        if self._clock.now() + wait_s >= deadline_s:
            raise error

    def _open(self, session: Session, transport: Transport, timeout_s: float) -> Stream:
        session.open()
        share_s = (
            timeout_s / max(len(self._transports), 1) if len(self._transports) > 1 else timeout_s
        )
        stream = transport.open(self._request, share_s)
        try:
            received = stream.receive(share_s)
        except TransportError:
            stream.abort()
            raise
        if not isinstance(received.message, Opened):
            stream.abort()
            raise RefusedError(f"{transport.address} did not open the session")
        session.chunk_tokens = min(session.chunk_tokens, received.message.max_frame_tokens)
        session.opened()
        return stream

    def _recover(self, session: Session, error: TransportError) -> Stream:
        """A new stream with the journal replayed into it, or the error that broke the old one."""
        session.lost()
        try:
            stream = self._connect(session, self._patience.recover_s)
        except TransportError as unreachable:
            raise LostError(
                f"{error}; no way back within {self._patience.recover_s:g} s: {unreachable}"
            ) from error
        self.reconnects += 1
        for frame in session.replay():
            stream.send(frame)
        return stream

    def _step_trace(self, result: _ReceivedResult, num_new_tokens: int) -> StepTrace | None:
        step = self._pending.pop(result.message.sequence, None)
        if step is None:  # an answer given again after a replay: it was traced the first time
            return None
        timings = result.message.timings
        round_trip_s = result.at_s - step.sent_s
        return StepTrace(
            sequence=result.message.sequence,
            phase="prefill" if step.is_prefill else "decode",
            first_position=step.rows.first_position,
            num_rows=len(step.rows.token_ids),
            num_drafts=step.rows.num_drafts,
            num_new_tokens=num_new_tokens,
            level=step.level,
            front_s=step.front_s,
            encode_s=step.encode_s,
            round_trip_s=round_trip_s,
            wire_s=max(round_trip_s - timings.total_s, 0.0),
            cloud_codec_s=timings.codec_s,
            cloud_queue_s=timings.queue_s,
            cloud_compute_s=timings.compute_s,
            cloud_sample_s=timings.sample_s,
            batch_sessions=timings.batch_sessions,
            hidden_bytes=step.hidden_bytes,
            uplink_bytes=step.uplink_bytes,
            downlink_bytes=result.num_bytes,
        )


def compute_rows(front: Front, rows: Rows) -> npt.NDArray[np.float32]:
    """Run the front on `rows`, rolling its cache back first when drafts were refused."""
    if front.num_tokens > rows.first_position:
        front.rollback(rows.first_position)
    return front.forward(np.asarray(rows.token_ids, dtype=np.int64))


class _PendingStep(NamedTuple):
    """What is known of a frame before its answer has come."""

    rows: Rows
    is_prefill: bool
    front_s: float
    encode_s: float
    sent_s: float
    level: str
    hidden_bytes: int
    uplink_bytes: int


class _ReceivedResult(NamedTuple):
    message: Result
    num_bytes: int
    at_s: float
