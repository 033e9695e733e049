"""Every gRPC status has one meaning here; a server's retry-after is taken with care."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import grpc
import pytest

from edge.errors import BusyError, ConnectError, PeerError, RefusedError, TransportError
from edge.net.channel import ServerChannel
from edge.net.grpc_transport import (
    ERROR_OF_STATUS,
    MAX_UNREAD,
    GrpcTransport,
    _GrpcStream,
    transport_error,
)
from edge.net.route import Route
from protos import wire
from protos.messages import Open, Result


class FakeRpcError(grpc.RpcError):
    def __init__(self, status: grpc.StatusCode, trailers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__()
        self._status = status
        self._trailers = trailers

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return "because"

    def trailing_metadata(self) -> Any:
        return self._trailers


def test_no_grpc_status_is_unmapped() -> None:
    assert set(ERROR_OF_STATUS) == set(grpc.StatusCode)
    for status in grpc.StatusCode:
        error = transport_error(FakeRpcError(status))
        assert isinstance(error, TransportError)
        assert str(error) == "because"


@pytest.mark.parametrize(
    ("said", "understood_s"),
    [("2.5", 2.5), ("-1", 0.0), ("1e9", 60.0), ("nonsense", 1.0), ("nan", 1.0), (None, 1.0)],
)
def test_retry_after_is_bounded_whatever_the_server_says(
    said: str | None, understood_s: float
) -> None:
    trailers = (("retry-after-s", said),) if said is not None else ()
    error = transport_error(FakeRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers))
    assert isinstance(error, BusyError)
    assert error.retry_after_s == understood_s


def test_a_mismatch_is_a_refusal() -> None:
    error = transport_error(FakeRpcError(grpc.StatusCode.FAILED_PRECONDITION))
    assert isinstance(error, RefusedError)


def test_an_address_where_nobody_answers_is_named() -> None:
    transport = GrpcTransport("127.0.0.1:1")
    with pytest.raises(ConnectError, match=r"127\.0\.0\.1:1 .*waited 0\.2 s"):
        transport.describe(timeout_s=0.2)
    transport.close()


def test_a_server_that_answers_without_end_fills_no_memory() -> None:
    answer = wire.encode_cloud(Result(sequence=0, token_ids=(), num_tokens=1))

    class Flood:
        def __init__(self) -> None:
            self.left = 3 * MAX_UNREAD
            self.cancelled = False

        def __iter__(self) -> Flood:
            return self

        def __next__(self) -> bytes:
            if not self.left:
                raise StopIteration
            self.left -= 1
            return answer

        def initial_metadata(self) -> tuple[tuple[str, str], ...]:
            return (("x-replica", "r1"),)

        def cancel(self) -> None:
            self.cancelled = True

    flood = Flood()
    request = Open(
        session_id="s",
        model_sha256="0" * 64,
        split=1,
        hidden_size=4,
        codec_tables_sha256="0" * 64,
        max_tokens=8,
    )
    channel = Mock(ServerChannel, stream=Mock(return_value=flood))
    route = Route()
    stream = _GrpcStream(channel, request, "somewhere", route=route)
    stream._reader.join(10)
    assert route.replica == "r1"
    assert flood.cancelled
    assert flood.left > MAX_UNREAD
    for _ in range(MAX_UNREAD):
        stream.receive(1.0)
    with pytest.raises(PeerError, match="more answers"):
        stream.receive(1.0)
