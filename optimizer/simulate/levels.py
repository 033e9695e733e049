"""What the codec's standard levels cost when no certificate says better.

Bits: `docs/codec.md`, split 10 of SmolLM2-135M, frames of one token (`q2` and `q5`, which that
table leaves out, follow from their target losses: a factor in the squared error is half its
log2 in bits). Seconds: the same page's speed test, as a fixed part and one for each element.
They are of this project's machine and of one model; a scenario's own `levels` replace them.
"""

from __future__ import annotations

from typing import Final

from optimizer.cost.codec import LevelCost
from optimizer.plan import Plan

_LOSSLESS: Final = LevelCost(
    name="lossless",
    bits_per_element=26.8,
    encode_fixed_s=4e-5,
    encode_s_per_element=3e-8,
    decode_fixed_s=4e-5,
    decode_s_per_element=4e-8,
)
_CALIBRATED_BITS: Final = {"q1": 4.1, "q2": 3.39, "q3": 2.68, "q4": 1.96, "q5": 1.4}


def standard_levels(plan: Plan) -> dict[str, LevelCost]:
    """The ladder's levels by name. What the plan predicts of its own level's bytes is believed."""
    levels = {
        name: LevelCost(
            name=name,
            bits_per_element=bits,
            encode_fixed_s=5e-5,
            encode_s_per_element=4.5e-8,
            decode_fixed_s=5e-5,
            decode_s_per_element=5e-8,
        )
        for name, bits in _CALIBRATED_BITS.items()
    }
    return {_LOSSLESS.name: _LOSSLESS, **levels}
