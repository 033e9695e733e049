"""Codec levels as the planner knows them: bits an element, and seconds of encoding and decoding.

Bits come from certificates where there are some, seconds from device profiles that timed the codec.
What stands here otherwise is what each level's kind assumes (`codec.levels`). Bits: what
SmolLM2-135M needed at the dearest of splits 5, 10, 15 and 20 (20, but for lossless), in one-row
frames, rounded up (docs/results/codec.md). Seconds: one core of this project's machine with the
compiled kernel at widths of 576 and 4,096, rounded up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from codec.levels.base import LevelSpec
from codec.levels.registry import EXTRA_LEVELS as EXTRA_SPECS
from codec.levels.registry import LADDER_LEVELS, kind_of
from optimizer.cost.codec import LevelCost, as_ids
from optimizer.cost.quality import QualityModel


def assumed_cost(level: LevelSpec) -> LevelCost:
    """A level as its kind assumes it to be."""
    seconds = kind_of(level.name).seconds
    return LevelCost(
        name=level.name,
        bits_per_element=level.bits_per_element,
        encode_fixed_s=seconds.encode_fixed_s,
        encode_s_per_element=seconds.encode_s_per_element,
        decode_fixed_s=seconds.decode_fixed_s,
        decode_s_per_element=seconds.decode_s_per_element,
    )


# The ladder that `splitpoint build` calibrates, from fine to coarse.
DEFAULT_LEVELS: Final = tuple(assumed_cost(level) for level in LADDER_LEVELS)
# Built as well, for comparison and as a safe level; never chosen at run time.
EXTRA_LEVELS: Final = tuple(assumed_cost(level) for level in EXTRA_SPECS)


def level_at(level: LevelCost, quality: QualityModel, split: int) -> LevelCost:
    """`level` with the bits certified for this split.

    Where this split has no certificate, the dearer of its neighbours counts. At split 0 nothing is
    encoded: frames bring token ids.
    """
    if split == 0:
        return as_ids(level)
    found = quality.level_certificates(split, level.name)
    if not found:
        return level
    return replace(level, bits_per_element=max(item.bits_per_element for item in found))
