"""Bytes and seconds of a frame, by level.

Bits an element come from the bundle's certificate (`splitpoint certify`) and hold the codec's own
frame header. Seconds come from the two machines' profiles, which timed the real coders on rows of
several widths. What the wire adds is in `protos.sizes`. Formulas: ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from codec.levels.registry import kind_of
from hwprofiles.profiles.device import CodecSpeed, DeviceProfile
from hwprofiles.profiles.rates import interpolate
from protos import sizes


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


def as_ids(level: LevelCost) -> LevelCost:
    """What a token frame costs in the level's place: ids alone, nothing to encode or decode."""
    return LevelCost(name=level.name, bits_per_element=0.0)


def level_on(
    level: LevelCost, *, edge: DeviceProfile, cloud: DeviceProfile, hidden_size: int
) -> LevelCost:
    """The level as these machines run it: the edge encodes, the cloud decodes.

    Seconds of the level's kind of coder from profiles that have timed it, between their widths;
    the level's own elsewhere.
    """
    kind = kind_of(level.name).name
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
    return sizes.message_bytes(payload, num_rows=num_rows)


def answer_bytes(num_tokens: float) -> float:
    """Bytes on the wire of an answer that brings `num_tokens` tokens (on average)."""
    return sizes.ANSWER_BYTES + sizes.TOKEN_BYTES * (num_tokens - 1)


def encode_s(level: LevelCost, *, hidden_size: int, num_rows: int) -> float:
    """Seconds of encoding one message on the device."""
    return level.encode_fixed_s + level.encode_s_per_element * hidden_size * num_rows


def decode_s(level: LevelCost, *, hidden_size: int, num_rows: int) -> float:
    """Seconds of decoding one message in the cloud."""
    return level.decode_fixed_s + level.decode_s_per_element * hidden_size * num_rows
