"""Codec levels as the planner knows them: bits an element, and seconds of encoding and decoding.

Bits come from certificates where there are some, seconds from device profiles that timed the codec.
The defaults: bits that SmolLM2-135M needed at its dearest split in the codec's first format
(one-row frames, rounded up; the present one needs fewer at the one split measured so far, see
docs/codec.md), seconds of one core of this project's machine with the compiled kernel, rounded up.
"""

from __future__ import annotations

from dataclasses import replace

from optimizer.cost.codec import LevelCost
from optimizer.quality import QualityModel


def _level(
    name: str, bits: float, encode: tuple[float, float], decode: tuple[float, float]
) -> LevelCost:
    return LevelCost(
        name=name,
        bits_per_element=bits,
        encode_fixed_s=encode[0],
        encode_s_per_element=encode[1],
        decode_fixed_s=decode[0],
        decode_s_per_element=decode[1],
    )


# The ladder that `splitpoint build` calibrates, from fine to coarse.
DEFAULT_LEVELS = (
    _level("lossless", 27.2, (40e-6, 37e-9), (30e-6, 48e-9)),
    *(
        _level(name, bits, (60e-6, 60e-9), (60e-6, 65e-9))
        for name, bits in (("q1", 4.6), ("q2", 3.9), ("q3", 3.2), ("q4", 2.45), ("q5", 2.0))
    ),
)
# The paper's method: built as well, for comparison. `tabq3` was not measured: it aims at three
# times the loss of `tabq2`, and half a bit less is a guess from that.
TABQ_LEVELS = tuple(
    _level(name, bits, (120e-6, 110e-9), (50e-6, 22e-9))
    for name, bits in (("tabq1", 5.0), ("tabq2", 4.0), ("tabq3", 3.5))
)


def level_at(level: LevelCost, quality: QualityModel, split: int) -> LevelCost:
    """`level` with the bits certified for this split (the dearer of the neighbouring splits where
    it is not itself certified)."""
    found = quality.level_certificates(split, level.name)
    if not found:
        return level
    return replace(level, bits_per_element=max(item.bits_per_element for item in found))
