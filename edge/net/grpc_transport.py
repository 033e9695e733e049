"""The real transport: one gRPC channel to one server, one bidirectional stream a generation."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import grpc

from edge.errors import (
    BusyError,
    ConnectError,
    DeadlineError,
    InputError,
    LostError,
    MisconfiguredError,
    PeerError,
    RefusedError,
    TransportError,
)
from edge.net.channel import ServerChannel
from edge.net.credentials import Credentials
from edge.net.diagnosis import ConnectDiagnosis
from edge.net.route import Route
from edge.net.transport import Received, Stream
from optimizer.policy.retry import RetryPolicy
from protos import wire
from protos.addresses import parse_address
from protos.errors import AddressError, RemoteWireError
from protos.fields import plain_text
from protos.messages import Close, Description, Frame, Open

DEFAULT_RETRY_AFTER_S: Final = 1.0
# A gRPC message is preceded by one flag byte and four length bytes (gRPC over HTTP/2).
MESSAGE_PREFIX_BYTES: Final = 5
CLOSE_TIMEOUT_S: Final = RetryPolicy().close_s
# Answers that nobody has taken yet. A session has far fewer frames on their way.
MAX_UNREAD: Final = 4096
# A server that is silent for so long at first may be spoken to in the wrong way: look.
SILENCE_S: Final = 1.0
# How gRPC itself ends a call whose answer exceeds the channel's limit, with RESOURCE_EXHAUSTED.
OVERSIZED: Final = "larger than max"
MAX_RETRY_AFTER_S: Final = 60.0

# A status that ends a stream, as our own error. Every code is here; a test holds that.
ERROR_OF_STATUS: Final[dict[grpc.StatusCode, type[TransportError]]] = {
    grpc.StatusCode.OK: LostError,  # ended before the edge had closed
    grpc.StatusCode.CANCELLED: LostError,
    grpc.StatusCode.UNKNOWN: LostError,
    grpc.StatusCode.INVALID_ARGUMENT: RefusedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.NOT_FOUND: RefusedError,
    grpc.StatusCode.ALREADY_EXISTS: RefusedError,
    grpc.StatusCode.PERMISSION_DENIED: RefusedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: BusyError,
    grpc.StatusCode.FAILED_PRECONDITION: RefusedError,
    grpc.StatusCode.ABORTED: LostError,
    grpc.StatusCode.OUT_OF_RANGE: RefusedError,
    grpc.StatusCode.UNIMPLEMENTED: RefusedError,
    grpc.StatusCode.INTERNAL: LostError,
    grpc.StatusCode.UNAVAILABLE: LostError,
    grpc.StatusCode.DATA_LOSS: LostError,
    grpc.StatusCode.UNAUTHENTICATED: RefusedError,
}


class GrpcTransport:
    """A channel to one server. `address` is HOST:PORT; TLS when `credentials` name a CA.

    Raises InputError for an address or a file that cannot be used.
    """

    def __init__(
        self,
        address: str,
        credentials: Credentials | None = None,
        *,
        window_bytes: int | None = None,
    ) -> None:
        """window_bytes: for a transport that gets large files, see ServerChannel."""
        credentials = credentials or Credentials()
        credentials.check()
        try:
            parsed = parse_address(address, lowest_port=1)
        except AddressError as error:
            raise InputError(f"server {error}") from error
        self._address = str(parsed)
        self._diagnosis = ConnectDiagnosis(parsed, credentials)
        self._channel = ServerChannel(self._address, credentials, window_bytes=window_bytes)

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self._address

    def open(self, request: Open, timeout_s: float, route: Route | None = None) -> Stream:
        """See Transport. Does not wait: the first `receive` tells whether the server answers."""
        return _GrpcStream(self._channel, request, self._address, self._diagnosis, route=route)

    def describe(self, timeout_s: float) -> Description:
        """Ask the server what it serves.

        TransportError when it does not answer in time; PeerError when its answer is malformed.
        """
        try:
            reply = self._channel.ask(
                wire.DESCRIBE_PATH, wire.encode_describe_request(), timeout_s=timeout_s
            )
        except grpc.RpcError as error:
            waited = f"{self._address} (waited {timeout_s:g} s)"
            raise self.explained(connect_error(error, waited)) from error
        self._diagnosis.answered()
        try:
            return wire.decode_description(reply)
        except RemoteWireError as error:
            raise malformed(error) from error

    @property
    def is_idle(self) -> bool:
        """Whether no stream runs."""
        return self._channel.is_idle

    def warm(self) -> None:
        """Begin to connect, without waiting. What goes wrong shows when a stream is opened."""
        self._channel.warm()

    def renew(self) -> bool:
        """Connect anew, where the connection leads nowhere; False while streams run."""
        return self._channel.renew()

    def explained(self, error: TransportError) -> TransportError:
        """`error`, or what is wrong with an address that has never answered (`diagnosis`)."""
        return self._diagnosis.explain(error) if isinstance(error, ConnectError) else error

    def raw_stream(self, path: str, requests: Iterator[bytes]) -> Any:
        """A call of `path` in bytes, for link probes and pulls: iterate, or cancel."""
        return self._channel.stream(path, requests)

    def close(self) -> None:
        """Close the channel and every stream on it."""
        self._channel.close()


class _GrpcStream:
    """One bidirectional call: gRPC's thread drains the outbox, a reader thread fills the inbox.

    The inbox is there because gRPC's blocking iterator cannot wait with a timeout; its hand-over
    costs some tens of microseconds a message.
    """

    def __init__(
        self,
        channel: ServerChannel,
        request: Open,
        address: str,
        diagnosis: ConnectDiagnosis | None = None,
        *,
        route: Route | None = None,
    ) -> None:
        self._address = address
        self._route = route or Route()
        self._diagnosis = diagnosis
        self._is_answered = False
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Received | TransportError] = queue.SimpleQueue()
        self._finished = False
        self._outbox.put(wire.encode_edge(request))
        self._call: Any = channel.stream(
            wire.GENERATE_PATH, self._requests(), metadata=self._route.metadata_of(request)
        )
        self._reader = threading.Thread(target=self._read, name="stream-reader", daemon=True)
        self._reader.start()

    def send(self, frame: Frame) -> int:
        data = wire.encode_edge(frame)
        self._outbox.put(data)
        return len(data) + MESSAGE_PREFIX_BYTES

    def receive(self, timeout_s: float) -> Received:
        try:
            return self._unless_broken(self._wait(timeout_s))
        except queue.Empty:
            if not self._is_answered:
                raise ConnectError(
                    f"no server answers at {self._address} (waited {timeout_s:g} s)"
                ) from None
            raise DeadlineError(f"no answer within {timeout_s:g} s") from None

    def _wait(self, timeout_s: float) -> Received | TransportError:
        """The next item of the inbox; queue.Empty when none comes.

        A server that says nothing at first is looked at once, while its answer may still come.
        """
        if self._is_answered or self._diagnosis is None or timeout_s <= SILENCE_S:
            return self._inbox.get(timeout=timeout_s)
        deadline_s = time.monotonic() + timeout_s
        try:
            return self._inbox.get(timeout=SILENCE_S)
        except queue.Empty:
            reason, self._diagnosis = self._diagnosis.reason(), None
            if reason is not None and not self._is_answered:
                return MisconfiguredError(f"{self._address}: {reason}")
            return self._inbox.get(timeout=max(deadline_s - time.monotonic(), 0.0))

    def poll(self) -> Received | None:
        try:
            received = self._inbox.get_nowait()
        except queue.Empty:
            return None
        return self._unless_broken(received)

    def _unless_broken(self, received: Received | TransportError) -> Received:
        if isinstance(received, TransportError):
            self._inbox.put(received)  # a broken stream stays broken
            raise received
        return received

    def hang_up(self) -> None:
        if not self._finished:
            self._outbox.put(wire.encode_edge(Close()))
        self._finish()
        self._inbox.put(LostError("hung up"))  # whoever waits for an answer need not any more

    def close(self) -> None:
        self.hang_up()
        # The cloud ends the stream once it has freed the cache: wait for that, but not long,
        # since breaking the stream frees it too.
        self._reader.join(timeout=CLOSE_TIMEOUT_S)
        self._call.cancel()

    def abort(self) -> None:
        self._finish()
        self._call.cancel()

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            self._outbox.put(None)

    def _requests(self) -> Iterator[bytes]:
        while (data := self._outbox.get()) is not None:
            yield data

    def _read(self) -> None:
        try:
            for data in self._call:
                at_s = time.monotonic()
                message = wire.decode_cloud(data)
                if not self._is_answered:
                    self._route.heard(self._call.initial_metadata())
                    self._is_answered = True
                if self._diagnosis is not None:
                    self._diagnosis.answered()
                if self._inbox.qsize() >= MAX_UNREAD:
                    raise RemoteWireError("more answers than there were questions")
                self._inbox.put(Received(message, len(data) + MESSAGE_PREFIX_BYTES, at_s))
            self._inbox.put(LostError("the server ended the stream"))
        except RemoteWireError as error:
            self._call.cancel()
            self._inbox.put(malformed(error))
        except grpc.RpcError as error:
            self._route.heard(self._call.trailing_metadata())
            self._inbox.put(self._broken(error))

    def _broken(self, error: grpc.RpcError) -> TransportError:
        """Why the call ended; looks at an address that has never answered."""
        if self._is_answered:
            return transport_error(error)
        known, diagnosis = connect_error(error, self._address), self._diagnosis
        if diagnosis is None or self._finished:
            return known
        if isinstance(known, ConnectError):
            return diagnosis.explain(known)
        diagnosis.answered()  # by a refusal, but it speaks our language
        return known


def malformed(error: RemoteWireError) -> PeerError:
    """The error of a message that does not decode."""
    return PeerError(f"the server sent a malformed message: {error}")


def connect_error(error: grpc.RpcError, address: str) -> TransportError:
    """The error of a call that was never answered: unless it is a refusal, the address is dead."""
    known = transport_error(error)
    if isinstance(known, (LostError, DeadlineError)):
        return ConnectError(f"no server answers at {address}: {known}")
    return known


def transport_error(error: grpc.RpcError) -> TransportError:
    """The one place where a gRPC status becomes an error of ours."""
    call: Any = error  # what gRPC raises from a call is a grpc.Call as well
    status = call.code() if hasattr(call, "code") else grpc.StatusCode.UNKNOWN
    said = call.details() if hasattr(call, "details") else str(error)
    detail = plain_text(said or "") or status.name
    kind = ERROR_OF_STATUS[status]
    if kind is BusyError and OVERSIZED in detail:
        return PeerError(f"the server sent too large a message: {detail}")
    if kind is BusyError:
        return BusyError(detail, retry_after_s=_retry_after(call.trailing_metadata() or ()))
    return kind(detail)


def _retry_after(trailers: Iterable[tuple[str, str | bytes]]) -> float:
    """The server's wish in seconds, kept between 0 and a minute whatever it says."""
    for key, value in trailers:
        if key == wire.RETRY_AFTER_KEY:
            try:
                seconds = float(value)
            except ValueError:
                break
            if not math.isfinite(seconds):
                break
            return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
    return DEFAULT_RETRY_AFTER_S
