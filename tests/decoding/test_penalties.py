"""Penalties, bias and masks against a reference that counts token by token."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from decoding.params import SamplingParams
from decoding.penalties import adjusted, allows, masked

VOCAB = 16
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=12)
PENALTIES = st.floats(-2, 2, width=32)


@given(
    prompt=TOKENS,
    answer=TOKENS,
    frequency=PENALTIES,
    presence=PENALTIES,
    repetition=st.sampled_from([1.0, 1.25, 0.5]),
    bias=st.dictionaries(st.integers(0, VOCAB + 5), st.floats(-100, 100, width=32), max_size=5),
    seed=st.integers(0, 1000),
)
def test_adjusted_scores_are_those_of_a_loop_over_the_tokens(
    prompt: list[int],
    answer: list[int],
    frequency: float,
    presence: float,
    repetition: float,
    bias: dict[int, float],
    seed: int,
) -> None:
    logits = np.random.default_rng(seed).normal(size=VOCAB).astype(np.float32)
    params = SamplingParams(
        frequency_penalty=frequency,
        presence_penalty=presence,
        repetition_penalty=repetition,
        logit_bias=bias,
    )
    expected = []
    for token_id, value in enumerate(logits.astype(float)):
        if token_id in prompt or token_id in answer:
            value = value / repetition if value > 0 else value * repetition
        count = answer.count(token_id)
        value -= count * frequency + (presence if count else 0.0)
        expected.append(value + bias.get(token_id, 0.0))
    before = logits.copy()
    got = adjusted(logits, params, seen=[*prompt, *answer], num_prompt=len(prompt))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(logits, before)


@given(allowed=st.sets(st.integers(0, VOCAB + 3)))
def test_a_mask_has_one_bit_a_token(allowed: set[int]) -> None:
    bits = np.zeros(VOCAB + 8, dtype=bool)
    bits[list(allowed)] = True
    mask = np.packbits(bits, bitorder="little")
    scores = masked(np.ones(VOCAB, dtype=np.float32), mask)
    assert {i for i in range(VOCAB) if scores[i] == 1} == {i for i in allowed if i < VOCAB}
    assert all(allows(mask, i) == (i in allowed) for i in range(VOCAB + 40))


def test_a_mask_shorter_than_the_vocabulary_forbids_the_rest() -> None:
    scores = masked(np.ones(20, dtype=np.float32), np.array([255], dtype=np.uint8))
    assert np.isneginf(scores[8:]).all()
    assert (scores[:8] == 1).all()
