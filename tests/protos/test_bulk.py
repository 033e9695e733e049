"""Large messages are measured before they are parsed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import decode, wire
from protos import split_inference_pb2 as pb
from protos.bulk import check_rest
from protos.errors import RemoteWireError
from protos.messages import Frame


def frame(num_ids: int, num_bytes: int) -> bytes:
    ids = [300_000_000] * num_ids
    message = pb.EdgeMessage(frame=pb.Frame(token_ids=ids, hidden=bytes(num_bytes)))
    return message.SerializeToString()


def test_rows_of_the_largest_frame_pass() -> None:
    data = frame(1024, 32 << 20)
    got = wire.decode_edge(data)
    assert isinstance(got, Frame)
    assert len(got.hidden) == 32 << 20


@pytest.mark.parametrize(
    "data",
    [
        frame(6 << 20, 0),
        frame(20_000, 1 << 20),
        b"".join(b"\x12\x02\x18\x01" for _ in range(1 << 20)),  # a frame of one id, repeated
        b"\x1a\x00" * (1 << 20),  # Close, repeated
        bytes([0x12, 0x80, 0x80, 0x80, 0x01]) + b"\x18\x01" * (1 << 20),  # ids one by one
    ],
    ids=["ids alone", "ids beside rows", "frames", "closes", "unpacked ids"],
)
def test_a_large_message_of_anything_else_is_refused_unparsed(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_parse", lambda *_: pytest.fail("it was parsed"))
    with pytest.raises(RemoteWireError, match="beside the hidden states"):
        wire.decode_edge(data)


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
