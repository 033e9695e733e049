"""How many bytes a message takes on the wire besides its payload.

Counted in real messages; `tests/protos/test_sizes.py` holds these constants to them.
"""

from __future__ import annotations

from typing import Final

# Around a codec frame in its message: sequence, position, flags and lengths in protobuf, and
# gRPC's prefix of 5 bytes (gRPC over HTTP/2, "Length-Prefixed-Message").
FRAME_HEADER_BYTES: Final = 23
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
