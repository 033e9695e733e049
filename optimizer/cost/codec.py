"""Bytes and seconds of a frame, by level.

Bits an element come from the bundle's certificate (`splitpoint certify`). Formulas: ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Header of a frame, and the wire's own bytes around it (protobuf fields, gRPC prefix, HTTP/2
# frame header): what a message costs before its first row.
FRAME_HEADER_BYTES = 64
# A sampled token's answer on the way down, wire bytes included.
ANSWER_BYTES = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelCost:
    """What one codec level costs. Seconds are per frame (fixed) and per element (D a row)."""

    name: str
    bits_per_element: float
    encode_fixed_s: float = 0.0
    encode_s_per_element: float = 0.0
    decode_fixed_s: float = 0.0
    decode_s_per_element: float = 0.0


def frame_bytes(level: LevelCost, *, hidden_size: int, num_rows: int) -> int:
    """Bytes on the wire of one message with `num_rows` rows."""
    return FRAME_HEADER_BYTES + math.ceil(num_rows * hidden_size * level.bits_per_element / 8)


def encode_s(level: LevelCost, *, hidden_size: int, num_rows: int) -> float:
    """Seconds of encoding one message on the device."""
    return level.encode_fixed_s + level.encode_s_per_element * hidden_size * num_rows


def decode_s(level: LevelCost, *, hidden_size: int, num_rows: int) -> float:
    """Seconds of decoding one message in the cloud."""
    return level.decode_fixed_s + level.decode_s_per_element * hidden_size * num_rows
