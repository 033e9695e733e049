"""A server that lies about its files writes nothing outside the bundle, and nothing wrong in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.errors import EdgeError, PeerError
from edge.pull.pulling import PullSettings, pull
from edge.pull.wanted import wanted_files
from protos import split_inference_pb2 as pb
from protos.errors import RemoteWireError
from protos.pull import (
    MAX_CHUNK_BYTES,
    FetchRequest,
    FileChunk,
    FileList,
    decode_fetch_request,
    decode_file_chunk,
    decode_file_list,
    encode_fetch_request,
    encode_file_chunk,
    encode_file_list,
)
from tests.edge.pull.fake_source import FILES, MODEL, FakeSource, manifest_of, record_of

AT_ONCE = PullSettings(sleep=lambda seconds: None)


def with_files(**records: Any) -> bytes:
    values = json.loads(manifest_of(FILES))
    values["files"].update(records)
    return json.dumps(values).encode()


def named(name: str) -> bytes:
    return with_files(**{name: record_of(b"x")})


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (named("/etc/passwd"), "outside the bundle"),
        (named("../outside"), "outside the bundle"),
        (named("edge/../../outside"), "outside the bundle"),
        (named("edge/./x"), "no name of a file"),
        (named("edge//x"), "no name of a file"),
        (named("edge\\..\\x"), "no name of a file"),
        (named("edge/x\n"), "no name of a file"),
        (named("edge/x\0"), "no name of a file"),
        (named("edge/" + "x" * 300), "no name of a file"),
        (named("manifest.json"), "no name of a file"),
        (named("edge/FRONT.onnx"), "twice"),
        (named("edge/front.onnx/data"), "below a file"),
        (named("edge/1/2/3/4/5/6"), "too deep"),
        (manifest_of({"edge/front.onnx": b"x"}), "no files for a device"),
        (manifest_of({"plan.yaml": b"x"}), "no files for a device"),
        (manifest_of({**FILES, **{f"edge/{n}": b"" for n in range(4100)}}), "4104 files"),
        (manifest_of(FILES).replace(b'"format": 1', b'"format": 2'), "bundle format 2"),
        (manifest_of(FILES).replace(b'"edge/front.onnx"', b'"plan.yaml"'), "duplicate key"),
        (with_files(**{"edge/x": {"num_bytes": -1, "sha256": "ab" * 32}}), "not a size"),
        (with_files(**{"edge/x": {"num_bytes": 1, "sha256": "../x"}}), "not a size"),
        (with_files(**{"edge/x": {"num_bytes": 1 << 41, "sha256": "ab" * 32}}), "more than"),
        (b"[" * 1000, "manifest"),
        (b"\xff", "manifest"),
    ],
)
def test_a_hostile_list_is_refused_in_one_line(
    tmp_path: Path, manifest: bytes, reason: str
) -> None:
    source = FakeSource(manifest=manifest)
    with pytest.raises(PeerError, match=reason) as caught:
        pull(source, tmp_path / "bundle", AT_ONCE)
    assert "\n" not in str(caught.value)
    assert source.requests == []
    assert list(tmp_path.iterdir()) == []


def test_the_clouds_files_are_never_asked_for(tmp_path: Path) -> None:
    records = wanted_files(FakeSource().list_files()).records
    assert set(records) == set(FILES)


def chunk(offset: int, data: bytes) -> FileChunk:
    return FileChunk(offset=offset, data=data)


LIES: list[tuple[Callable[[FetchRequest, bytes], Iterator[FileChunk]], str]] = [
    (lambda request, content: iter([chunk(3, content[3:])]), "do not follow"),
    (lambda request, content: iter([chunk(0, content + b"more")]), "longer"),
    (lambda request, content: (chunk(n, b"x") for n in range(1 << 40)), "longer"),
    (lambda request, content: iter([chunk(0, bytes(len(content)))]), "SHA-256"),
    (lambda request, content: iter([]), "ended early"),
    (lambda request, content: iter([chunk(request.offset, content[:1])]), "SHA-256"),
]


@pytest.mark.parametrize(("lie", "reason"), LIES)
def test_a_hostile_file_is_refused_and_no_bundle_is_left(
    tmp_path: Path, lie: Callable[[FetchRequest, bytes], Iterator[FileChunk]], reason: str
) -> None:
    with pytest.raises(EdgeError, match=reason):
        pull(FakeSource(chunks=lie), tmp_path / "bundle", AT_ONCE)
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.pull"]


def test_the_messages_come_back_equal() -> None:
    listed = FileList(manifest=manifest_of(FILES))
    assert decode_file_list(encode_file_list(listed)) == listed
    request = FetchRequest(manifest_sha256=MODEL, name="edge/x", offset=5, max_chunk_bytes=2048)
    assert decode_fetch_request(encode_fetch_request(request)) == request
    assert encode_fetch_request(request).hex() == (
        "08011240" + MODEL.encode().hex() + "1a06656467652f7820052880" + "10"
    )
    one = chunk(7, b"abc")
    assert decode_file_chunk(encode_file_chunk(one)) == one
    assert encode_file_chunk(one).hex() == "08071203616263"


@pytest.mark.parametrize(
    ("decode", "message", "reason"),
    [
        (decode_file_list, pb.FileList(protocol_version=1), "manifest"),
        (decode_file_list, pb.FileList(protocol_version=9, manifest=b"x"), "version 9"),
        (
            decode_file_list,
            pb.FileList(protocol_version=1, manifest=b"x", manifest_sha256=MODEL),
            "changed on its way",
        ),
        (decode_file_chunk, pb.FileChunk(offset=0), "size of a chunk"),
        (decode_file_chunk, pb.FileChunk(data=bytes(MAX_CHUNK_BYTES + 1)), "size of a chunk"),
        (decode_file_chunk, pb.FileChunk(offset=1 << 50, data=b"x"), "offset"),
        (decode_fetch_request, pb.FetchRequest(protocol_version=1, name="x"), "manifest_sha256"),
        (
            decode_fetch_request,
            pb.FetchRequest(protocol_version=1, manifest_sha256=MODEL, name="x" * 256),
            "length of name",
        ),
    ],
)
def test_messages_out_of_range_are_refused(
    decode: Callable[[bytes], object], message: Any, reason: str
) -> None:
    with pytest.raises(RemoteWireError, match=reason):
        decode(message.SerializeToString())


def test_a_chunk_size_that_nobody_wants_is_brought_into_its_range() -> None:
    for wanted, given in ((0, MAX_CHUNK_BYTES), (1, 1024), (1 << 31, MAX_CHUNK_BYTES)):
        message = pb.FetchRequest(
            protocol_version=1, manifest_sha256=MODEL, name="x", max_chunk_bytes=wanted
        )
        assert decode_fetch_request(message.SerializeToString()).max_chunk_bytes == given
