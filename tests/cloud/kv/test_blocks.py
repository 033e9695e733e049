"""The block allocator: every block has one owner, and none is ever lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.kv.blocks import BlockAllocator, Run

TOTAL = 60


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 4), st.integers(1, 9), st.integers(0, 100)),
        max_size=60,
    )
)
def test_runs_never_overlap_and_all_of_it_comes_back(
    steps: list[tuple[bool, int, int, int]],
) -> None:
    allocator = BlockAllocator(TOTAL)
    held: list[tuple[Run, ...]] = []
    for give, layers, blocks, pick in steps:
        if give and held:
            for run in held.pop(pick % len(held)):
                allocator.give_back(run)
        elif (runs := allocator.take(layers, blocks)) is not None:
            assert sum(run.num_blocks for run in runs) == blocks
            held.append(runs)
        taken = [
            block
            for runs in held
            for run in runs
            for block in range(run.start, run.start + run.size)
        ]
        assert len(set(taken)) == len(taken) == TOTAL - allocator.num_free
    for run in (run for runs in held for run in runs):
        allocator.give_back(run)
    assert (allocator.num_free, allocator.num_holes) == (TOTAL, 1)
    assert allocator.take(1, TOTAL) == (Run(0, 1, TOTAL),)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.integers(0, 100)), max_size=40))
def test_sessions_of_equal_depth_are_refused_only_when_it_is_full(
    steps: list[tuple[bool, int, int]],
) -> None:
    allocator = BlockAllocator(TOTAL)
    held: list[tuple[Run, ...]] = []
    for give, blocks, pick in steps:
        if give and held:
            for run in held.pop(pick % len(held)):
                allocator.give_back(run)
            continue
        free = allocator.num_free
        runs = allocator.take(4, blocks)
        assert (runs is not None) == (4 * blocks <= free)
        if runs is not None:
            held.append(runs)


def test_the_smallest_hole_that_fits_is_taken() -> None:
    allocator = BlockAllocator(TOTAL)
    first, _, third, _ = (allocator.take(1, size) for size in (10, 5, 6, 5))
    for run in (*(first or ()), *(third or ())):
        allocator.give_back(run)
    assert allocator.take(2, 3) == (Run(15, 2, 3),)
    assert allocator.take(2, 4) == (Run(0, 2, 4),)


def test_giving_back_twice_is_noticed() -> None:
    allocator = BlockAllocator(TOTAL)
    (run,) = allocator.take(2, 5) or ()
    allocator.take(1, 1)
    allocator.give_back(run)
    with pytest.raises(ValueError, match="not all taken"):
        allocator.give_back(run)
