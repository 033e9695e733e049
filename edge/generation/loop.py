"""One generation from prompt tokens to new tokens: the loop around the session.

Front forward -> encode -> send -> receive -> next, with the prompt cut into chunks that are
computed while earlier ones travel. When the stream breaks, the loop opens a new one, here or at
the next address, replays the session's journal and goes on.

The session decides what to send next, and the connector gives the streams. The sender computes and
sends frames, the observer learns from answers, and the deadlines say how long to wait. This loop
only carries things from one to the other.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial

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
from edge.generation.arrived_scores import ArrivedScores
from edge.generation.chunk_sizer import ChunkSizer
from edge.generation.connector import Connector
from edge.generation.deadlines import Deadlines
from edge.generation.draft_frames import DraftedFrames, Heard
from edge.generation.drafted_sending import DraftedSending
from edge.generation.drafting import DraftSelector
from edge.generation.early_answer import EarlyAnswer
from edge.generation.frame_sender import FrameSender
from edge.generation.heard_guesses import HeardGuesses
from edge.generation.kv_shipment import KvShipment, LeavesOpen
from edge.generation.level_selector import LevelSelector
from edge.generation.link_notice import LinkNotice
from edge.generation.new_tokens import new_tokens
from edge.generation.pending import ArrivedResult
from edge.generation.phases import Phase
from edge.generation.prefill_planner import PrefillChoice
from edge.generation.prefix_memory import PrefixMemory
from edge.generation.room import RoomMaker
from edge.generation.row_span import RowSpan
from edge.generation.session import EdgeSession
from edge.generation.step_observer import StepObserver, StepWatcher
from edge.generation.token_source import FrontSegment, NewToken, OnStep, compute_rows
from edge.net.transport import Received, Stream
from optimizer.policy.retry import Clock, RetryPolicy
from protos.messages import Closed, Drafts, Frame, Opened, Result


class RemoteGeneration(LeavesOpen):
    """One generation with a cloud. Iterate `tokens()` once; then read what it cost.

    front: with an empty cache. selector: encodes at the level it selects. connector: gives the
    streams. chunks: the sizes of the prompt's frames. drafting: guesses that go along with decode
    steps; None: plain decoding. prefixes: frames of earlier prompts; None: remember none.
    vocab_size: of the model: a server's token beyond it is a PeerError. None: unknown. prefill:
    which tokens go as ids; None: none. keeps_front: the front's cache holds tokens of this answer.
    shipment: keys and values to send where the server goes on from an older session. room: lets
    tokens leave the caches when they are full; None: all stay.
    """

    def __init__(
        self,
        *,
        front: FrontSegment,
        selector: LevelSelector,
        connector: Connector,
        chunks: ChunkSizer,
        retry_policy: RetryPolicy,
        clock: Clock,
        drafting: DraftSelector | None = None,
        prefixes: PrefixMemory | None = None,
        vocab_size: int | None = None,
        prefill: PrefillChoice | None = None,
        keeps_front: bool = False,
        shipment: KvShipment | None = None,
        room: RoomMaker | None = None,
        observers: Sequence[StepWatcher] = (),
    ) -> None:
        self.reconnects = 0
        super().__init__()
        self._shipment = shipment
        self._front = front
        self._keeps_front = keeps_front
        self._prefill = prefill
        self._terms = connector.answer_terms(vocab_size)
        self._selector = selector
        self._connector = connector
        self._chunks = chunks
        self._prefixes = prefixes or PrefixMemory(max_bytes=0)
        self._drafted: DraftedFrames | None = None
        watchers: list[StepWatcher] = [selector, chunks, *observers]
        if prefill is not None:
            watchers.append(prefill.watcher(selector))
        if drafting is not None:
            compute = partial(compute_rows, front)
            self._drafted = DraftedFrames(drafting, compute, max_tokens=connector.max_tokens)
            watchers.append(drafting)
        self._observer = StepObserver(watchers, split=connector.split)
        self._sender = FrameSender(
            front=front,
            selector=selector,
            observer=self._observer,
            clock=clock,
            drafted=self._drafted,
            shipment=shipment,
            room=room,
        )
        self._capacity = None if room is None else room.capacity
        self._drafting: DraftedSending | None = None
        if self._drafted is not None:
            self._drafting = DraftedSending(self._drafted, self._sender, selector)
        self._guesses = HeardGuesses(drafting)
        self._deadlines = Deadlines(retry_policy=retry_policy, clock=clock, selector=selector)
        self._scores = ArrivedScores()
        self._stream: Stream | None = None
        self._cancelled = False
        self._num_caught_up = 0  # frames that the cloud may hold, in the front's cache
        self._early = EarlyAnswer()

    def tokens(self, prompt_ids: Sequence[int], on_step: OnStep) -> Generator[NewToken, None, None]:
        """Yield new tokens until the caller stops iterating; `on_step` gets every answered frame.

        Closing the iterator closes the stream, and the cloud frees its cache. Raises a
        TransportError when no server answered within the time that `RetryPolicy` grants, PeerError
        when one broke the protocol, and TooSlowError when the deadline cannot be held.
        """
        level = self._selector.prefix_key
        known = self._known_beginning(level, prompt_ids)
        session = EdgeSession(
            prompt_ids, chunk_tokens=self._chunks.max_tokens, known=known, terms=self._terms
        )
        session.capacity = self._capacity
        self._observer.begin(on_step)
        if not self._keeps_front:
            self._front.keep_steps([frame.token_ids for frame in known])
        self._num_caught_up = 0
        try:
            # If the cloud may know the prompt's beginning, the first frame is not known yet. Where
            # tokens may leave, nothing goes before the server agrees.
            early = self._catch_up if known or self._capacity is not None else self._send_early
            self._stream = self._connector.connect(
                session, self._deadlines.connect_s, meanwhile=partial(early, session)
            )
            if self._shipment is not None and self._connector.continued:
                session.send_with_kv(self._shipment.num_tokens, self._shipment.frame_tokens)
            self._connector.let_go()
            if not session.num_sent or known:
                self._send_as_ids(session)
            for frame in session.unsent():
                self._stream.send(frame)
            if known:
                self._catch_up(session, None)
            while not self._cancelled:
                yield from self._round(session, self._stream)
                if (reason := self._selector.gave_up) is not None:
                    raise TooSlowError(reason)
        except TransportError:
            if not self._cancelled:  # else cancelling has broken the stream
                raise
        finally:
            session.finish()
            self._prefixes.remember(level, session.journal.frames)
            self._connector.let_go()
            if (stream := self._stream) and not self.leave_open(stream, self._connector):
                stream.close()

    def cancel(self) -> None:
        """See TokenSource."""
        self._cancelled = True
        self._connector.cancel()
        if self._stream is not None:
            self._stream.hang_up()  # with a goodbye, so that the cloud keeps nothing for a return

    def _known_beginning(self, level: str, prompt_ids: Sequence[int]) -> tuple[Frame, ...]:
        """Frames that the cloud may hold already: none where every row is to be scored."""
        if self._terms.prompt_top is not None:
            return ()
        wants_ids = self._prefill is not None and self._prefill.fills_front(with_drafts=False)
        return self._prefixes.worth_naming(level, prompt_ids, wants_ids=wants_ids)

    def _send_early(self, session: EdgeSession, stream: Stream) -> Received | None:
        """Send the prompt's first frames behind the Open; returns its answer once that has come.

        They save a round trip. A server that takes no such frames makes the connector withdraw
        them. At a later attempt the frames of the first one are there: they go once it is open.
        """
        if len(session.journal):
            return None
        session.granted(self._connector.token_rows(session))
        self._send_as_ids(session)
        for _ in range(session.max_frames_in_flight):
            received = stream.poll()
            if received is not None or not session.num_prompt_left or self._cancelled:
                return received
            self._size_chunk(session)
            rows = session.next_chunk()
            if not rows.as_ids:
                self._fill(session, rows.first_position)
            self._sender.send(session, stream, rows, early=True)
        return None

    def _send_as_ids(self, session: EdgeSession) -> None:
        if self._prefill is not None:
            session.send_as_ids(self._prefill.num_ids(session.num_prompt_tokens))

    def _size_chunk(self, session: EdgeSession) -> None:
        session.chunk_tokens = self._chunks.next_tokens(session.num_prompt_left)

    def _catch_up(self, session: EdgeSession, stream: Stream | None) -> Received | None:
        """Bring the front's cache to where the frames end that the cloud may hold already.

        Until `stream`, if there is one, has an answer, which is returned.
        """
        for frame in session.journal.frames[self._num_caught_up :]:
            if stream is not None and (received := stream.poll()) is not None:
                return received
            self._sender.catch_up(RowSpan(frame.first_position, frame.token_ids, 0, False))
            self._num_caught_up += 1
        return None

    def _fill(
        self, session: EdgeSession, num_tokens: int, *, until_answer: Stream | None = None
    ) -> None:
        """Bring the front's cache up to the prompt's first `num_tokens`, which went as ids.

        until_answer: stop early when this stream has an answer.
        """
        prefill = self._prefill
        if prefill is None or not prefill.fills_front(with_drafts=self._drafted is not None):
            return
        while (at := self._front.num_tokens) < num_tokens:
            if until_answer is not None and self._has_answer(session, until_answer):
                return
            stop = at + self._chunks.next_tokens(num_tokens - at)
            started_s = self._sender.now_s()
            self._sender.fill(RowSpan(at, tuple(session.tokens[at:stop]), 0, False))
            prefill.computed(stop - at, self._sender.now_s() - started_s)

    def _round(self, session: EdgeSession, stream: Stream) -> list[NewToken]:
        """Send what can be sent and take one answer; replace a lost stream by a new one."""
        try:
            self._send_all(session, stream)
            self._fill(session, session.num_prompt_tokens, until_answer=stream)
            return self._take(session, self._receive(session, stream))
        except (LostError, DeadlineError, ConnectError, BusyError) as error:
            if self._cancelled:
                raise
            stream.abort()
            self._stream = self._recover(session, error)
            return []

    def _send_all(self, session: EdgeSession, stream: Stream) -> None:
        """Compute, encode and send until the session needs an answer to go on.

        Between two chunks of the prompt it takes the answers that have come meanwhile: they say
        how large the next chunk should be.
        """
        while self._sender.make_room(session):
            if session.phase is Phase.PREFILLING:
                while (received := stream.poll()) is not None:
                    self._take(session, received)
                self._size_chunk(session)
            if session.phase is Phase.READY:
                self._fill(session, session.num_prompt_tokens)
            if self._drafting is not None and session.phase in (Phase.READY, Phase.WAITING):
                send = self._drafting.step if session.phase is Phase.READY else self._drafting.go_on
                stands = partial(self._early.stands, session.journal)
                send(session, stream, Heard(partial(self._has_answer, session, stream), stands))
                return
            if (rows := session.next_rows()) is None:
                return
            if session.phase is Phase.PREFILLING and not rows.as_ids:
                self._fill(session, rows.first_position)
            self._sender.send(session, stream, rows)

    def _has_answer(self, session: EdgeSession, stream: Stream) -> bool:
        """Whether an answer is there; it is kept for `_receive`.

        Answers to void frames bring no news. They are taken on the way, and so is what the cloud
        guesses.
        """
        while self._early.received is None and (received := stream.poll()) is not None:
            message = received.message
            is_void = isinstance(message, Result) and session.journal.is_void(message.sequence)
            if is_void or isinstance(message, Drafts):
                self._take(session, received)
            else:
                self._early.received = received
        return self._early.received is not None

    def _receive(self, session: EdgeSession, stream: Stream) -> Received:
        """The next message, waited for as long as the deadlines allow."""
        has_tokens = session.num_new_tokens > 0
        return self._early.take() or self._deadlines.receive(stream, has_tokens=has_tokens)

    def _take(self, session: EdgeSession, received: Received) -> list[NewToken]:
        """One message into the session; returns its tokens. PeerError when it makes no sense."""
        result = received.message
        if isinstance(result, Closed):
            raise LostError(f"the server closed the session: {result.detail}")
        if isinstance(result, Opened):
            raise PeerError("the server broke the protocol: it opened the session twice")
        if isinstance(result, Drafts):
            self._guesses.hear((result,))
            return []
        num_before = session.journal.num_answered
        try:
            new_ids = session.received(result)
        except SessionError as error:
            raise PeerError(f"the server broke the protocol: {error}") from error
        self._guesses.answered(result.drafts)
        self._deadlines.answered(is_new=session.journal.num_answered > num_before)
        self._observer.answered(ArrivedResult(result, received.num_bytes, received.at_s), new_ids)
        if session.journal.num_answered > num_before:
            self._sender.hear(session, result)
            if result.prompt_logprobs:
                self._scores.take(session.journal.frames[result.sequence], result)
        new = new_tokens(new_ids, result, received.at_s)
        if new and self._terms.prompt_top is not None and session.num_new_tokens == len(new):
            return self._scores.joined_to(new, session.num_prompt_tokens)
        return new

    def _recover(self, session: EdgeSession, error: TransportError) -> Stream:
        """A new stream with the journal replayed into it, or the error that broke the old one."""
        session.lost()
        if self._shipment is not None:  # the journal has the ids
            self._shipment.release()
        self._early.take()  # the replay asks again
        limit = self._deadlines.for_recovery(has_tokens=session.num_new_tokens > 0)
        tell = self._connector.on_link
        tell(LinkNotice("lost", self._connector.address, str(error), left_s=limit.left_s))
        try:
            if limit.left_s <= 0:
                raise error
            stream = self._connector.connect(session, limit.left_s, wait_first=not limit.is_first)
        except TransportError as unreachable:
            raise LostError(
                f"{error}; no way back within {limit.limit_s:g} s: {unreachable}"
            ) from error
        self.reconnects += 1
        tell(LinkNotice("back", self._connector.address))
        for frame in session.replay():
            stream.send(frame)
        return stream
