"""Who calls through a proxy: the address that the proxy in front of a replica says it speaks for.

Limits for one address (`cloud.server.places`, `cloud.server.stuck_calls`) would else count all
clients as one, because every call comes from the proxy. The proxy replaces what a client sent
itself under that name. The address decides such limits alone, and nobody's access.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any

import grpc

from protos.metadata import FORWARDED_FOR_KEY


class ForwardedPeers(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Gives every handler a context whose `peer` is the proxy's client. The outermost one."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """The call's handler with such a context; all of this server's are coroutines."""
        handler: Any = await continuation(details)
        peer = forwarded_peer(details.invocation_metadata)
        if handler is None or peer is None:
            return handler

        async def with_both(request: Any, context: Any) -> Any:
            return await behave(request, _ContextOfClient(context, peer))

        pair = (handler.request_streaming, handler.response_streaming)
        behave, make = {
            (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
            (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
            (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
            (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
        }[pair]
        return make(
            with_both,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def forwarded_peer(metadata: Any) -> str | None:
    """The client in gRPC's form of a peer, from the last address that the proxy wrote; None: no."""
    sent = [value for key, value in metadata or () if key == FORWARDED_FOR_KEY]
    if not sent or not isinstance(sent[-1], str):
        return None
    try:
        address = ip_address(sent[-1].rpartition(",")[2].strip())
    except ValueError:
        return None
    return f"ipv4:{address}:0" if address.version == 4 else f"ipv6:[{address}]:0"


class _ContextOfClient:
    """A gRPC context with another peer."""

    def __init__(self, context: Any, peer: str) -> None:
        self._context = context
        self._peer = peer

    def peer(self) -> str:
        return self._peer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
