"""How the next token is chosen from logits: the parameters, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

# float32 holds these bounds exactly, so a value that left one side valid arrives valid.
MAX_TEMPERATURE: Final = 100.0
MAX_PENALTY: Final = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling as users know it. The defaults are greedy decoding.

    temperature: 0 takes the most likely token. top_k: 0 is off. top_p: 1 is off. min_p: 0 is
    off; otherwise tokens below min_p times the largest probability are dropped.
    repetition_penalty: 1 is off (Keskar et al. 2019, arXiv:1909.05858, section 4.1: the logits
    of tokens already seen are divided by it when positive, multiplied when negative).
    seed: the same seed, prompt and model give the same tokens, drafting or not.
    Raises ValueError naming the parameter that is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: bool = False

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _check("min-p", self.min_p, 0.0, 1.0)
        _check("top-k", self.top_k, 0, 1 << 31)
        _check("seed", self.seed, 0, (1 << 64) - 1)
        _check("top-p", self.top_p, 0.0, 1.0)
        _check("repetition penalty", self.repetition_penalty, 0.0, MAX_PENALTY)
        if self.top_p == 0.0:
            raise ValueError("top-p must be above 0")
        if self.repetition_penalty == 0.0:
            raise ValueError("repetition penalty must be above 0")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


def _check(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name} is {value}, must lie between {low} and {high}")
