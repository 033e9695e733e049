"""Questions of many kinds, for the answers that a draft head learns from.

A head that has learnt from one kind of answer guesses others badly. So the questions differ in
what they ask for: prose, lists, code, JSON, sums, translations, dialogue. They are templates over
topics; the answers are the model's own. A user's own questions may be half of them. Two kinds are
never trained on: what the head guesses of these says whether it has learnt the model or its corpus.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

TOPICS: Final = (
    "coffee", "black holes", "the French Revolution", "photosynthesis", "investing", "chess",
    "healthy breakfasts", "the climate", "machine learning", "gardening", "a trip to Japan",
    "job interviews", "the human heart", "electric cars", "volcanoes", "a household budget",
    "the Roman Empire", "vaccines", "baking bread", "public speaking", "dinosaurs", "solar power",
    "cats", "jazz", "the moon", "sleep", "social media", "rivers", "architecture", "economics",
    "robots", "the oceans", "football", "painting", "genes", "bicycles", "tea", "airports",
    "the Cold War", "magnets", "insurance", "glaciers", "wine", "poetry", "the stock market",
    "bees", "earthquakes", "knitting", "the Olympic Games", "antibiotics", "railways",
    "satellites", "opera", "the brain", "hiking", "wheat", "databases", "photography",
    "the printing press", "swimming", "gravity", "museums", "customer service", "the Silk Road",
    "dogs", "forests", "the periodic table", "marathons", "startups", "beaches",
    "the immune system", "bridges", "chocolate", "elections", "lighthouses", "batteries", "ballet",
    "cooperatives", "the Great Wall", "nutrition", "deserts", "encryption", "board games",
    "the water cycle", "Shakespeare", "taxes", "coral reefs", "traffic", "time management",
    "the internet", "pottery", "monsoons", "yoga", "sharks", "mortgages", "the Renaissance",
    "fermentation", "telescopes", "email", "wolves", "radio", "public libraries", "algebra",
    "the Amazon", "recycling", "fashion", "diabetes", "spreadsheets", "castles", "the violin",
    "weather forecasts", "salt", "child care", "Mars", "negotiation", "film music", "rice",
    "the Vikings", "probability", "hospitals", "camping", "steel", "first aid", "comets", "rent",
    "theatre", "mushrooms", "logistics", "the guitar", "plastic", "moving house", "ancient Egypt",
    "whales", "software testing", "tides", "city parks", "cheese", "the alphabet", "sailing",
    "memory", "wind turbines", "birthdays", "statistics", "the piano", "open source software",
    "horses", "bread", "calendars", "islands", "vitamins", "maps", "anxiety", "penguins",
    "advertising", "orchards", "the steam engine", "running shoes", "language learning", "clouds",
    "fire safety", "comic books", "tomatoes", "trade unions", "rainbows", "glass", "e-books",
    "blood pressure", "trains", "owls", "the suffragettes", "ice cream", "graph theory",
    "weddings", "drones", "olive oil", "tourism", "skeletons", "backups", "the Arctic", "stress",
    "maple trees", "passwords", "the telephone", "remote work", "ants", "carpets", "homework",
    "lasers", "fishing", "the calculator", "school uniforms", "sugar",
)  # fmt: skip
TRAINED: Final[dict[str, tuple[str, ...]]] = {
    "prose": (
        "Write a short essay about {}.",
        "Explain {} to a child.",
        "What is the history of {}?",
        "Why is {} important?",
        "Write a story in which {} matters.",
        "Write a blog post about {} for people who are new to it.",
        "Describe {} in one paragraph.",
        "What do most people get wrong about {}?",
        "Write a poem about {}.",
        "Write the opening of a novel that begins with {}.",
        "How has {} changed in the last fifty years?",
    ),
    "list": (
        "Give me ten tips about {}.",
        "List the advantages and disadvantages of {}.",
        "List the steps to learn about {}.",
        "Name five common mistakes about {} and correct each.",
        "What are the main parts of {}? Answer with bullet points.",
        "Make a plan for one week that has to do with {}.",
        "Give me seven questions to ask an expert on {}.",
    ),
    "question": (
        "Who should I ask about {}, and what?",
        "What is {}?",
        "How does {} work?",
        "When did people first care about {}?",
        "Where can I learn more about {}?",
        "Is {} good or bad? Give reasons.",
        "What would the world be like without {}?",
    ),
    "code": (
        "Write a Python class that stores facts about {}.",
        "Write a Python function that counts how often {} is named in a text.",
        "Write an HTML page about {} with a heading and a list.",
        "Write a SQL table for data about {} and three queries on it.",
        "Write a JavaScript function that returns a random fact about {}.",
        "Write a Python program with a menu for a small shop that sells things about {}.",
        "Write a bash script that backs up a folder with notes about {}.",
        "Write a unit test in Python for a function that sorts records about {}.",
    ),
    "json": (
        "Return a JSON object with the keys name, kind and description for: {}.",
        "Write a JSON array of five facts about {}.",
        "Call the tool search(query, limit) with JSON arguments to find news of {}.",
        "Write a YAML file that configures a web site about {}.",
        "Write a CSV file with a header and six rows about {}.",
    ),
    "talk": (
        "Write a dialogue between two friends about {}.",
        "You are an expert on {}. What would you tell a beginner?",
        "Interview an expert on {}: five questions with answers.",
        "I am worried about {}. What should I do?",
        "Persuade me that {} deserves more attention.",
    ),
    "rewrite": (
        "Say this in simpler words: 'The subject of {} has been discussed at length by many.'",
        "Translate into French: 'We talked about {} for an hour and then went home.'",
        "Translate into German: 'My sister has read three books about {}.'",
        "Translate into Spanish: 'They wanted to know everything about {}.'",
        "Correct the spelling: 'I hav allways wantd to lern abuot {}.'",
        "Write the opposite of this sentence: 'Everybody in our town likes {}.'",
    ),
    "reason": (
        "Is it true that {} costs more in winter than in summer? Think step by step.",
        "Ann knows more about {} than Bob. Bob knows more than Carl. Who knows least?",
        "Compare two ways to study {} and say which is better.",
        "What are the causes and the effects of {}?",
    ),
    "sum": (
        "A shop sells {1} tickets for {2} dollars each to a talk about {0}. How much does it earn?",
        "{2} boxes hold {1} books about {0} each. {3} books are lost. How many are left?",
        "I spend {2} minutes a day on {0}. How many hours is that in {1} days?",
        "Tom has {1} pictures of {0} and buys {2} more. He gives {3} to Eva. How many has he?",
        "A course on {0} costs {1} dollars a month and {2} dollars once. What does a year cost?",
        "{1} people share {2} pages about {0} equally. How many pages does each get?",
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


OWN_KIND: Final = "own"


class Prompt(NamedTuple):
    """A question, what kind it is of, and whether the head may learn from its answer."""

    kind: str
    text: str
    is_held_out: bool


def prompts(seed: int, own: Sequence[str] = ()) -> Iterator[Prompt]:
    """Questions without end, kinds and topics mixed. The same ones for the same arguments.

    own: the user's questions. Every second prompt is one of them, in mixed order; all come before
    one comes again.
    """
    rng = random.Random(seed)
    order: list[str] = []
    kinds = [
        *((kind, forms, False) for kind, forms in TRAINED.items()),
        *((kind, forms, True) for kind, forms in HELD_OUT.items()),
    ]
    for number in itertools.count():
        if own and number % 2:
            if not order:
                order = rng.sample(own, len(own))
            yield Prompt(OWN_KIND, order.pop(), is_held_out=False)
            continue
        kind, forms, is_held_out = rng.choice(kinds)
        numbers = [rng.randrange(2, 60) for _ in range(3)]
        yield Prompt(kind, rng.choice(forms).format(rng.choice(TOPICS), *numbers), is_held_out)
