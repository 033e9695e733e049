"""Files over real gRPC: what a server's refusals and silence become, and that waits end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from edge.errors import ConnectError, DeadlineError, InputError, PeerError, RefusedError
from edge.net.grpc_transport import GrpcTransport
from edge.pull.source import GrpcFileSource
from protos import wire
from protos.messages import ServedBundle
from protos.pull import (
    FetchRequest,
    FileChunk,
    FileList,
    decode_list_files_request,
    encode_file_chunk,
    encode_file_list,
)

REQUEST = FetchRequest(manifest_sha256="ab" * 32, name="edge/x")
Handler = Callable[[bytes, Any], Any]


@contextmanager
def source_of(
    list_files: Handler | None = None,
    fetch: Handler | None = None,
    stall_s: float = 30.0,
    bundle: str = "",
) -> Iterator[GrpcFileSource]:
    """A source whose server answers with these."""
    handlers: dict[str, Any] = {}
    if list_files is not None:
        handlers["ListFiles"] = grpc.unary_unary_rpc_method_handler(list_files)
    if fetch is not None:
        handlers["Fetch"] = grpc.unary_stream_rpc_method_handler(fetch)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        generic = grpc.method_handlers_generic_handler(wire.SERVICE_NAME, handlers)
        server.add_generic_rpc_handlers((generic,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        transport = GrpcTransport(f"127.0.0.1:{port}")
        try:
            yield GrpcFileSource(transport, bundle=bundle, stall_s=stall_s)
        finally:
            transport.close()
            server.stop(0).wait()


def test_the_list_and_the_chunks_come_as_they_were_sent() -> None:
    listed = FileList(manifest=b"{}")
    sent = [FileChunk(offset=0, data=b"ab"), FileChunk(offset=2, data=b"c")]

    def fetch(request: bytes, context: Any) -> Iterator[bytes]:
        yield from map(encode_file_chunk, sent)

    with source_of(lambda request, context: encode_file_list(listed), fetch) as source:
        assert source.list_files() == listed
        assert list(source.fetch(REQUEST)) == sent


def test_a_server_of_an_older_version_is_named_as_such() -> None:
    with source_of() as source, pytest.raises(RefusedError, match="version offers no files"):
        source.list_files()


MANIFEST = b"{}"


def named_bundle(**changes: Any) -> ServedBundle:
    bundle = ServedBundle(
        name="small",
        manifest_sha256=FileList(manifest=MANIFEST).sha256,
        model_id="tiny",
        model_sha256="ab" * 32,
        split=1,
        first_layer=0,
        num_layers=2,
        hidden_size=8,
        max_tokens=64,
    )
    return replace(bundle, **changes)


def test_a_bundle_that_was_named_is_asked_for_and_no_other_is_taken() -> None:
    asked: list[str] = []

    def answer(request: bytes, context: Any) -> bytes:
        asked.append(decode_list_files_request(request))
        return encode_file_list(FileList(manifest=MANIFEST, bundle=named_bundle()))

    with source_of(answer, bundle="small") as source:
        assert source.list_files().bundle == named_bundle()
    wrong = pytest.raises(PeerError, match="sent another bundle: small")
    with source_of(answer, bundle="large") as source, wrong:
        source.list_files()
    assert asked == ["small", "large"]


def test_a_server_that_cannot_choose_is_not_taken_at_its_word() -> None:
    plain = encode_file_list(FileList(manifest=MANIFEST))
    unable = pytest.raises(PeerError, match="cannot choose: leave out --model")
    with source_of(lambda request, context: plain, bundle="small") as source, unable:
        source.list_files()


def test_a_name_that_cannot_be_is_bad_input() -> None:
    for name in ("n" * 256, "a\nb"):
        with pytest.raises(InputError, match="--model"), source_of(bundle=name):
            pass


def test_a_refusal_says_what_the_server_said() -> None:
    def refuse(request: bytes, context: Any) -> None:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not here")

    with source_of(refuse) as source, pytest.raises(RefusedError, match="not here"):
        source.list_files()


def test_nonsense_is_a_peer_error() -> None:
    def fetch(request: bytes, context: Any) -> Iterator[bytes]:
        yield b"\xff\xff"

    with source_of(lambda request, context: b"", fetch) as source:
        with pytest.raises(PeerError, match="malformed"):
            source.list_files()
        with pytest.raises(PeerError, match="malformed"):
            list(source.fetch(REQUEST))


def test_a_server_that_falls_silent_does_not_hold_the_device() -> None:
    over = threading.Event()

    def fetch(request: bytes, context: Any) -> Iterator[bytes]:
        yield encode_file_chunk(FileChunk(offset=0, data=b"ab"))
        over.wait(60)

    with source_of(fetch=fetch, stall_s=0.2) as source:
        chunks = source.fetch(REQUEST)
        assert next(chunks).data == b"ab"
        with pytest.raises(DeadlineError, match="nothing came"):
            next(chunks)
        over.set()


def test_nobody_at_the_address_is_known_at_once(tmp_path: Path) -> None:
    transport = GrpcTransport("127.0.0.1:1")
    with pytest.raises(ConnectError, match=r"no server answers at 127\.0\.0\.1:1"):
        GrpcFileSource(transport).list_files()
    transport.close()
