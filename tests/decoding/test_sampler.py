"""Sampling filters by hand-worked examples, and drafting that changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding.params import SamplingParams
from decoding.penalties import TokenMask, masked, penalized
from decoding.sampler import probabilities, sample, score, uniform, verify

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32))


def test_greedy_takes_the_most_likely_token_and_the_lower_id_on_a_tie() -> None:
    assert sample(LOGITS, SamplingParams(), position=0).token_id == 0
    tied = np.array([1.0, 3.0, 3.0], dtype=np.float32)
    assert sample(tied, SamplingParams(), position=0).token_id == 1


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(temperature=1.0), [0.5, 0.25, 0.15, 0.1]),
        (
            SamplingParams(temperature=0.5),
            [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345],
        ),
        (SamplingParams(temperature=1.0, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (SamplingParams(temperature=1.0, top_p=0.7), [2 / 3, 1 / 3, 0, 0]),
        (SamplingParams(temperature=1.0, top_p=0.8), [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        (SamplingParams(temperature=1.0, min_p=0.25), [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        (SamplingParams(temperature=1.0, top_k=3, top_p=0.5), [1, 0, 0, 0]),
    ],
)
def test_filters_keep_what_a_hand_calculation_keeps(
    params: SamplingParams, expected: list[float]
) -> None:
    np.testing.assert_allclose(probabilities(LOGITS, params), expected, atol=1e-6)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = np.array([2.0, -2.0, 1.0], dtype=np.float32)
    np.testing.assert_array_equal(penalized(logits, 2.0, [0, 1, 1]), [1.0, -4.0, 1.0])
    np.testing.assert_array_equal(logits, [2.0, -2.0, 1.0])
    np.testing.assert_array_equal(penalized(logits, 2.0, []), logits)


def test_sampled_tokens_have_the_wanted_distribution() -> None:
    params = SamplingParams(temperature=1.0, seed=7)
    counts = np.bincount(
        [sample(LOGITS, params, position=i).token_id for i in range(20_000)], minlength=4
    )
    expected = 20_000 * np.array([0.5, 0.25, 0.15, 0.1])
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 16.27  # 3 degrees of freedom, p = 0.001


def test_logprob_is_of_the_unfiltered_distribution() -> None:
    params = SamplingParams(temperature=0.3, top_k=1, logprobs=True)
    assert sample(LOGITS, params, position=0).logprob == pytest.approx(np.log(0.5), abs=1e-6)
    assert score(LOGITS + 100, 3).logprob == pytest.approx(np.log(0.1), abs=1e-5)


def test_a_position_draws_the_same_number_whenever_it_is_asked() -> None:
    assert uniform(3, 10) == uniform(3, 10)
    assert len({uniform(3, i) for i in range(100)} | {uniform(4, i) for i in range(100)}) == 200


def test_the_top_tokens_come_by_probability_and_equal_ones_by_id() -> None:
    logits = np.array([1.0, 3.0, 3.0, 2.0, 3.0], dtype=np.float32)
    top = score(logits, 0, 3).top
    assert [token.token_id for token in top] == [1, 2, 4]
    assert [token.token_id for token in score(logits, 0, 20).top] == [1, 2, 4, 3, 0]
    assert top[0].logprob == score(logits, 1).logprob
    assert sum(np.exp(token.logprob) for token in score(logits, 0, 5).top) == pytest.approx(1.0)


def test_log_probabilities_do_not_see_bias_and_mask() -> None:
    params = SamplingParams(logit_bias={3: 100}, logprobs=True, top_logprobs=1)
    chosen = sample(LOGITS, params, position=0, mask=np.array([0b1110], dtype=np.uint8))
    assert chosen.token_id == 3
    assert chosen.logprob == pytest.approx(np.log(0.1), abs=1e-6)
    assert chosen.top[0].token_id == 0


def test_a_masked_token_is_never_drawn_however_likely_it_is() -> None:
    params = SamplingParams(temperature=2.0, seed=1)
    mask: TokenMask = np.array([0b1010], dtype=np.uint8)
    drawn = {sample(LOGITS, params, position=i, mask=mask).token_id for i in range(200)}
    assert drawn == {1, 3}
    assert np.isneginf(masked(LOGITS, mask)[[0, 2]]).all()


@given(
    seed=st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    penalty=st.sampled_from([1.0, 1.3]),
    counts=st.sampled_from([(0.0, 0.0), (1.5, 0.0), (-2.0, 0.5)]),
    with_masks=st.booleans(),
    flips=st.lists(st.integers(0, 5), max_size=4),
)
def test_drafting_gives_exactly_what_plain_decoding_gives(
    seed: int,
    temperature: float,
    penalty: float,
    counts: tuple[float, float],
    with_masks: bool,
    flips: list[int],
) -> None:
    """A toy model whose logits depend on the whole history; drafts right but for `flips`."""
    params = SamplingParams(
        temperature=temperature,
        seed=seed,
        repetition_penalty=penalty,
        frequency_penalty=counts[0],
        presence_penalty=counts[1],
        logit_bias={5: 1.0},
    )

    def model(history: list[int]) -> np.ndarray:
        return np.random.default_rng(history).normal(size=16).astype(np.float32)

    def mask(history: list[int]) -> TokenMask | None:
        """Depends on the whole history too, and always allows tokens 0 and 8."""
        if not with_masks:
            return None
        drawn = np.random.default_rng([*history, 1]).integers(0, 256, size=2, dtype=np.uint8)
        return drawn | np.uint8(1)

    plain = [3]
    while len(plain) < 14:
        token = sample(
            model(plain),
            params,
            position=len(plain),
            seen=plain,
            num_prompt=1,
            mask=mask(plain),
        )
        plain.append(token.token_id)

    drafted = [3]
    while len(drafted) < 14:
        drafts = [
            (token + (index in flips)) % 16
            for index, token in enumerate(plain[len(drafted) : len(drafted) + 4])
        ]
        before = [drafted + drafts[:i] for i in range(len(drafts) + 1)]
        answer = verify(
            np.stack([model(history) for history in before]),
            drafts,
            params,
            position=len(drafted),
            seen=drafted,
            num_prompt=1,
            masks=[m for history in before if (m := mask(history)) is not None] or None,
        )
        assert 1 <= len(answer) <= len(drafts) + 1
        drafted += [token.token_id for token in answer]
    assert drafted[:14] == plain[:14]
