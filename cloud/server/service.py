"""The gRPC service: who may call, what each call does, and the status that ends it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final

import grpc

from cloud.errors import (
    AccessError,
    BadFrameError,
    CapacityError,
    CloudError,
    DrainingError,
    UnreadError,
    status_of,
)
from cloud.server.access import tenant_of
from cloud.server.byte_budget import ByteBudget
from cloud.server.conversations import Conversations
from cloud.server.description import ServerDescription
from cloud.server.link_probe import MAX_CALLS, MAX_CALLS_PER_PEER, answer_call
from cloud.server.logs import event, trace_id
from cloud.server.mailbox import Mailbox
from cloud.server.metrics import Metrics
from cloud.server.places import Places
from cloud.server.pulls import Pulls
from cloud.server.stream import Answer, Context, ServerStream, StreamLimits
from cloud.server.stuck_calls import StuckCalls
from cloud.sessions.siblings import Alone, Siblings
from cloud.sessions.tenants import Tenant, Tenants
from protos import wire
from protos.errors import RemoteWireError
from protos.metadata import REPLICA_KEY
from protos.pull import decode_fetch_request, decode_list_files_request, encode_file_list

logger = logging.getLogger(__name__)

ABORT_TIMEOUT_S: Final = 2.0


class InferenceService:
    """Handlers of splitpoint.v1.SplitInference on raw message bytes."""

    def __init__(
        self,
        description: ServerDescription,
        conversations: Conversations,
        *,
        metrics: Metrics,
        tenants: Tenants | None = None,
        stream_limits: StreamLimits | None = None,
        budget: ByteBudget | None = None,
        pulls: Pulls | None = None,
        siblings: Siblings | None = None,
        replica: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """tenants: who may call; None: everybody. budget: for the bytes of all frames. pulls: None:
        this server offers no files. siblings: the others behind its address; None: it stands alone.
        replica: what it is called among them."""
        self._description = description
        self._conversations = conversations
        self._metrics = metrics
        self._tenants = tenants or Tenants()
        self._stream_limits = stream_limits or StreamLimits()
        self._clock = clock
        self._budget = budget or ByteBudget()
        self._pulls = pulls or Pulls((), budget=self._budget, clock=clock)
        self._siblings = siblings or Alone()
        self._replica = replica
        self._stuck = StuckCalls()
        self._probes = Places("link probes", total=MAX_CALLS, per_peer=MAX_CALLS_PER_PEER)
        self._mail: Mailbox[Answer] | None = None  # made by the first stream: it needs the loop

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        """What `server.add_generic_rpc_handlers` takes."""
        methods: dict[str, Any] = {
            "Generate": grpc.stream_stream_rpc_method_handler(self.generate),
            "Describe": grpc.unary_unary_rpc_method_handler(self.describe),
            "Probe": grpc.stream_stream_rpc_method_handler(self.probe),
            "ListFiles": grpc.unary_unary_rpc_method_handler(self.list_files),
            "Fetch": grpc.unary_stream_rpc_method_handler(self.fetch),
        }
        return grpc.method_handlers_generic_handler(wire.SERVICE_NAME, methods)

    async def generate(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Generate: one session, from Open to the end of the stream."""
        metadata = context.invocation_metadata() or ()
        trace = trace_id(dict(metadata).get(wire.TRACEPARENT_KEY))
        try:
            tenant = self._tenant(context)
            self._stuck.check(context)
            await self._conversations.hold(
                self._stream(context, tenant), tenant, trace, timeout_s=context.time_remaining()
            )
        except CloudError as error:
            self._metrics.failed(error)
            await self._end(context, error, trace)

    async def describe(self, request: bytes, context: Context) -> bytes:
        """Describe: what this server serves, and how full it is."""
        return wire.encode_description(self._description.now())

    async def probe(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Probe: messages of the sizes that the client asks for."""
        try:
            self._stuck.check(context)
            with self._probes.one(context):
                await answer_call(context, self._budget)
        except RemoteWireError as error:
            await self._end(context, BadFrameError(str(error)), None)
        except CloudError as error:
            await self._end(context, error, None)

    async def list_files(self, request: bytes, context: Context) -> bytes:
        """ListFiles: the manifest of a bundle that this server has loaded."""
        try:
            self._tenant(context)
            self._stuck.check(context)
            wanted = decode_list_files_request(request)
            return encode_file_list(await self._pulls.list(wanted))
        except RemoteWireError as error:
            await self._end(context, BadFrameError(str(error)), None)
        except CloudError as error:
            await self._end(context, error, None)
        return b""  # `_end` has raised

    async def fetch(self, request: bytes, context: Context) -> None:
        """Fetch: one file of the device's side of a bundle."""
        try:
            tenant = self._tenant(context)
            self._stuck.check(context)
            await self._pulls.send(decode_fetch_request(request), tenant, context)
        except RemoteWireError as error:
            await self._end(context, BadFrameError(str(error)), None)
        except CloudError as error:
            await self._end(context, error, None)

    def hand_back(self) -> None:
        """End every session with DrainingError: the edges go on elsewhere with their journals."""
        self.end_all(DrainingError("this server is shutting down: go on elsewhere"))

    def end_all(self, error: CloudError) -> None:
        """End every session with `error`."""
        self._conversations.end_all(error)

    def _tenant(self, context: Context) -> Tenant:
        tenant = tenant_of(self._tenants, context.invocation_metadata() or ())
        if tenant is None:
            raise AccessError("a valid access token is needed")
        return tenant

    def _stream(self, context: Context, tenant: Tenant) -> ServerStream:
        return ServerStream(
            context,
            metrics=self._metrics,
            rate_limit=partial(self._wait_s, tenant),
            replica=self._replica,
            room=self._budget.stream(tenant.name),
            mailbox=self._mailbox(),
            limits=self._stream_limits,
            clock=self._clock,
        )

    async def _wait_s(self, tenant: Tenant, num_rows: int) -> float:
        return await self._siblings.wait_s(tenant, num_rows, at_s=self._clock())

    def _mailbox(self) -> Mailbox[Answer]:
        if self._mail is None:
            self._mail = Mailbox()
        return self._mail

    def _advice(self, error: CapacityError) -> tuple[tuple[str, str], ...]:
        """When to ask again, and where, if another replica may have room."""
        there = self._siblings.with_room() if error.elsewhere else None
        if there is None:
            return ((wire.RETRY_AFTER_KEY, f"{error.retry_after_s:g}"),)
        wait_s = min(error.retry_after_s, there.retry_after_s)
        return ((wire.RETRY_AFTER_KEY, f"{wait_s:g}"), (REPLICA_KEY, there.replica))

    async def _end(self, context: Context, error: CloudError, trace: str | None) -> None:
        """End a call with the error's status, and say when to ask again where there is no room."""
        event(logger, "stream_ended", error=type(error).__name__, reason=str(error), trace_id=trace)
        if isinstance(error, UnreadError):
            with self._stuck.one(context):  # no status gets through: until its connection ends
                await asyncio.get_running_loop().create_future()
        trailers = self._advice(error) if isinstance(error, CapacityError) else ()
        detail = str(error)[: wire.MAX_DETAIL_CHARS]
        ended = asyncio.ensure_future(context.abort(status_of(error), detail, trailers))
        await asyncio.wait({ended}, timeout=ABORT_TIMEOUT_S)
        if not ended.done():
            with self._stuck.one(context):
                await asyncio.wait({ended})
        await ended  # raises, which is how gRPC wants a call to end
