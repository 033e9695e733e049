"""How the next token is chosen from logits: the parameters, checked once.

The device and the server check the same bounds, the server after the wire has carried the values.
The wire carries real numbers as float32. So they are rounded to float32 here, at the start. What
one side accepts the other accepts, and both draw with the same numbers.
"""

from __future__ import annotations

import math
import operator
import struct
from dataclasses import dataclass
from typing import Any, Final

MAX_TEMPERATURE: Final = 100.0
MAX_PENALTY: Final = 100.0
MIN_PENALTY: Final = 0.01
# Far below any useful value, and far above the smallest float32: dividing logits by it is safe.
SMALLEST: Final = 1e-30
MAX_TOP_K: Final = 1 << 31
MAX_SEED: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling as users know it. The defaults are greedy decoding.

    temperature: 0 takes the most likely token. top_k: 0 is off. top_p: 1 is off. min_p: 0 is
    off; otherwise tokens below min_p times the largest probability are dropped.
    repetition_penalty: 1 is off (Keskar et al. 2019, arXiv:1909.05858, section 4.1: the logits
    of tokens already seen are divided by it when positive, multiplied when negative).
    seed: the same seed, prompt and model give the same tokens, drafting or not.
    Real numbers are rounded to float32. Raises ValueError naming the parameter that is out of
    range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: bool = False

    def __post_init__(self) -> None:
        checked: dict[str, float] = {
            "temperature": real_in(
                "temperature", self.temperature, SMALLEST, MAX_TEMPERATURE, or_zero=True
            ),
            "top_p": real_in("top-p", self.top_p, SMALLEST, 1.0),
            "top_k": whole_in("top-k", self.top_k, 0, MAX_TOP_K),
            "min_p": real_in("min-p", self.min_p, SMALLEST, 1.0, or_zero=True),
            "repetition_penalty": real_in(
                "repetition penalty", self.repetition_penalty, MIN_PENALTY, MAX_PENALTY
            ),
            "seed": whole_in("seed", self.seed, 0, MAX_SEED),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


def real_in(name: str, value: Any, low: float, high: float, *, or_zero: bool = False) -> float:
    """`value` rounded to float32. ValueError unless it lies between `low` and `high`, or is 0."""
    try:
        number = math.nan if isinstance(value, str) else float(value)
        # The bounds are rounded like the value: rounding once more changes nothing.
        rounded = as_float32(number) if abs(number) <= 2 * high else math.inf
    except (TypeError, ValueError, OverflowError):
        rounded = math.nan
    if or_zero and rounded == 0.0 and number == 0.0:
        return 0.0
    if not as_float32(low) <= rounded <= as_float32(high):
        bounds = f"between {low:g} and {high:g}"
        raise ValueError(
            f"{name} is {shown(value)}, must {'be 0 or ' if or_zero else ''}lie {bounds}"
        )
    return rounded


def whole_in(name: str, value: Any, low: int, high: int) -> int:
    """`value` as int. ValueError unless it is a whole number between `low` and `high`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {shown(value)}, must be a whole number") from None
    if not low <= number <= high:
        raise ValueError(f"{name} is {shown(number)}, must lie between {low} and {high}")
    return number


def as_float32(value: float) -> float:
    """The nearest number that float32 has; OverflowError beyond its range."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def shown(value: object) -> str:
    """A value as an error message shows it: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = str(value) if isinstance(value, (int, float)) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
