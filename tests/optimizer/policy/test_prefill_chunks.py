"""Chunk sizes from measured stages: the formula's optimum, within the plan's limit."""

from __future__ import annotations

import pytest

from optimizer.policy.prefill_chunks import GRAIN, StageTimes, fit_stage, next_chunk

# Seconds a chunk and a token: (edge, link, cloud).
BALANCED = ((0.001, 0.0005), (0.0, 0.0005), (0.02, 0.001))


def times(num_tokens: int, stages: tuple[tuple[float, float], ...] = BALANCED) -> StageTimes:
    return StageTimes(num_tokens, *(fixed + slope * num_tokens for fixed, slope in stages))


def total_s(num_tokens: int, chunk: int, stages: tuple[tuple[float, float], ...]) -> float:
    """The three stages one after another, each busy with one chunk at a time: simulated."""
    free_at = [0.0] * len(stages)
    left = num_tokens
    while left > 0:
        size = min(chunk, left)
        ready = 0.0
        for stage, (fixed, slope) in enumerate(stages):
            ready = max(ready, free_at[stage]) + fixed + slope * size
            free_at[stage] = ready
        left -= size
    return free_at[-1]


def test_the_first_chunk_is_small_and_the_next_is_the_plans() -> None:
    assert next_chunk(512, 128, []) == 32
    assert next_chunk(480, 128, [times(32)]) == 128
    assert next_chunk(512, 4, []) == 4
    assert next_chunk(10, 128, []) == 10


@pytest.mark.parametrize("planned", [3, 16, 24, 32, 128])
@pytest.mark.parametrize("seen", [[], [32], [32, 128], [16, 32]])
def test_no_chunk_leaves_a_single_token_behind(planned: int, seen: list[int]) -> None:
    answered = [times(size) for size in seen]
    for num_left in range(2, 300):
        size = next_chunk(num_left, planned, answered)
        assert 1 < size <= min(planned, num_left)
        assert num_left - size != 1


def test_two_sizes_are_enough_to_find_the_best_one() -> None:
    """Against a simulation of the pipeline with every chunk size there is."""
    for num_tokens in (256, 512, 2048):
        chosen = next_chunk(num_tokens, 4096, [times(32), times(128)])
        best = min(total_s(num_tokens, chunk, BALANCED) for chunk in range(GRAIN, 1024, GRAIN))
        assert total_s(num_tokens, chosen, BALANCED) <= 1.05 * best
        assert total_s(num_tokens, 4 * chosen, BALANCED) > 1.1 * best


def test_the_plan_bounds_the_chunk_and_nothing_is_left_over() -> None:
    heavy = ((0.0, 0.0001), (0.0, 0.0001), (0.5, 0.001))
    assert next_chunk(512, 128, [times(32, heavy), times(128, heavy)]) == 128
    assert next_chunk(130, 128, [times(32, heavy), times(128, heavy)]) == 80


def test_a_stage_without_fixed_cost_keeps_the_plans_chunk() -> None:
    linear = ((0.0, 0.0001), (0.0, 0.001), (0.0, 0.0001))
    assert next_chunk(512, 128, [times(32, linear), times(128, linear)]) == 128


def test_every_prompt_is_cut_up_whole() -> None:
    for num_tokens in (1, 15, 16, 33, 127, 129, 511, 1000):
        answered: list[StageTimes] = []
        left = num_tokens
        while left:
            chunk = next_chunk(left, 128, answered)
            assert 1 <= chunk <= min(128, left)
            answered.append(times(chunk))
            left -= chunk


def test_a_fit_through_noise_is_never_negative() -> None:
    assert fit_stage([16, 32], [0.2, 0.1]).per_token_s == 0.0
    assert fit_stage([16, 32], [0.01, 0.10]).fixed_s == 0.0
    stage = fit_stage([10, 20, 30], [1.1, 1.2, 1.3])
    assert stage.fixed_s == pytest.approx(1.0)
    assert stage.per_token_s == pytest.approx(0.01)
