"""Messages survive the wire; hostile bytes give RemoteWireError and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding.params import SamplingParams
from protos import wire
from protos.errors import LocalWireError, RemoteWireError
from protos.messages import (
    Close,
    Closed,
    CloudMessage,
    Description,
    EdgeMessage,
    Frame,
    Open,
    Opened,
    ProbeChunk,
    Result,
    Timings,
)
from protos.prefix import begin_chain

SHA = "ab" * 32

EDGE_MESSAGES: list[tuple[EdgeMessage, str]] = [
    (
        Open(
            session_id="s-1",
            model_sha256=SHA,
            split=10,
            hidden_size=576,
            codec_tables_sha256=SHA,
            max_tokens=2048,
            sampling=SamplingParams(temperature=0.5, top_k=40, seed=9),
        ),
        "0aa8010801120"
        "3732d311a40" + SHA.encode().hex() + "200a28c00432"
        "40" + SHA.encode().hex() + "38801042130d0000003f150000803f18282d0000803f3009",
    ),
    (
        Frame(sequence=2, first_position=5, token_ids=(7, 300), hidden=b"\x01\x02", num_drafts=1),
        "1211080210051a0307ac022202010228013001",
    ),
    (Close(), "1a00"),
]

CLOUD_MESSAGES: list[tuple[CloudMessage, str]] = [
    (Opened(session_id="s-1", max_frame_tokens=512), "0a080a03732d31108004"),
    (
        Result(
            sequence=2,
            token_ids=(7, 8),
            logprobs=(-0.5, -0.25),
            num_tokens=8,
            timings=Timings(compute_s=0.5, batch_sessions=2, batch_rows=3),
        ),
        "121d0802120207081a08000000bf000080be20082a091d0000003f28023003",
    ),
    (Closed(detail="drained"), "1a090a07647261696e6564"),
    (
        Opened(session_id="s-1", max_frame_tokens=512, max_frames_in_flight=32),
        "0a0a0a03732d311080042020",
    ),
]


@pytest.mark.parametrize(("message", "golden"), EDGE_MESSAGES)
def test_edge_messages_have_golden_bytes_and_come_back_equal(
    message: EdgeMessage, golden: str
) -> None:
    assert wire.encode_edge(message).hex() == golden
    assert wire.decode_edge(bytes.fromhex(golden)) == message


@pytest.mark.parametrize(("message", "golden"), CLOUD_MESSAGES)
def test_cloud_messages_have_golden_bytes_and_come_back_equal(
    message: CloudMessage, golden: str
) -> None:
    assert wire.encode_cloud(message).hex() == golden
    assert wire.decode_cloud(bytes.fromhex(golden)) == message


def test_descriptions_and_probes_come_back_equal() -> None:
    description = Description(
        model_id="m",
        model_sha256=SHA,
        first_layer=5,
        num_layers=30,
        hidden_size=576,
        max_tokens=2048,
        active_sessions=3,
        kv_bytes_in_use=1 << 33,
        kv_bytes_limit=1 << 34,
    )
    assert wire.decode_description(wire.encode_description(description)) == description
    chunk = ProbeChunk(sequence=1, padding_bytes=100, want_bytes=7)
    assert wire.decode_probe(wire.encode_probe(chunk)) == chunk


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_the_wire_error(data: bytes) -> None:
    for decode in (wire.decode_edge, wire.decode_cloud, wire.decode_description, wire.decode_probe):
        try:
            decode(data)
        except RemoteWireError:
            continue


@given(st.sampled_from(EDGE_MESSAGES), st.integers(0, 400), st.integers(0, 255))
def test_changed_bytes_raise_nothing_but_the_wire_error(
    case: tuple[EdgeMessage, str], index: int, value: int
) -> None:
    data = bytearray(bytes.fromhex(case[1]))
    data[index % len(data)] = value
    try:
        wire.decode_edge(bytes(data))
    except RemoteWireError:
        return


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (Frame(sequence=0, first_position=0, token_ids=(), hidden=b""), "token_ids"),
        (Frame(sequence=0, first_position=0, token_ids=(1,), hidden=b"", num_drafts=1), "num_dra"),
        (
            Frame(sequence=0, first_position=0, token_ids=(1,) * 1025, hidden=b""),
            "token_ids",
        ),
        (
            Frame(sequence=0, first_position=wire.MAX_TOKENS + 1, token_ids=(1,), hidden=b""),
            "first_position",
        ),
    ],
)
def test_frames_out_of_range_are_refused_with_the_field(frame: Frame, reason: str) -> None:
    with pytest.raises(RemoteWireError, match=reason):
        wire.decode_edge(wire.encode_edge(frame))


@pytest.mark.parametrize("session_id", ["", "x" * 65, "a b", "ü", "../x"])
def test_session_ids_are_plain_words(session_id: str) -> None:
    opened = Opened(session_id=session_id, max_frame_tokens=1)
    with pytest.raises(RemoteWireError, match="session_id"):
        wire.decode_cloud(wire.encode_cloud(opened))


def test_a_server_that_does_not_say_takes_sixteen_frames_at_once() -> None:
    opened = wire.decode_cloud(bytes.fromhex("0a080a03732d31108004"))
    assert isinstance(opened, Opened)
    assert opened.max_frames_in_flight == 16


@pytest.mark.parametrize("count", [0, wire.MAX_FRAMES_IN_FLIGHT + 1])
def test_a_server_must_take_some_frames_but_not_any_number(count: int) -> None:
    opened = Opened(session_id="s", max_frame_tokens=1, max_frames_in_flight=count)
    with pytest.raises(RemoteWireError, match="max_frames_in_flight"):
        wire.decode_cloud(wire.encode_cloud(opened))


def test_an_oversized_message_is_refused_on_both_sides() -> None:
    frame = Frame(
        sequence=0, first_position=0, token_ids=(1,), hidden=bytes(wire.MAX_MESSAGE_BYTES)
    )
    with pytest.raises(LocalWireError, match="at most"):
        wire.encode_edge(frame)
    with pytest.raises(RemoteWireError, match="at most"):
        wire.decode_edge(bytes(wire.MAX_MESSAGE_BYTES + 1))


def test_a_negative_number_is_a_local_error() -> None:
    with pytest.raises(LocalWireError):
        wire.encode_edge(Frame(sequence=-1, first_position=0, token_ids=(1,), hidden=b""))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.01])
def test_log_probabilities_that_are_none_are_refused(value: float) -> None:
    result = Result(sequence=0, token_ids=(1,), logprobs=(value,), num_tokens=1)
    with pytest.raises(RemoteWireError, match="finite and not above 0"):
        wire.decode_cloud(wire.encode_cloud(result))


def test_a_log_probability_may_round_to_just_above_zero() -> None:
    result = Result(sequence=0, token_ids=(1,), logprobs=(1e-6,), num_tokens=1)
    decoded = wire.decode_cloud(wire.encode_cloud(result))
    assert isinstance(decoded, Result)


@pytest.mark.parametrize("value", [float("nan"), -1e-9, 1e6])
def test_times_that_are_none_are_refused(value: float) -> None:
    result = Result(sequence=0, token_ids=(), num_tokens=1, timings=Timings(queue_s=value))
    with pytest.raises(RemoteWireError, match="timings must be finite"):
        wire.decode_cloud(wire.encode_cloud(result))


def test_a_peers_words_become_one_line_that_a_terminal_can_show() -> None:
    closed = wire.decode_cloud(wire.encode_cloud(Closed(detail="bye\n\x1b[31m" + "x" * 380)))
    assert isinstance(closed, Closed)
    assert closed.detail.startswith("bye??[31m")
    assert closed.detail.isprintable()


def _opens(salt: bytes = b"s" * 32) -> tuple[Open, Open]:
    """The Open of the golden bytes, and the same with a salt."""
    plain = EDGE_MESSAGES[0][0]
    assert isinstance(plain, Open)
    return plain, replace(plain, prefix_salt=salt)


def test_a_salt_travels_and_an_open_without_one_is_that_of_the_last_version() -> None:
    plain, salted = _opens()
    assert wire.decode_edge(wire.encode_edge(salted)) == salted
    assert begin_chain(salted) != begin_chain(plain)
    assert salted.prefix_salt.hex() not in repr(salted)


@pytest.mark.parametrize("size", [1, 15, 65])
def test_a_salt_is_too_long_to_guess(size: int) -> None:
    _, salted = _opens(bytes(size))
    with pytest.raises(RemoteWireError, match="prefix_salt"):
        wire.decode_edge(wire.encode_edge(salted))
