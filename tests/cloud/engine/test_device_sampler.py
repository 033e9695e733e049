"""The device draws the tokens that the CPU draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cloud.attention.paged import has_triton, interprets
from cloud.engine.device_sampler import (
    ROWS_AT_ONCE,
    DrawnRow,
    _probabilities,
    draw,
    drawn_rows,
)
from cloud.engine.drawing import Drawing, device_draws
from decoding.grammar import Grammar
from decoding.params import SamplingParams
from decoding.sampler import probabilities, sample, uniform

pytestmark = pytest.mark.skipif(
    not (has_triton() and interprets()), reason="Triton is not installed, or there is a GPU"
)

VOCAB = 300
KINDS = [
    SamplingParams(
        temperature=(0.7, 1.0, 1.5, 0.2)[index % 4],
        top_p=(1.0, 0.9, 0.5)[index % 3],
        top_k=(0, 0, 5, 40, 1000)[index % 5],
        min_p=(0.0, 0.1)[index % 2],
        seed=index * (1 << 58) + 3,
    )
    for index in range(ROWS_AT_ONCE + 8)
]


@pytest.fixture(name="logits")
def make_logits() -> torch.Tensor:
    random = np.random.default_rng(0)
    logits = (random.standard_normal((len(KINDS), VOCAB)) * 3).astype(np.float32)
    logits[:, 7] = logits[:, 3] = logits.max(axis=1)  # ties, at the edge of small top-k
    return torch.from_numpy(logits)


def test_uniform_numbers_have_the_cpus_bits() -> None:
    from cloud.gpu.random_numbers import uniforms

    seeds = [0, 1, 5, (1 << 64) - 1, (1 << 63) + 7, 123456789] * 20
    places = [0, 1, 7, 1000, 5, (1 << 31) - 2] * 20
    got = uniforms(
        torch.from_numpy(np.array(seeds, dtype=np.uint64).view(np.int64)), torch.tensor(places)
    )
    assert got.tolist() == [uniform(seed, at) for seed, at in zip(seeds, places, strict=True)]


def test_probabilities_are_the_cpus(logits: torch.Tensor) -> None:
    got = _probabilities(logits, KINDS).numpy()
    for row, params, mine in zip(logits.numpy(), KINDS, got, strict=True):
        np.testing.assert_allclose(mine, probabilities(row, params), rtol=1e-12, atol=1e-15)


def test_drawn_tokens_are_the_cpus(logits: torch.Tensor) -> None:
    for position in (0, 1, 999):
        rows = [DrawnRow(i, params, position) for i, params in enumerate(KINDS)]
        expected = [
            sample(logits[i].numpy(), params, position=position).token_id
            for i, params in enumerate(KINDS)
        ]
        assert draw(logits, rows).tolist() == expected


def test_each_row_of_a_draft_is_drawn_for_its_own_position() -> None:
    hot, greedy = SamplingParams(temperature=1.0), SamplingParams()
    rows = drawn_rows(
        [
            (0, Drawing(params=hot, position=5), 2),
            (2, Drawing(params=greedy, position=5), 1),
            (3, None, 1),
            (4, Drawing(params=hot, position=9), 1),
        ]
    )
    assert [(row.row, row.position) for row in rows] == [(0, 5), (1, 6), (4, 9)]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(repetition_penalty=1.2),
        SamplingParams(frequency_penalty=0.5),
        SamplingParams(presence_penalty=0.5),
        SamplingParams(logit_bias={3: 1.0}),
        SamplingParams(logprobs=True),
        SamplingParams(prompt_logprobs=0),
        SamplingParams(grammar=Grammar(kind="regex", text="a+")),
    ],
)
def test_what_needs_more_than_logits_is_drawn_by_the_server(params: SamplingParams) -> None:
    assert not device_draws(params)
    assert device_draws(SamplingParams(temperature=0.8, top_k=4, top_p=0.9, min_p=0.1))
