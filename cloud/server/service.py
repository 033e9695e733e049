"""The gRPC service: sessions from Open to their end, whatever that end is.

Close, an error and a broken stream all come to the same place. There the session is freed (the
model thread does it before its next batch) or, where the stream just broke and the client had
asked for it, parked for a stream that opens the same session again. A server that drains hands
back what is left: streams end with UNAVAILABLE, and the edge replays its journal elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc

from cloud.engine.loop import Client, EngineLoop
from cloud.errors import (
    AccessError,
    BadFrameError,
    CapacityError,
    CloudError,
    DrainingError,
    ReplacedError,
    status_of,
)
from cloud.server.access import tenant_of
from cloud.server.link_probe import answer_probe
from cloud.server.logs import event, trace_id
from cloud.server.mailbox import Mailbox
from cloud.server.metrics import Metrics
from cloud.server.stream import Answer, Context, Stream
from cloud.sessions.admission import Admission
from cloud.sessions.resumable_sessions import Key, Parked, ResumableSessions, same_terms
from cloud.sessions.tenants import Bucket, Tenant, Tenants
from protos import wire
from protos.errors import RemoteWireError
from protos.messages import Closed, Open, Opened

logger = logging.getLogger(__name__)

RETRY_AFTER_KEY: Final = "retry-after-s"
TRACEPARENT_KEY: Final = "traceparent"


@dataclass(slots=True, eq=False)
class _Running:
    """A session on a stream. `moved`: another stream has taken the session over."""

    stream: Stream
    client: Client
    request: Open
    tenant: Tenant
    trace: str | None
    moved: bool = False

    @property
    def key(self) -> Key:
        return Key(self.tenant.name, self.request.session_id)


class InferenceService:
    """Handlers of splitpoint.v1.SplitInference on raw message bytes."""

    def __init__(
        self,
        admission: Admission,
        engine_loop: EngineLoop,
        *,
        metrics: Metrics | None = None,
        tenants: Tenants | None = None,
        idle_ttl_s: float = 300.0,
        max_resume_s: float = 60.0,
        max_frames_in_flight: int = 16,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._admission = admission
        self._engine_loop = engine_loop
        self._metrics = metrics or Metrics()
        self._tenants = tenants or Tenants()
        self._idle_ttl_s = idle_ttl_s
        self._max_resume_s = max_resume_s
        self._max_frames_in_flight = max_frames_in_flight
        self._clock = clock
        self._running: dict[Key, _Running] = {}
        self._buckets: dict[str, Bucket] = {}
        self._mail: Mailbox[Answer] | None = None  # made by the first stream: it needs the loop
        self._resumable = ResumableSessions(
            lambda parked: void(self._free(parked.client, parked.tenant))
        )
        admission.reclaim = self._resumable.drop_oldest
        admission.reclaim_of = lambda tenant: self._resumable.drop_oldest(tenant.name)
        self._dismissed: set[Client] = set()  # no longer their tenant's, not yet freed
        self._metrics.gauge("sessions_parked", "Sessions without a stream", self._num_parked)

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        """What `server.add_generic_rpc_handlers` takes."""
        methods: dict[str, Any] = {
            "Generate": grpc.stream_stream_rpc_method_handler(self.generate),
            "Describe": grpc.unary_unary_rpc_method_handler(self.describe),
            "Probe": grpc.stream_stream_rpc_method_handler(self.probe),
        }
        return grpc.method_handlers_generic_handler(wire.SERVICE_NAME, methods)

    async def generate(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """One session, from Open to the end of the stream."""
        metadata = context.invocation_metadata() or ()
        parent = dict(metadata).get(TRACEPARENT_KEY)
        try:
            tenant = tenant_of(self._tenants, metadata)
            if tenant is None:
                raise AccessError("a valid access token is needed")
            await self._session(context, tenant, trace_id(parent))
        except CloudError as error:
            self._metrics.failed(error)
            await _abort(context, error, trace_id(parent))

    async def describe(self, request: bytes, context: Context) -> bytes:
        return wire.encode_description(self._admission.describe())

    async def probe(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        try:
            async for answer in answer_probe(requests):
                yield answer
        except RemoteWireError as error:
            await _abort(context, BadFrameError(str(error)), None)

    def hand_back(self) -> None:
        """End every session with DrainingError: the edges go on elsewhere with their journals."""
        self._resumable.drop_all()
        for running in self._running.values():
            running.stream.end(DrainingError("this server is shutting down: go on elsewhere"))

    async def _session(self, context: Context, tenant: Tenant, trace: str | None) -> None:
        stream = Stream(
            context,
            metrics=self._metrics,
            pace=partial(self._pace, tenant),
            max_hidden_bytes=self._admission.max_hidden_bytes,
            mailbox=self._mailbox(),
            idle_ttl_s=self._idle_ttl_s,
            max_frames_in_flight=self._max_frames_in_flight,
            clock=self._clock,
        )
        request = await stream.read_open()
        client = self._take_over(tenant, request)
        how = "opened" if client is None else "resumed"
        if client is None:
            asked_s = self._clock()
            session = await self._admission.admit(
                request, tenant, timeout_s=context.time_remaining()
            )
            self._metrics.admission_s.observe(self._clock() - asked_s)
            client = Client(session=session, deliver=stream.deliver())
        else:
            client.deliver = stream.deliver()
        held_frames = client.session.num_frames
        self._metrics.sessions.labels(how=how).inc()
        running = _Running(stream, client, request, tenant, trace)
        self._replace(self._running.get(running.key))  # one that was in line at the same time
        self._running[running.key] = running
        self._log(
            f"session_{how}",
            running,
            split=request.split,
            max_tokens=request.max_tokens,
            held_frames=held_frames or None,
        )
        await self._converse(running, held_frames)

    async def _converse(self, running: _Running, held_frames: int) -> None:
        """Opened, frames, answers; and at the end free, park or leave to another stream."""
        stream = running.stream
        reader: asyncio.Task[None] | None = None
        failed: CloudError | None = None
        try:
            await stream.write(
                Opened(
                    session_id=running.request.session_id,
                    max_frame_tokens=self._admission.max_frame_tokens,
                    held_frames=held_frames,
                )
            )
            reader = asyncio.create_task(stream.read_frames(running.client, self._engine_loop))
            await stream.write_answers()
        except CloudError as error:
            failed = error
            raise
        finally:
            if reader is not None:
                reader.cancel()
            freed = self._leave(running, failed)
        if freed is None:
            return
        # Only a stream that ends in peace waits for its memory to be free and says so.
        # Shielded: a client that goes away now must not call the freeing off, nor have the
        # place given away before the memory is free.
        await asyncio.shield(asyncio.wrap_future(freed))
        await stream.write(Closed())

    def _leave(self, running: _Running, failed: CloudError | None) -> Future[None] | None:
        """The stream is over. None when its session lives on."""
        is_latest = self._running.get(running.key) is running
        if is_latest:
            del self._running[running.key]
        if running.moved:
            return None
        # Only the latest of its name can be asked for again.
        broken = (
            is_latest
            and failed is None
            and not running.stream.said_close
            and not running.client.closed
        )
        resume_s = min(running.request.resume_s, self._max_resume_s)
        ended: object = type(failed).__name__ if failed else None
        if broken and resume_s > 0 and not self._admission.draining:
            self._log("session_parked", running, resume_s=resume_s)
            parked = Parked(running.client, running.request, running.tenant)
            running.client.deliver = void  # answers are remembered, and asked for again
            self._resumable.park(running.key, parked, resume_s)
            return None
        self._log("session_ended", running, error=ended)
        return self._free(running.client, running.tenant)

    def _free(self, client: Client, tenant: Tenant) -> Future[None]:
        """Free the session's KV, and give its place to the next in line once that is done."""
        event_loop = asyncio.get_running_loop()
        self._dismiss(client, tenant)

        def left() -> None:
            self._dismissed.discard(client)
            self._admission.leave()

        def settle(_: Future[None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop of a server that has stopped
                event_loop.call_soon_threadsafe(left)

        freed = self._engine_loop.close(client)
        freed.add_done_callback(settle)
        return freed

    def _dismiss(self, client: Client, tenant: Tenant) -> None:
        """From here on the session does not count for its tenant's limit."""
        if client not in self._dismissed:
            self._dismissed.add(client)
            self._admission.dismiss(tenant)

    def _take_over(self, tenant: Tenant, request: Open) -> Client | None:
        """The session that `request` continues, parked or on a stream that is dead but does not
        know it yet; None: it begins anew, and that other stream ends."""
        key = Key(tenant.name, request.session_id)
        older = self._running.pop(key, None)
        self._replace(older)
        if older is not None:
            wanted = request.resume_s > 0 and older.request.resume_s > 0
            if wanted and same_terms(older.request, request) and not older.client.closed:
                older.moved = True
                return older.client
            self._dismiss(older.client, older.tenant)
            return None
        parked = self._resumable.claim(key, request)
        return None if parked is None else parked.client

    def _replace(self, older: _Running | None) -> None:
        if older is not None:
            older.stream.end(ReplacedError("another stream opened this session again"))

    def _pace(self, tenant: Tenant, num_rows: int) -> float:
        if tenant.tokens_per_s is None:
            return 0.0
        now_s = self._clock()
        bucket = self._buckets.get(tenant.name) or Bucket.full(tenant.tokens_per_s, at_s=now_s)
        self._buckets[tenant.name], wait_s = bucket.take(num_rows, at_s=now_s)
        return wait_s

    def _mailbox(self) -> Mailbox[Answer]:
        if self._mail is None:
            self._mail = Mailbox()
        return self._mail

    def _num_parked(self) -> float:
        return len(self._resumable)

    def _log(self, name: str, running: _Running, **fields: object) -> None:
        stream = running.stream
        event(
            logger,
            name,
            session=running.request.session_id[:8],  # enough to tell apart; the whole is a secret
            tenant=running.tenant.name,
            trace_id=running.trace,
            frames=stream.num_frames or None,
            tokens=stream.num_tokens or None,
            seconds=round(self._clock() - stream.opened_s, 3),
            **fields,
        )


def void(_: object) -> None:
    """Nobody listens."""


async def _abort(context: Context, error: CloudError, trace: str | None) -> None:
    event(logger, "stream_ended", error=type(error).__name__, reason=str(error), trace_id=trace)
    trailers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, CapacityError):
        trailers = ((RETRY_AFTER_KEY, f"{error.retry_after_s:g}"),)
    await context.abort(status_of(error), str(error)[: wire.MAX_DETAIL_CHARS], trailers)
