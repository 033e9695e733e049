"""Where the split should be: short devices give layers away, and take them back later."""

from __future__ import annotations

import itertools
import random

import pytest

from optimizer.policy.split_moves import (
    DOWN_AFTER_S,
    UP_AFTER_S,
    Signs,
    SplitState,
    next_split,
)

SPLITS = (6, 10, 14)
WELL = Signs(free_memory=0.5, battery=None, heat=0.6, waited=0.1)


@pytest.mark.parametrize(
    ("signs", "shortage"),
    [
        (Signs(), ""),
        (WELL, ""),
        (Signs(free_memory=0.04), "memory"),
        (Signs(battery=0.1), "battery"),
        (Signs(heat=0.97), "cooling"),
    ],
)
def test_what_a_device_is_short_of(signs: Signs, shortage: str) -> None:
    assert signs.shortage == shortage
    after = next_split(SplitState(split=14), SPLITS, signs, now_s=0.0)
    assert after.split == (10 if shortage else 14)


def test_it_goes_down_one_split_at_a_time_to_0_and_stays() -> None:
    state = SplitState(split=14)
    seen = []
    for second in range(40):
        state = next_split(state, SPLITS, Signs(free_memory=0.01), now_s=float(second))
        seen.append(state.split)
    assert list(dict.fromkeys(seen)) == [14, 10, 6, 0][1:]
    moves = [index for index in range(1, 40) if seen[index] != seen[index - 1]]
    assert all(later - first >= DOWN_AFTER_S for first, later in itertools.pairwise(moves))


def test_it_comes_back_once_nothing_was_short_for_a_while() -> None:
    state = next_split(SplitState(split=10), SPLITS, Signs(battery=0.1), now_s=0.0)
    assert state.split == 6
    for second in (1.0, UP_AFTER_S - 1):
        assert next_split(state, SPLITS, WELL, now_s=second).split == 6
    state = next_split(state, SPLITS, WELL, now_s=UP_AFTER_S)
    assert state.split == 10
    assert next_split(state, SPLITS, WELL, now_s=UP_AFTER_S + 1).split == 10
    assert next_split(state, SPLITS, WELL, now_s=2 * UP_AFTER_S).split == 14


def test_a_busy_server_gets_layers_off_it_sooner() -> None:
    state = SplitState(split=6, moved_s=0.0)
    busy = Signs(waited=0.8)
    assert next_split(state, SPLITS, busy, now_s=DOWN_AFTER_S - 1).split == 6
    assert next_split(state, SPLITS, busy, now_s=DOWN_AFTER_S).split == 10
    assert next_split(state, SPLITS, WELL, now_s=DOWN_AFTER_S).split == 6


def test_a_busy_server_is_no_reason_for_a_device_that_was_just_short() -> None:
    state = SplitState(split=6, moved_s=0.0, short_s=10.0)
    assert next_split(state, SPLITS, Signs(waited=0.8), now_s=30.0).split == 6


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_seen_the_split_is_one_of_them_and_moves_keep_their_distance(seed: int) -> None:
    rng = random.Random(seed)
    state, now_s, last_move_s = SplitState(split=14), 0.0, float("-inf")
    for _ in range(500):
        now_s += rng.random() * 10
        signs = Signs(
            free_memory=rng.choice((None, 0.01, 0.5)),
            battery=rng.choice((None, 0.1, 0.9)),
            heat=rng.choice((None, 0.5, 0.99)),
            waited=rng.choice((None, 0.0, 0.9)),
        )
        after = next_split(state, SPLITS, signs, now_s=now_s)
        assert after.split in (0, *SPLITS)
        if after.split != state.split:
            assert now_s - last_move_s >= DOWN_AFTER_S
            assert (after.split < state.split) == bool(signs.shortage)
            last_move_s = now_s
        state = after
