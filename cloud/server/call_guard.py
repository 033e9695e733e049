"""Limits for the calls that gRPC's own services answer: health and reflection.

Their servicers wait for a request as long as the client likes, and a health watch never ends. So
each call gets a place (`cloud.server.places`), its request a time limit, and a watch a longest
life. A client that still wants to know watches again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from cloud.errors import CapacityError, CloudError, IdleError, status_of
from cloud.server.places import Places
from cloud.server.timers import within
from protos import wire

# Calls that are answered, such as watches.
MAX_CALLS: Final = 64
MAX_CALLS_PER_PEER: Final = 16
# Calls whose request is still to come. They cost little, and they end soon.
MAX_SILENT_CALLS: Final = 1024
MAX_SILENT_CALLS_PER_PEER: Final = 256
REQUEST_TIMEOUT_S: Final = 10.0
MAX_CALL_S: Final = 3600.0
_EOF: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]


class CallGuard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Puts the limits around every handler but those of our own service, which has its own."""

    def __init__(self) -> None:
        self._places = Places(
            "health and reflection calls", total=MAX_CALLS, per_peer=MAX_CALLS_PER_PEER
        )
        self._silent = Places(
            "calls without a request", total=MAX_SILENT_CALLS, per_peer=MAX_SILENT_CALLS_PER_PEER
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """The call's handler within the limits."""
        handler: Any = await continuation(details)
        is_stream = handler is not None and handler.request_streaming
        if handler is None or (is_stream and details.method.startswith(f"/{wire.SERVICE_NAME}/")):
            return handler

        async def behave(requests: Any, context: Any) -> None:
            too_long = CapacityError(f"a call may last {MAX_CALL_S:g} s; ask again")
            try:
                request = None if is_stream else await self._request(context)
                with self._places.one(context):
                    if is_stream:
                        answering = _stream(handler, requests, context)
                    else:
                        answering = _answer(handler, request, context)
                    await within(MAX_CALL_S, answering, too_long)
            except CloudError as error:
                await context.abort(status_of(error), str(error))

        # On the wire a call with one message each way is a stream of one message each way.
        return grpc.stream_stream_rpc_method_handler(
            behave,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _request(self, context: Any) -> Any:
        silent = IdleError(f"no request for {REQUEST_TIMEOUT_S:g} s")
        with self._silent.one(context):
            request = await within(REQUEST_TIMEOUT_S, context.read(), silent)
        if request is _EOF:
            raise IdleError("the call ended without a request")
        return request


async def _answer(handler: Any, request: Any, context: Any) -> None:
    if handler.response_streaming:
        await handler.unary_stream(request, context)
    else:
        await context.write(await handler.unary_unary(request, context))


async def _stream(handler: Any, requests: Any, context: Any) -> None:
    async for answer in handler.stream_stream(requests, context):
        await context.write(answer)
