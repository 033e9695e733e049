"""What a message costs beside its codec frame, held to real messages."""

from __future__ import annotations

import numpy as np
import pytest

from codec.ladder import Ladder
from edge.net.grpc_transport import MESSAGE_PREFIX_BYTES
from optimizer.cost.codec import LevelCost, answer_bytes, frame_bytes
from protos import sizes, wire
from protos.messages import Frame, Result, Timings

WIDTH = 576
LADDER = Ladder.lossless(WIDTH)


def on_the_wire(message: bytes) -> int:
    """gRPC's prefix, and HTTP/2's frame headers for each 16 KiB."""
    size = MESSAGE_PREFIX_BYTES + len(message)
    return size + 9 * -(-size // (1 << 14))


@pytest.mark.parametrize("num_rows", [1, 2, 8, 32, 128])
def test_a_frame_costs_what_the_model_says(num_rows: int) -> None:
    ids = np.arange(20_000, 20_000 + num_rows)
    rows = np.random.default_rng(0).standard_normal((num_rows, WIDTH)).astype(np.float32)
    hidden = LADDER.encode("lossless", rows, ids)
    frame = Frame(
        sequence=300, first_position=900, token_ids=tuple(ids.tolist()), hidden=hidden,
        num_drafts=min(num_rows - 1, 4),
    )  # fmt: skip
    level = LevelCost(name="lossless", bits_per_element=8 * len(hidden) / (num_rows * WIDTH))
    predicted = frame_bytes(level, hidden_size=WIDTH, num_rows=num_rows)
    assert abs(predicted - on_the_wire(wire.encode_edge(frame))) <= 4


@pytest.mark.parametrize("num_rows", [1, 42, 43, 128, 1024])
@pytest.mark.parametrize(("sequence", "first_position"), [(0, 0), (1, 1024), (300, 20_000)])
@pytest.mark.parametrize("want_token", [True, False])
@pytest.mark.parametrize("kv_bytes", [0, 100, 20_000, 3_000_000])
def test_a_token_frame_costs_exactly_what_the_model_says(
    num_rows: int, sequence: int, first_position: int, want_token: bool, kv_bytes: int
) -> None:
    frame = Frame(
        sequence=sequence,
        first_position=first_position,
        token_ids=tuple(range(20_000, 20_000 + num_rows)),
        hidden=b"",
        want_token=want_token,
        kv=bytes(kv_bytes),
    )
    predicted = sizes.token_frame_bytes(
        num_rows,
        sequence=sequence,
        first_position=first_position,
        want_token=want_token,
        kv_bytes=kv_bytes,
    )
    assert predicted == on_the_wire(wire.encode_edge(frame))


@pytest.mark.parametrize("num_tokens", [1, 3, 9])
def test_an_answer_costs_what_the_model_says(num_tokens: int) -> None:
    timings = Timings(
        codec_s=1e-4, queue_s=1e-3, compute_s=0.02, sample_s=1e-4, batch_sessions=3, batch_rows=5
    )
    result = Result(sequence=300, token_ids=(20_000,) * num_tokens, num_tokens=900, timings=timings)
    assert abs(answer_bytes(num_tokens) - on_the_wire(wire.encode_cloud(result))) <= 4


def test_the_overhead_of_a_one_row_message_is_what_its_payload_does_not_take() -> None:
    assert sizes.message_bytes(0, num_rows=1) == sizes.ONE_ROW_OVERHEAD_BYTES
    assert sizes.message_bytes(300, num_rows=1) == 300 + sizes.ONE_ROW_OVERHEAD_BYTES
    # A message beyond 16 KiB needs a second HTTP/2 frame.
    two_frames = sizes.message_bytes(17_000, num_rows=1)
    assert two_frames == 17_000 + sizes.ONE_ROW_OVERHEAD_BYTES + sizes.HTTP2_HEADER_BYTES
