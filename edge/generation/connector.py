"""Opening a stream within a time limit, at several addresses in turn.

Which address comes next, and after what wait, is decided by `optimizer.policy.retry`. This module
only makes the attempts.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from edge.errors import (
    BusyError,
    LostError,
    MisconfiguredError,
    PeerError,
    RefusedError,
    SessionError,
    TransportError,
)
from edge.generation.answer_checks import AnswerTerms
from edge.generation.kv_shipment import KvShipment
from edge.generation.link_notice import LinkNotice, OnLink, unheard
from edge.generation.session import EdgeSession
from edge.generation.session_frames import RecallGrant
from edge.net.route import Route
from edge.net.transport import Received, Stream, Transport
from optimizer.policy.kv_blocks import KV_BLOCK_TOKENS
from optimizer.policy.retry import Clock, ConnectAttempts, Failure, RetryPolicy
from protos.affinity import prefix_name
from protos.messages import Closed, CloudMessage, Open, Opened
from protos.prefix import begin_chain, extend_chain
from protos.wire import MAX_PREFIX_HASHES

# A time limit that is almost used up still leaves an attempt this long.
MIN_TIMEOUT_S: Final = 0.05
# Whoever cancels between two attempts waits no longer.
CANCEL_WITHIN_S: Final = 0.25

# Work while the answer to an Open is on its way: it may send frames behind the Open, which the
# session knows of, and it returns the answer where that has come meanwhile.
Meanwhile: TypeAlias = Callable[[Stream], Received | None]


class Connector:
    """Opens one generation's streams. It remembers which address it used last.

    request: what to announce. transports: the addresses to try, the first one first. Every call
    after the first one means that a stream was lost. It begins at the address used last.
    token_frames: ask for token frames, which a server may decline. shipment: the first attempt asks
    to go on from its part's session, which ends with that attempt in any case. on_link: told when
    an attempt failed and the next one follows. cancel_within_s: how long `cancel` may wait for a
    wait. grant: told of a server that holds no rows, where the request asks for them.
    """

    def __init__(
        self,
        *,
        request: Open,
        transports: Sequence[Transport],
        retry_policy: RetryPolicy,
        clock: Clock,
        rng: random.Random,
        token_frames: bool = False,
        shipment: KvShipment | None = None,
        on_link: OnLink = unheard,
        cancel_within_s: float = CANCEL_WITHIN_S,
        grant: RecallGrant | None = None,
    ) -> None:
        self._request = request
        self._transports = transports
        self._retry_policy = retry_policy
        self._clock = clock
        self._rng = rng
        self._token_frames = token_frames
        self._shipment = shipment
        self.continued = False  # whether the server goes on from there
        self.on_link = on_link
        self._grant = grant or RecallGrant()
        self._cancel_within_s = cancel_within_s
        self._attempts = ConnectAttempts()
        self._route = Route(replica="" if shipment is None else shipment.part.replica)
        self._cancelled = False
        self._worked_s = 0.0  # of the time to connect, what `Meanwhile` took

    def cancel(self) -> None:
        """End `connect` at its next attempt, by its last error. Safe from any thread."""
        self._cancelled = True

    @property
    def session_id(self) -> str:
        """Of the session that was opened last."""
        return self._request.session_id

    @property
    def max_tokens(self) -> int:
        """What the session may grow to, prompt and output together."""
        return self._request.max_tokens

    @property
    def split(self) -> int:
        """The layer that this generation's rows enter the cloud at."""
        return self._request.split

    def answer_terms(self, vocab_size: int | None) -> AnswerTerms:
        """What the answers to these sessions must keep to; vocab_size: None, where unknown."""
        return AnswerTerms(
            vocab_size=vocab_size,
            with_logprobs=self._request.sampling.logprobs,
            num_top=self._request.sampling.top_logprobs,
            prompt_top=self._request.sampling.prompt_logprobs,
            max_tokens=self.max_tokens,
            with_entropies=self._request.entropies,
        )

    def connect(
        self,
        session: EdgeSession,
        timeout_s: float,
        *,
        wait_first: bool = False,
        meanwhile: Meanwhile | None = None,
    ) -> Stream:
        """A stream whose session is open, within `timeout_s`; tries again while servers are busy.

        wait_first: the last stream was lost before it brought anything, so back off before the
        first attempt too, and make it at the next address. meanwhile: work to do while the server's
        answer to an Open is on its way, see `Meanwhile`; its time does not count. Raises the last
        TransportError when the time is up, when every address has refused, or after too many
        attempts.
        """
        end_s = self._clock.now() + timeout_s
        self._worked_s = 0.0
        if wait_first:
            early = self._attempts.after_early_loss(self._retry_policy, self._rng.random)
            if early is None:
                raise LostError(f"given up after {self._attempts.num_attempts + 1} attempts")
            self._attempts = early.attempts
            self._wait(min(early.wait_s, timeout_s))
        else:
            self._attempts = self._attempts.begin()
        while True:
            transport = self._transports[self._attempts.next_address % len(self._transports)]
            left_s = max(end_s + self._worked_s - self._clock.now(), MIN_TIMEOUT_S)
            # With a shipment nothing goes before the server agrees.
            work = meanwhile if self._shipment is None else self._shipment.encode_ahead
            try:
                return self._open(session, transport, left_s, work)
            except TransportError as error:
                self.let_go()
                deadline_s = end_s + self._worked_s
                retry = self._attempts.after(
                    _failure_of(error),
                    self._retry_policy,
                    num_addresses=len(self._transports),
                    now_s=self._clock.now(),
                    deadline_s=deadline_s,
                    draw=self._rng.random,
                    retry_after_s=error.retry_after_s if isinstance(error, BusyError) else 0.0,
                )
                if retry is None or self._cancelled:
                    raise
                left_s = deadline_s - self._clock.now()
                self.on_link(
                    LinkNotice("waiting", transport.address, str(error), retry.wait_s, left_s)
                )
                self._wait(retry.wait_s)
                if self._cancelled:
                    raise
            if session.has_only_known_frames:
                # A server that held all of them may keep the session; the next one may hold fewer,
                # and then other frames follow.
                self._request = replace(self._request, session_id=secrets.token_hex(16))
            session.lost()
            self._attempts = retry.attempts

    def let_go(self) -> None:
        """End the older session, unless the server has. Nothing goes on from it any more."""
        if self._shipment is not None:
            self._shipment.part.close(is_over=self.continued)
            if not self.continued:
                self._shipment.release()
            self._shipment = None

    def _wait(self, wait_s: float) -> None:
        """Sleep, but not much longer than until somebody cancels."""
        while not self._cancelled:
            part_s = min(wait_s, self._cancel_within_s)
            self._clock.sleep(part_s)
            wait_s -= part_s
            if wait_s <= 0:
                return

    @property
    def address(self) -> str:
        """The address of the last attempt."""
        return self._transports[self._attempts.next_address % len(self._transports)].address

    @property
    def replica(self) -> str:
        """The server at that address that was named last; empty: it has no name."""
        return self._route.replica

    def _with_prefix_hashes(self, session: EdgeSession) -> Open:
        """The request with the hashes of the prompt's frames that are encoded already.

        A server that begins with other sessions' frames takes no token frames behind them. So a
        beginning that would leave sent ones out is not named. Where tokens may leave the cache,
        nothing is shared.
        """
        if self._request.max_positions:
            return self._request
        frames = session.journal.frames
        sent = enumerate(frames if session.num_sent else (), start=1)
        fewest = max((number for number, frame in sent if frame.is_tokens), default=0)
        chain = begin_chain(self._request)
        hashes: list[bytes] = []
        for number, frame in enumerate(frames[:MAX_PREFIX_HASHES], start=1):
            if frame.want_token or frame.ahead:
                break
            chain = extend_chain(chain, frame)
            if number >= fewest:
                hashes.append(chain)
        return replace(
            self._request,
            prefix_hashes=tuple(hashes),
            shareable_tokens=session.num_prompt_tokens,
            token_rows=self.token_rows(session),
            continues="" if self._shipment is None else self._shipment.part.session_id,
            kv_tokens=0 if self._shipment is None else self._shipment.num_tokens,
        )

    def token_rows(self, session: EdgeSession) -> int:
        """How many first tokens to ask to be taken as ids: at split 0 all, else the prompt's."""
        if not self._token_frames:
            return 0
        return self.max_tokens if self._request.split == 0 else session.num_prompt_tokens

    def _open(
        self,
        session: EdgeSession,
        transport: Transport,
        timeout_s: float,
        meanwhile: Meanwhile | None,
    ) -> Stream:
        session.open()
        limit_s = self._retry_policy.attempt_limit_s(timeout_s, len(self._transports))
        if not self._route.prefix_hash:
            first = session.tokens[: min(KV_BLOCK_TOKENS, session.num_prompt_tokens)]
            self._route.prefix_hash = prefix_name(self._request, first)
        stream = transport.open(self._with_prefix_hashes(session), limit_s, self._route)
        try:
            early = None if meanwhile is None else self._work(meanwhile, stream)
            received = early or stream.receive(limit_s)
        except TransportError:
            stream.abort()
            raise
        except BaseException:  # ours: nobody comes back to the session, so the cloud must not wait
            stream.close()
            raise
        try:
            answer = self._checked(transport.address, received.message)
            is_withdrawn = session.must_withdraw(
                answer.max_frame_tokens, answer.token_rows, recall=answer.recall
            )
            if not is_withdrawn:
                self._take_opened(session, transport.address, answer)
        except TransportError:
            stream.abort()
            raise
        if self._request.recall and not answer.recall:
            self._grant.is_refused = True
        if not is_withdrawn:
            return stream
        stream.close()  # not `abort`, which would leave frames to come back to
        session.withdraw()
        session.recalls = answer.recall
        # Another server may keep the frames that were taken back, under the id that they had.
        self._request = replace(self._request, session_id=secrets.token_hex(16))
        return self._open(session, transport, timeout_s, None)

    def _work(self, meanwhile: Meanwhile, stream: Stream) -> Received | None:
        """Let `meanwhile` work, and note how long it did."""
        started_s = self._clock.now()
        try:
            return meanwhile(stream)
        finally:
            self._worked_s += self._clock.now() - started_s

    def _checked(self, address: str, answer: CloudMessage) -> Opened:
        """The answer to an Open.

        Raises RefusedError when the server closed the session, and PeerError for nonsense.
        """
        if isinstance(answer, Closed):
            raise RefusedError(f"{address} did not open the session: {answer.detail or 'closed'}")
        if not isinstance(answer, Opened):
            raise PeerError(f"{address} broke the protocol: an answer before it opened the session")
        if answer.session_id != self._request.session_id:
            raise PeerError(f"{address} broke the protocol: it opened another session")
        return answer

    def _take_opened(self, session: EdgeSession, address: str, answer: Opened) -> None:
        """Tell the session what the server has opened. Raises PeerError for nonsense."""
        if answer.max_positions < self._request.max_positions:
            raise RefusedError(_why_none_leave(address, answer.max_positions))
        self.continued = answer.continued and self._shipment is not None
        session.max_frame_tokens = answer.max_frame_tokens
        session.max_frames_in_flight = answer.max_frames_in_flight
        try:
            session.opened(answer.held_frames)
        except SessionError as error:
            raise PeerError(f"{address} broke the protocol: {error}") from error
        if session.journal.token_rows_behind(answer.held_frames) > answer.token_rows:
            raise BusyError(
                f"{address} takes no token frames now, and this generation began with them",
                retry_after_s=0.0,
            )
        session.granted(answer.token_rows)
        if session.has_recalled and not answer.recall:
            raise BusyError(
                f"{address} does not hold rows, and this generation's frames refer to some",
                retry_after_s=0.0,
            )
        if self._request.recall and not answer.recall:
            session.recalls = False


def _failure_of(error: TransportError) -> Failure:
    """What an attempt's error means for the next one."""
    if isinstance(error, RefusedError | PeerError | MisconfiguredError):
        return "refused"
    return "busy" if isinstance(error, BusyError) else "unreachable"


def _why_none_leave(address: str, max_positions: int) -> str:
    if max_positions:
        return f"{address} has positions for {max_positions} tokens: ask for fewer new ones"
    return (
        f"{address} lets no tokens leave its cache (an older version, a GPU, several processes, or "
        "a model with sliding windows): take --context shift"
    )
