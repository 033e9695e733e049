"""How the next token is chosen from logits: the parameters, checked once.

The device and the server check the same bounds, the server after the wire has carried the values.
The wire carries real numbers as float32. So they are rounded to float32 here, at the start. What
one side accepts the other accepts, and both draw with the same numbers.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from decoding.grammar import Grammar

MAX_TEMPERATURE: Final = 100.0
MAX_PENALTY: Final = 100.0
MIN_PENALTY: Final = 0.01
# Far below any useful value, and far above the smallest float32: dividing logits by it is safe.
SMALLEST: Final = 1e-30
MAX_TOP_K: Final = 1 << 31
MAX_SEED: Final = (1 << 64) - 1
# The bounds of OpenAI's API, https://platform.openai.com/docs/api-reference/chat/create.
MAX_COUNT_PENALTY: Final = 2.0
MAX_BIAS: Final = 100.0
MAX_TOP_LOGPROBS: Final = 20
MAX_BIASED_TOKENS: Final = 1024  # ours
MAX_TOKEN_ID: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling as users know it. The defaults are greedy decoding.

    temperature: 0 takes the most likely token. top_k: 0 is off. top_p: 1 is off. min_p: 0 is
    off; otherwise tokens below min_p times the largest probability are dropped.
    repetition_penalty: 1 is off (Keskar et al. 2019, arXiv:1909.05858, section 4.1: the logits
    of tokens already seen are divided by it when positive, multiplied when negative).
    seed: the same seed, prompt and model give the same tokens, drafting or not.
    frequency_penalty, presence_penalty: what a token's logit loses for each time that the answer
    has it, and once if the answer has it at all; -2 to 2, 0 is off. The prompt does not count.
    logit_bias: what is added to the logits of these token ids; -100 to 100, at most 1,024 ids.
    grammar: what the whole answer has to match. logprobs: report the chosen tokens'
    log-probabilities. top_logprobs: and those of so many most likely tokens beside each, at most
    20; needs `logprobs`. prompt_logprobs: report the prompt's tokens in the same way, with so many
    most likely tokens beside each; None: do not.
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
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    grammar: Grammar | None = None
    top_logprobs: int = 0
    prompt_logprobs: int | None = None

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
            "frequency_penalty": _count_penalty("frequency penalty", self.frequency_penalty),
            "presence_penalty": _count_penalty("presence penalty", self.presence_penalty),
            "top_logprobs": whole_in("top logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        if self.prompt_logprobs is not None:
            count = whole_in("prompt logprobs", self.prompt_logprobs, 0, MAX_TOP_LOGPROBS)
            object.__setattr__(self, "prompt_logprobs", count)
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise ValueError("grammar must be a decoding.grammar.Grammar")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top logprobs come beside logprobs: ask for those too")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def is_extended(self) -> bool:
        """Whether a server of the first protocol version cannot do what is asked for."""
        return bool(
            self.frequency_penalty
            or self.presence_penalty
            or self.logit_bias
            or self.grammar is not None
            or self.top_logprobs
            or self.prompt_logprobs is not None
        )


def _count_penalty(name: str, value: Any) -> float:
    return real_in(name, value, -MAX_COUNT_PENALTY, MAX_COUNT_PENALTY)


def _checked_bias(given: Any) -> dict[int, float]:
    """A copy of a logit bias, by id. ValueError for what is none."""
    if not isinstance(given, Mapping):
        raise ValueError(f"logit bias is {shown(given)}, must map token ids to numbers")
    if len(given) > MAX_BIASED_TOKENS:
        raise ValueError(f"logit bias of {len(given)} tokens: at most {MAX_BIASED_TOKENS}")
    checked = {
        whole_in("a token id of the logit bias", token_id, 0, MAX_TOKEN_ID): real_in(
            f"logit bias of token {shown(token_id)}", value, -MAX_BIAS, MAX_BIAS
        )
        for token_id, value in given.items()
    }
    return dict(sorted(checked.items()))


def real_in(name: str, value: Any, low: float, high: float, *, or_zero: bool = False) -> float:
    """`value` rounded to float32. ValueError unless it lies between `low` and `high`, or is 0."""
    try:
        number = math.nan if isinstance(value, str) else float(value)
        # The bounds are rounded like the value: rounding once more changes nothing.
        rounded = as_float32(number) if abs(number) <= 2 * max(abs(low), abs(high)) else math.inf
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
