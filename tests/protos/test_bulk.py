"""Large messages are measured before they are parsed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import decode, wire
from protos import split_inference_pb2 as pb
from protos.bulk import check_rest
from protos.errors import RemoteWireError
from protos.messages import Frame
from tests.edge.generation.remote import open_request


def frame(num_ids: int, num_bytes: int) -> bytes:
    ids = [300_000_000] * num_ids
    message = pb.EdgeMessage(frame=pb.Frame(token_ids=ids, hidden=bytes(num_bytes)))
    return message.SerializeToString()


def test_rows_of_the_largest_frame_pass() -> None:
    data = frame(1024, 32 << 20)
    got = wire.decode_edge(data)
    assert isinstance(got, Frame)
    assert len(got.hidden) == 32 << 20


def test_keys_and_values_of_the_largest_frame_pass() -> None:
    message = pb.EdgeMessage(frame=pb.Frame(token_ids=[1] * 512, kv=bytes(32 << 20)))
    got = wire.decode_edge(message.SerializeToString())
    assert isinstance(got, Frame)
    assert len(got.kv) == 32 << 20


@pytest.mark.parametrize(
    "data",
    [
        frame(6 << 20, 0),
        frame(20_000, 1 << 20),
        b"".join(b"\x12\x02\x18\x01" for _ in range(1 << 20)),  # a frame of one id, repeated
        b"\x12\xaa\x03" + b"\xfa\x3e\x00" * 142 + frame(1, 600),  # unknown fields in a small frame
        b"\xfa\x3e\x00" * 21_000,
        b"\x0a\xaa\x03" + b"\xfa\x3e\x00" * 142 + frame(1, 600),  # in an Open
        b"\x0a\xad\x03\x42\xaa\x03" + b"\xfa\x3e\x00" * 142 + frame(1, 600),  # in its sampling
        b"\x1a\xaa\x03" + b"\xfa\x3e\x00" * 142 + frame(1, 600),  # in a Close
        b"\x1a\x00" * (1 << 20),  # Close, repeated
        bytes([0x12, 0x80, 0x80, 0x80, 0x01]) + b"\x18\x01" * (1 << 20),  # ids one by one
    ],
    ids=[
        "ids alone",
        "ids beside rows",
        "frames",
        "unknown in a frame",
        "unknown outside",
        "unknown in an Open",
        "unknown in its sampling",
        "unknown in a Close",
        "closes",
        "unpacked ids",
    ],
)
def test_a_large_message_of_anything_else_is_refused_unparsed(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "parse", lambda *_: pytest.fail("it was parsed"))
    with pytest.raises(RemoteWireError, match=r"beside the hidden states|more than 1088 fields"):
        wire.decode_edge(data)


def test_honest_messages_of_many_fields_pass() -> None:
    unpacked = b"".join(b"\x18\x07" for _ in range(1024))  # token ids of another protobuf library
    size = len(unpacked)
    outer = b"\x12" + bytes([size & 0x7F | 0x80, size >> 7]) + unpacked
    got = wire.decode_edge(outer)
    assert isinstance(got, Frame)
    assert len(got.token_ids) == 1024
    known = replace(open_request(), prefix_hashes=tuple(bytes(32) for _ in range(1024)))
    assert wire.decode_edge(wire.encode_edge(known)) == known


def test_a_newer_edge_may_say_a_little_more() -> None:
    data = frame(1, 600) + b"\xfa\x3e\x00" * 16
    assert isinstance(wire.decode_edge(data), Frame)


@settings(deadline=None)  # beside other work
@given(st.binary(max_size=300))
def test_rubbish_is_measured_without_any_other_error(data: bytes) -> None:
    try:
        check_rest(data, 100)
    except RemoteWireError:
        return


@settings(deadline=None)  # beside other work
@given(st.integers(0, 50), st.integers(0, 500), st.integers(0, 300))
def test_the_rest_is_all_but_the_rows(num_ids: int, num_bytes: int, most: int) -> None:
    data = frame(num_ids, num_bytes)
    rest = len(data) - num_bytes
    if rest > most + 16:  # tags and lengths of the outer message are not counted to the byte
        with pytest.raises(RemoteWireError):
            check_rest(data, most)
    if rest <= most:
        check_rest(data, most)
