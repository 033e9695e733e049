"""Drafted sampling has the plain distribution: a tiny model, every sequence enumerated exactly."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from decoding.params import SamplingParams
from decoding.sampler import probabilities, sample, verify
from tests.tiny_models import make_tiny_model

PROMPT = (5, 9, 2)
LENGTH = 3
SAMPLES = 4000
# The 99.9 % quantile of chi-square by degrees of freedom (R's qchisq(0.999, 1:30)).
CRITICAL = dict(
    enumerate(
        (
            *(10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88, 29.59),
            *(31.26, 32.91, 34.53, 36.12, 37.70, 39.25, 40.79, 42.31, 43.82, 45.31),
            *(46.80, 48.27, 49.73, 51.18, 52.62, 54.05, 55.48, 56.89, 58.30, 59.70),
        ),
        start=1,
    )
)

Logits = npt.NDArray[np.float32]
Sequence3 = tuple[int, ...]


class Tables:
    """The tiny model's logits after every prefix that three tokens out of three can make."""

    def __init__(self, folder: Path) -> None:
        self._model = make_tiny_model("llama", folder)
        self._known: dict[Sequence3, Logits] = {}

    def after(self, tokens: Sequence3) -> Logits:
        if tokens not in self._known:
            with torch.inference_mode():
                logits = self._model(torch.tensor([[*PROMPT, *tokens]])).logits[0, -1]
            self._known[tokens] = logits.numpy()
        return self._known[tokens]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return Tables(tmp_path_factory.mktemp("tiny"))


def exact(tables: Tables, params: SamplingParams) -> dict[Sequence3, float]:
    """Probability of every sequence of LENGTH tokens."""
    chances: dict[Sequence3, float] = {(): 1.0}
    for _ in range(LENGTH):
        chances = {
            (*tokens, int(token)): chance * float(share[token])
            for tokens, chance in chances.items()
            for share in [probabilities(tables.after(tokens), params)]
            for token in np.flatnonzero(share)
        }
    return chances


def drafted(tables: Tables, params: SamplingParams, rng: random.Random) -> Sequence3:
    """LENGTH tokens, with drafts that are often right and sometimes absurd, of any number."""
    tokens: Sequence3 = ()
    while len(tokens) < LENGTH:
        drafts: list[int] = []
        for _ in range(rng.randrange(LENGTH - len(tokens))):
            logits = tables.after((*tokens, *drafts))
            ranked = np.argsort(-logits)
            drafts.append(int(ranked[rng.choice((0, 0, 1, 2, 300))]))
        rows = np.stack(
            [tables.after((*tokens, *drafts[:count])) for count in range(len(drafts) + 1)]
        )
        chosen = verify(rows, drafts, params, position=len(PROMPT) + len(tokens))
        tokens = (*tokens, *(token.token_id for token in chosen))
    return tokens


def plain(tables: Tables, params: SamplingParams, kept: Sequence3 = ()) -> Sequence3:
    """LENGTH tokens, drawn one by one after those that are `kept`."""
    tokens = kept
    while len(tokens) < LENGTH:
        token = sample(tables.after(tokens), params, position=len(PROMPT) + len(tokens))
        tokens = (*tokens, token.token_id)
    return tokens


def chi_square(counts: Counter[Sequence3], chances: dict[Sequence3, float]) -> tuple[float, int]:
    """Statistic and degrees of freedom; sequences expected less than five times are one class."""
    total = sum(counts.values())
    classes: dict[Sequence3 | None, list[float]] = {}
    for tokens, chance in chances.items():
        key = tokens if chance * total >= 5 else None
        entry = classes.setdefault(key, [0.0, 0.0])
        entry[0] += counts[tokens]
        entry[1] += chance * total
    statistic = sum((seen - due) ** 2 / due for seen, due in classes.values())
    return statistic, len(classes) - 1


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_drafted_samples_have_the_models_own_distribution(
    tables: Tables, temperature: float
) -> None:
    chances = exact(tables, SamplingParams(temperature=temperature, top_k=3))
    assert len(chances) == 27
    assert sum(chances.values()) == pytest.approx(1.0)
    rng = random.Random(11)
    counts: Counter[Sequence3] = Counter()
    for seed in range(SAMPLES):
        params = SamplingParams(temperature=temperature, top_k=3, seed=seed)
        counts[drafted(tables, params, rng)] += 1
    assert set(counts) <= set(chances)
    statistic, freedom = chi_square(counts, chances)
    assert statistic < CRITICAL[freedom]


def test_the_test_can_tell_a_wrong_distribution(tables: Tables) -> None:
    """Keeping a draft whenever it is possible at all, say, is found out."""
    params = SamplingParams(temperature=1.0, top_k=3)
    chances = exact(tables, params)
    counts: Counter[Sequence3] = Counter()
    unlikely = int(np.argsort(-tables.after(()))[2])
    for seed in range(SAMPLES):
        # One sample in six keeps an unlikely first token unasked.
        kept = (unlikely,) if seed % 6 == 0 else ()
        counts[plain(tables, SamplingParams(temperature=1.0, top_k=3, seed=seed), kept)] += 1
    statistic, freedom = chi_square(counts, chances)
    assert statistic > CRITICAL[freedom]


def test_a_seed_gives_the_same_tokens_however_they_were_drafted(tables: Tables) -> None:
    rng = random.Random(3)
    for seed, _ in itertools.product(range(40), range(3)):
        params = SamplingParams(temperature=1.2, top_p=0.9, seed=seed)
        assert drafted(tables, params, rng) == plain(tables, params)
