"""Getting a stream: several addresses in turn, backoff with jitter, all within a time limit."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from edge.errors import (
    BusyError,
    ConnectError,
    DeadlineError,
    LostError,
    RefusedError,
    TransportError,
)
from edge.generation.session import EdgeSession
from edge.net.transport import Stream, Transport
from optimizer.policy.retry import Clock, RetryPolicy
from protos.messages import Open, Opened
from protos.prefix import begin_chain, extend_chain
from protos.wire import MAX_PREFIX_HASHES

# What is left of a time limit is never less than this: opening needs some time at all.
MIN_TIMEOUT_S = 0.05


class Connector:
    """Opens one generation's streams. It remembers which address it used last.

    request: what to announce. transports: addresses to try, the first one first. Every open
    after the first one means that a stream was lost; the next address is then tried only when
    the last one does not answer.
    """

    def __init__(
        self,
        *,
        request: Open,
        transports: Sequence[Transport],
        retry_policy: RetryPolicy,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._request = request
        self._transports = transports
        self._retry_policy = retry_policy
        self._clock = clock
        self._rng = rng
        self._next = 0
        self._num_failures = 0  # in a row
        self._cancelled = False

    def cancel(self) -> None:
        """Make no further attempt: `connect` raises at its next turn. Safe from any thread."""
        self._cancelled = True

    @property
    def max_tokens(self) -> int:
        """What the session may grow to, prompt and output together."""
        return self._request.max_tokens

    def connect(
        self,
        session: EdgeSession,
        timeout_s: float,
        *,
        wait_first: bool = False,
        meanwhile: Callable[[], None] | None = None,
    ) -> Stream:
        """A stream whose session is open, within `timeout_s`; asks again while servers are busy.

        wait_first: back off before the first try too, and try the next address: the last stream
        was lost before it had brought anything. meanwhile: work to do while the server's answer
        to an opening is on its way. Raises the last TransportError when none could be had in
        time, or when every address refuses.
        """
        deadline_s = self._clock.now() + timeout_s
        num_refused = 0
        if wait_first:
            self._num_failures += 1
            self._next += 1
            self._clock.sleep(min(self._backoff_s(), timeout_s))
        else:
            self._num_failures = 0
        while True:
            transport = self._transports[self._next % len(self._transports)]
            left_s = max(deadline_s - self._clock.now(), MIN_TIMEOUT_S)
            try:
                return self._open(session, transport, left_s, meanwhile)
            except RefusedError:
                # Another server may be the right one; when all of them have refused, so it is.
                num_refused += 1
                if num_refused >= len(self._transports):
                    raise
                wait_s = 0.0
            except BusyError as error:
                wait_s = error.retry_after_s
                self._check_time_left(error, deadline_s, wait_s)
            except (ConnectError, LostError, DeadlineError) as error:
                self._num_failures += 1
                wait_s = self._backoff_s()
                self._check_time_left(error, deadline_s, wait_s)
            session.lost()
            self._next += 1
            self._clock.sleep(wait_s)

    def _with_prefix_hashes(self, session: EdgeSession) -> Open:
        """The request with the hashes of the prompt's frames that are encoded already."""
        chain = begin_chain(self._request)
        hashes: list[bytes] = []
        for frame in session.journal.frames[:MAX_PREFIX_HASHES]:
            if frame.want_token or frame.ahead:
                break
            chain = extend_chain(chain, frame)
            hashes.append(chain)
        return replace(
            self._request,
            prefix_hashes=tuple(hashes),
            shareable_tokens=session.num_prompt_tokens,
        )

    def _backoff_s(self) -> float:
        """Twice as long after every failure, shortened by chance."""
        patience = self._retry_policy
        full_s = patience.first_backoff_s * 2.0 ** min(self._num_failures - 1, 30)
        return min(full_s, patience.max_backoff_s) * self._rng.uniform(0.5, 1.0)

    def _check_time_left(self, error: TransportError, deadline_s: float, wait_s: float) -> None:
        if self._cancelled or self._clock.now() + wait_s >= deadline_s:
            raise error

    def _open(
        self,
        session: EdgeSession,
        transport: Transport,
        timeout_s: float,
        meanwhile: Callable[[], None] | None,
    ) -> Stream:
        session.open()
        # A path that swallows everything must not use up the time of the other addresses.
        share_s = min(timeout_s / len(self._transports), self._retry_policy.attempt_s)
        stream = transport.open(self._with_prefix_hashes(session), share_s)
        try:
            if meanwhile is not None:
                meanwhile()
            received = stream.receive(share_s)
        except BaseException:
            stream.abort()
            raise
        if not isinstance(received.message, Opened):
            stream.abort()
            raise RefusedError(f"{transport.address} did not open the session")
        session.max_frame_tokens = received.message.max_frame_tokens
        session.opened(received.message.held_frames)
        return stream
