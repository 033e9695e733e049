"""Questions of many kinds, for the answers that a draft head learns from.

A head that has learnt from one kind of answer guesses others badly. So the questions differ in
what they ask for: prose, lists, code, JSON, sums, translations, dialogue. They are templates over
topics; the answers are the model's own. Two kinds are never trained on: what the head guesses of
these says whether it has learnt the model or its corpus.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Final, NamedTuple

TOPICS: Final = (
    "coffee", "black holes", "the French Revolution", "photosynthesis", "investing", "chess",
    "healthy breakfasts", "the climate", "machine learning", "gardening", "a trip to Japan",
    "job interviews", "the human heart", "electric cars", "volcanoes", "a household budget",
    "the Roman Empire", "vaccines", "baking bread", "public speaking", "dinosaurs", "solar power",
    "cats", "jazz", "the moon", "sleep", "social media", "rivers", "architecture", "economics",
    "robots", "the oceans", "football", "painting", "genes", "bicycles", "tea", "airports",
)  # fmt: skip
TRAINED: Final[dict[str, tuple[str, ...]]] = {
    "prose": (
        "Write a short essay about {}.",
        "Explain {} to a child.",
        "What is the history of {}?",
        "Why is {} important?",
        "Write a story in which {} matters.",
    ),
    "list": (
        "Give me ten tips about {}.",
        "List the advantages and disadvantages of {}.",
        "List the steps to learn about {}.",
        "Name five common mistakes about {} and correct each.",
    ),
    "code": (
        "Write a Python class that stores facts about {}.",
        "Write a Python function that counts how often {} is named in a text.",
        "Write an HTML page about {} with a heading and a list.",
        "Write a SQL table for data about {} and three queries on it.",
    ),
    "json": (
        "Return a JSON object with the keys name, kind and description for: {}.",
        "Write a JSON array of five facts about {}.",
        "Call the tool search(query, limit) with JSON arguments to find news of {}.",
    ),
    "talk": (
        "Write a dialogue between two friends about {}.",
        "You are an expert on {}. What would you tell a beginner?",
        "Interview an expert on {}: five questions with answers.",
    ),
    "rewrite": (
        "Say this in simpler words: 'The subject of {} has been discussed at length by many.'",
        "Translate into French: 'We talked about {} for an hour and then went home.'",
        "Translate into German: 'My sister has read three books about {}.'",
    ),
    "sum": (
        "A shop sells {1} tickets for {2} dollars each to a talk about {0}. How much does it earn?",
        "{2} boxes hold {1} books about {0} each. {3} books are lost. How many are left?",
        "I spend {2} minutes a day on {0}. How many hours is that in {1} days?",
    ),
}
# Never trained on.
HELD_OUT: Final[dict[str, tuple[str, ...]]] = {
    "letter": (
        "Write an e-mail to my manager about {}.",
        "Write a letter of complaint about {}.",
    ),
    "table": (
        "Make a table of five facts about {} with two columns.",
        "Compare {} with something like it in a table.",
    ),
}


class Prompt(NamedTuple):
    """A question, what kind it is of, and whether the head may learn from its answer."""

    kind: str
    text: str
    is_held_out: bool


def prompts(seed: int) -> Iterator[Prompt]:
    """Questions without end, kinds and topics mixed. The same ones for the same seed."""
    rng = random.Random(seed)
    kinds = [
        *((kind, forms, False) for kind, forms in TRAINED.items()),
        *((kind, forms, True) for kind, forms in HELD_OUT.items()),
    ]
    for _ in itertools.count():
        kind, forms, is_held_out = rng.choice(kinds)
        numbers = [rng.randrange(2, 60) for _ in range(3)]
        yield Prompt(kind, rng.choice(forms).format(rng.choice(TOPICS), *numbers), is_held_out)
