"""Codec levels as the planner knows them: bits an element, and seconds of encoding and decoding.

Bits come from certificates where there are some, seconds from device profiles that timed the codec.
The defaults: bits that SmolLM2-135M needed at the dearest of splits 5, 10, 15 and 20 (20, but for
lossless; one-row frames, rounded up; docs/codec.md), seconds of one core of this project's machine
with the compiled kernel at widths of 576 and 4,096, rounded up.
"""

from __future__ import annotations

from dataclasses import replace

from optimizer.cost.codec import LevelCost
from optimizer.cost.quality import QualityModel


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
    _level("lossless", 27.1, (30e-6, 20e-9), (30e-6, 28e-9)),
    *(
        _level(name, bits, (130e-6, 50e-9), (70e-6, 35e-9))
        for name, bits in (("q1", 4.3), ("q2", 3.5), ("q3", 3.0), ("q4", 2.3), ("q5", 1.6))
    ),
)
# The paper's method: built as well, for comparison.
TABQ_LEVELS = tuple(
    _level(name, bits, (100e-6, 35e-9), (50e-6, 15e-9))
    for name, bits in (("tabq1", 5.0), ("tabq2", 3.5), ("tabq3", 2.7))
)


def level_at(level: LevelCost, quality: QualityModel, split: int) -> LevelCost:
    """`level` with the bits certified for this split (the dearer of the neighbouring splits where
    it is not itself certified)."""
    found = quality.level_certificates(split, level.name)
    if not found:
        return level
    return replace(level, bits_per_element=max(item.bits_per_element for item in found))
