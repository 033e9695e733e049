"""The link probe's stream over gRPC: one call of `Probe`, answers stamped as they arrive."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType

import grpc

from edge.errors import DeadlineError, TransportError
from edge.net.grpc_transport import (
    MAX_UNREAD,
    GrpcTransport,
    connect_error,
    malformed,
    transport_error,
)
from edge.net.link_probe import Arrival
from protos import wire
from protos.errors import RemoteWireError
from protos.messages import ProbeChunk


class GrpcProbeStream:
    """A context manager: opens the call on entry, ends it on exit."""

    def __init__(self, transport: GrpcTransport) -> None:
        self._transport = transport
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Arrival | TransportError | None] = queue.SimpleQueue()

    def __enter__(self) -> GrpcProbeStream:
        self._call = self._transport.raw_stream(wire.PROBE_PATH, self._requests())
        self._reader = threading.Thread(target=self._read, name="link-probe", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._outbox.put(None)
        self._call.cancel()
        self._reader.join(timeout=2.0)

    def send(self, chunk: ProbeChunk) -> None:
        """See ProbeStream."""
        self._outbox.put(wire.encode_probe(chunk))

    def receive(self, timeout_s: float) -> Arrival:
        """See ProbeStream."""
        try:
            item = self._inbox.get(timeout=timeout_s)
        except queue.Empty as error:
            raise DeadlineError(f"the link probe had no answer within {timeout_s:g} s") from error
        if isinstance(item, TransportError):
            raise item
        if item is None:
            raise DeadlineError("the server ended the link probe early")
        return item

    def _requests(self) -> Iterator[bytes]:
        while (data := self._outbox.get()) is not None:
            yield data

    def _read(self) -> None:
        is_answered = False
        try:
            for data in self._call:
                at_s = time.perf_counter()
                chunk = wire.decode_probe(data)
                is_answered = True
                if self._inbox.qsize() >= MAX_UNREAD:
                    raise RemoteWireError("more answers than there were questions")
                self._inbox.put(Arrival(chunk, at_s))
            self._inbox.put(None)
        except RemoteWireError as error:
            self._call.cancel()
            self._inbox.put(malformed(error))
        except grpc.RpcError as error:
            transport = self._transport
            self._inbox.put(
                transport_error(error)
                if is_answered
                else transport.explained(connect_error(error, transport.address))
            )
