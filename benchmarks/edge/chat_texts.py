"""Conversations of a given length in which a user says numbers to remember."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

FACTS: Final = (
    "the code of {} locker",
    "the number of {} hotel room",
    "the number of {} flight",
    "the price of {} bicycle in dollars",
    "the page at which {} reading stopped",
    "the number on {} library card",
)


@dataclass(frozen=True)
class Fact:
    """A question about a number, the beginning of an answer, and the number. said_at: its place."""

    question: list[int]
    stem: list[int]
    number: str
    said_at: int


@dataclass(frozen=True)
class Chat:
    """Token ids up to where the last quarter begins, those of the last quarter, and what is asked
    at the end, each question of the same conversation."""

    before: list[int]
    later: list[int]
    facts: list[Fact]


def make_chat(tokenizer: Any, pairs: Sequence[dict[str, str]], num_tokens: int, seed: int) -> Chat:
    """Questions and worked answers of GSM8K, with a number said at each sixth of the way."""
    rng = random.Random(seed)
    ids: list[int] = []
    facts: list[Fact] = []
    for pair in rng.sample(pairs, len(pairs)):
        due = len(facts) < len(FACTS) and len(ids) >= num_tokens * (len(facts) + 0.3) / len(FACTS)
        if due:
            what, number = FACTS[len(facts)], str(rng.randint(1000, 9999))
            facts.append(_fact(tokenizer, what, number, len(ids)))
            said = f"Please remember that {what.format('my')} is {number}. I will ask for it later."
            ids += tokenizer.encode(_turn("user", said))
            ids += tokenizer.encode(_turn("assistant", f"{_begun(what)} is {number}. I remember."))
        answer = pair["answer"].split("####")[0].strip()
        ids += tokenizer.encode(_turn("user", pair["question"]))
        ids += tokenizer.encode(_turn("assistant", answer))
        if len(ids) >= num_tokens and len(facts) == len(FACTS):
            break
    cut = num_tokens * 3 // 4
    return Chat(ids[:cut], ids[cut:num_tokens], facts)


def _turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def _begun(what: str) -> str:
    text = what.format("your")
    return text[0].upper() + text[1:]


def _fact(tokenizer: Any, what: str, number: str, said_at: int) -> Fact:
    asked = "\n" + _turn("user", f"What is {what.format('my')}?") + "<|im_start|>assistant\n"
    return Fact(tokenizer.encode(asked), tokenizer.encode(f"{_begun(what)} is "), number, said_at)
