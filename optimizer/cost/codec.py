"""Bytes and seconds of a frame, by level.

Bits an element come from the bundle's certificate (`splitpoint certify`) and hold the codec's own
frame header; seconds come from the two machines' profiles, which timed the real coders on rows of
several widths. What the wire adds was counted in real messages
(`tests/optimizer/cost/test_wire_bytes.py` holds these constants to them). Formulas: ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hwprofiles.profiles.device import CodecSpeed, DeviceProfile
from hwprofiles.profiles.rates import interpolate

# Around a codec frame in its message: sequence, position, flags and lengths in protobuf, and
# gRPC's prefix of 5 bytes (gRPC over HTTP/2, "Length-Prefixed-Message").
FRAME_HEADER_BYTES = 23
# A row's input token travels with it: a varint of 3 bytes from id 16,384 on.
TOKEN_BYTES = 3
# HTTP/2 cuts messages into frames of at most 16 KiB with 9 bytes in front (RFC 9113, section 4.1).
HTTP2_FRAME_BYTES = 1 << 14
HTTP2_HEADER_BYTES = 9
# A sampled token's answer on the way down, its timings and all wire bytes included.
ANSWER_BYTES = 54


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelCost:
    """What one codec level costs. Seconds are per frame (fixed) and per element (D a row).

    `prompt_bits_per_element`: of a prompt's rows, where they were measured apart: text that the
    model wrote itself is easier to predict than a prompt (None: the same).
    """

    name: str
    bits_per_element: float
    encode_fixed_s: float = 0.0
    encode_s_per_element: float = 0.0
    decode_fixed_s: float = 0.0
    decode_s_per_element: float = 0.0
    prompt_bits_per_element: float | None = None

    @property
    def of_prompt(self) -> LevelCost:
        """The level as it does on a prompt's rows."""
        if self.prompt_bits_per_element is None:
            return self
        return replace(self, bits_per_element=self.prompt_bits_per_element)


def level_on(
    level: LevelCost, *, edge: DeviceProfile, cloud: DeviceProfile, hidden_size: int
) -> LevelCost:
    """The level as these machines run it: the edge encodes, the cloud decodes.

    Seconds of the coder that the level's name says (`lossless`, `tabq...`, otherwise the calibrated
    one) from profiles that have timed it, between their widths; the level's own elsewhere.
    """
    kind = next((k for k in ("lossless", "tabq") if level.name.startswith(k)), "calibrated")
    encode, decode = _at_width(edge, kind, hidden_size), _at_width(cloud, kind, hidden_size)
    if encode is not None:
        level = replace(
            level,
            encode_fixed_s=encode.encode_fixed_s,
            encode_s_per_element=encode.encode_s_per_element,
        )
    if decode is not None:
        level = replace(
            level,
            decode_fixed_s=decode.decode_fixed_s,
            decode_s_per_element=decode.decode_s_per_element,
        )
    return level


def _at_width(device: DeviceProfile, kind: str, hidden_size: int) -> CodecSpeed | None:
    speeds = [speed for speed in device.codec if speed.kind == kind]
    if not speeds:
        return None
    widths = [float(speed.hidden_size) for speed in speeds]

    def between(values: list[float]) -> float:
        return float(interpolate(widths, values, hidden_size))

    return replace(
        speeds[0],
        hidden_size=hidden_size,
        encode_fixed_s=between([speed.encode_fixed_s for speed in speeds]),
        encode_s_per_element=between([speed.encode_s_per_element for speed in speeds]),
        decode_fixed_s=between([speed.decode_fixed_s for speed in speeds]),
        decode_s_per_element=between([speed.decode_s_per_element for speed in speeds]),
    )


def frame_bytes(level: LevelCost, *, hidden_size: int, num_rows: int) -> int:
    """Bytes on the wire of one message with `num_rows` rows."""
    payload = math.ceil(num_rows * hidden_size * level.bits_per_element / 8)
    message = FRAME_HEADER_BYTES + TOKEN_BYTES * num_rows + payload
    return message + HTTP2_HEADER_BYTES * math.ceil(message / HTTP2_FRAME_BYTES)


def answer_bytes(num_tokens: float) -> float:
    """Bytes on the wire of an answer that brings `num_tokens` tokens (on average)."""
    return ANSWER_BYTES + TOKEN_BYTES * (num_tokens - 1)


def encode_s(level: LevelCost, *, hidden_size: int, num_rows: int) -> float:
    """Seconds of encoding one message on the device."""
    return level.encode_fixed_s + level.encode_s_per_element * hidden_size * num_rows


def decode_s(level: LevelCost, *, hidden_size: int, num_rows: int) -> float:
    """Seconds of decoding one message in the cloud."""
    return level.decode_fixed_s + level.decode_s_per_element * hidden_size * num_rows
