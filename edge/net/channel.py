"""The gRPC channel to one server: connected ahead of the first call, and made anew when it is dead.

A network change or a sleep of the device leaves a channel whose connection leads nowhere. gRPC
notices that only while a call runs. `ServerChannel.renew` puts a new one in its place, unless calls
run on the old one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import grpc

from edge.errors import LostError, RefusedError
from edge.net.credentials import Credentials
from protos import wire

OPTIONS: Final = (
    ("grpc.max_receive_message_length", wire.MAX_ANSWER_BYTES),
    ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a long wait sends no data
    # Answers are small, so the window needs no sizing. And a bandwidth probe on its way
    # would take the keepalive ping's place without the ping's timeout.
    ("grpc.http2.bdp_probe", 0),
    # Longer than the timeout above, so that any answer counts as a sign of life: behind a large
    # upload over a thin link the answer to a ping comes late.
    ("grpc.http2.ping_timeout_ms", 60_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
    # Else channels to one address share a connection, and a new channel gets the dead one of the
    # channel that it replaces.
    ("grpc.use_local_subchannel_pool", 1),
)
WARM_S: Final = 10.0  # how long it is tried


class ServerChannel:
    """See the module's docstring. address: HOST:PORT. Safe from several threads.

    Raises InputError for a file of `credentials` that cannot be used.
    """

    def __init__(
        self, address: str, credentials: Credentials, *, window_bytes: int | None = None
    ) -> None:
        """window_bytes: how much the server may send ahead of what was read (None: 64 KiB)."""
        self._address = address
        window = () if window_bytes is None else (("grpc.http2.lookahead_bytes", window_bytes),)
        self._options = (*OPTIONS, *window)
        self._tls: grpc.ChannelCredentials | None = None
        if credentials.tls:
            ca, key, certificate = credentials.read_files()
            self._tls = grpc.ssl_channel_credentials(
                root_certificates=ca, private_key=key, certificate_chain=certificate
            )
        self._metadata = (
            ((wire.AUTHORIZATION_KEY, f"Bearer {credentials.token}"),) if credentials.token else ()
        )
        self._lock = threading.Lock()
        self._num_streams = 0
        self._is_closed = False
        self._channel = self._made()

    @property
    def is_idle(self) -> bool:
        """Whether no stream runs."""
        with self._lock:
            return self._num_streams == 0

    def warm(self) -> None:
        """Begin to connect, without waiting. What goes wrong shows when a call is made.

        A question does it, whose answer nobody needs: to watch a channel's state costs a thread
        that wakes five times a second.
        """
        with self._lock, suppress(ValueError):  # a closed channel stays closed
            ask = self._channel.unary_unary(
                wire.DESCRIBE_PATH, request_serializer=None, response_deserializer=None
            )
            ask.future(
                wire.encode_describe_request(),
                timeout=WARM_S,
                metadata=self._metadata,
                wait_for_ready=True,
            )

    def renew(self) -> bool:
        """Put a new channel in the place of this one and connect it; False while streams run."""
        with self._lock:
            if self._num_streams or self._is_closed:
                return False
            old, self._channel = self._channel, self._made()
        old.close()
        self.warm()
        return True

    def stream(
        self, path: str, requests: Iterator[bytes], *, metadata: Sequence[tuple[str, str]] = ()
    ) -> Any:
        """A bidirectional call of `path` in bytes: iterate, or cancel. metadata: beside the token.

        RefusedError on a closed channel: it is of no use to try again.
        """
        with self._lock:
            if self._is_closed:
                raise RefusedError("the connection is closed")
            make: Callable[..., Any] = self._channel.stream_stream(
                path, request_serializer=None, response_deserializer=None
            )
            call = make(requests, metadata=(*self._metadata, *metadata))
            self._num_streams += 1
        if not call.add_callback(self._ended):
            self._ended()
        return call

    def _ended(self) -> None:
        with self._lock:
            self._num_streams -= 1

    def ask(self, path: str, request: bytes, *, timeout_s: float) -> bytes:
        """One answer of a unary call. Raises grpc.RpcError; LostError on a closed channel."""
        with self._lock:
            if self._is_closed:
                raise LostError("the connection is closed")
            call = self._channel.unary_unary(
                path, request_serializer=None, response_deserializer=None
            )
        try:
            reply: bytes = call(
                request, timeout=timeout_s, metadata=self._metadata, wait_for_ready=True
            )
        except ValueError as error:  # gRPC's word for a channel that was closed meanwhile
            raise LostError("the connection is closed") from error
        return reply

    def close(self) -> None:
        """Close the channel and every stream on it."""
        with self._lock:
            self._is_closed = True
        self._channel.close()

    def _made(self) -> grpc.Channel:
        if self._tls is None:
            return grpc.insecure_channel(self._address, options=self._options)
        return grpc.secure_channel(self._address, self._tls, options=self._options)
