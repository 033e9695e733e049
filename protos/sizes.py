"""How many bytes a message takes on the wire besides its payload.

Counted in real messages; `tests/protos/test_sizes.py` holds these constants to them.
"""

from __future__ import annotations

from typing import Final

# Around a codec frame in its message: sequence, position, flags and lengths in protobuf, and
# gRPC's prefix of 5 bytes (gRPC over HTTP/2, "Length-Prefixed-Message").
FRAME_HEADER_BYTES: Final = 23
MESSAGE_PREFIX_BYTES: Final = 5  # gRPC's own
# A row's input token travels with it: a varint of 3 bytes from id 16,384 on.
TOKEN_BYTES: Final = 3
# HTTP/2 cuts messages into frames of at most 16 KiB with 9 bytes in front (RFC 9113, section 4.1).
HTTP2_FRAME_BYTES: Final = 1 << 14
HTTP2_HEADER_BYTES: Final = 9
# A sampled token's answer on the way down, its timings and all wire bytes included.
ANSWER_BYTES: Final = 54
# What a message of one row takes besides its codec frame.
ONE_ROW_OVERHEAD_BYTES: Final = FRAME_HEADER_BYTES + TOKEN_BYTES + HTTP2_HEADER_BYTES


def message_bytes(payload_bytes: int, *, num_rows: int) -> int:
    """Bytes on the wire of one message: a codec frame of `payload_bytes`, and the rows' tokens."""
    message = FRAME_HEADER_BYTES + TOKEN_BYTES * num_rows + payload_bytes
    return message + HTTP2_HEADER_BYTES * -(-message // HTTP2_FRAME_BYTES)


def token_frame_bytes(
    num_rows: int,
    *,
    sequence: int = 0,
    first_position: int = 0,
    want_token: bool,
    kv_bytes: int = 0,
) -> int:
    """Bytes on the wire of a token frame: a message that brings ids, and `kv_bytes` of their keys
    and values.

    Exact where every id takes `TOKEN_BYTES` (16,384 to 2,097,151). Fields of value 0 are not sent
    (protobuf's wire format: a tag of one byte, then the value).
    """
    numbers = sum(1 + _varint_bytes(value) for value in (sequence, first_position) if value)
    ids = TOKEN_BYTES * num_rows
    frame = numbers + 1 + _varint_bytes(ids) + ids + 2 * want_token
    if kv_bytes:
        frame += 1 + _varint_bytes(kv_bytes) + kv_bytes
    message = MESSAGE_PREFIX_BYTES + 1 + _varint_bytes(frame) + frame
    return message + HTTP2_HEADER_BYTES * -(-message // HTTP2_FRAME_BYTES)


def _varint_bytes(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))
