"""Frames ahead in the search: every cell says what the scalar models say for its configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.artifacts.plan import Partition
from optimizer.cost.levels import level_at
from optimizer.cost.link import LinkPoint
from optimizer.cost.request import predict_request
from optimizer.cost.setting import RequestSetting
from optimizer.search.drafts import DraftCost, draft_options, measured_drafting
from optimizer.search.grid import Grid
from optimizer.search.link_independent import LinkIndependent
from optimizer.search.problem import Cell, Problem
from tests.optimizer.search.instances import links, problems

CLOSE: dict[str, Any] = {"rel": 1e-9, "abs": 1e-12}


def with_drafts(problem: Problem, chances: tuple[float, ...], guess_s: float) -> Problem:
    found = draft_options(DraftCost(kind="head", chances=chances, guess_s=guess_s))
    drafts = (*problem.space.drafts, *found)
    return replace(problem, space=replace(problem.space, drafts=drafts))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    problem=problems(),
    link=links,
    chances=st.lists(st.floats(0, 0.95), min_size=1, max_size=4).map(tuple),
    guess_s=st.floats(0, 0.01),
    pick=st.randoms(use_true_random=False),
)
def test_a_cell_says_what_one_request_says(
    problem: Problem, link: LinkPoint, chances: tuple[float, ...], guess_s: float, pick: Any
) -> None:
    problem = with_drafts(problem, chances, guess_s)
    grid, space = Grid(LinkIndependent(problem), link), problem.space
    cells = np.argwhere(np.broadcast_to(grid.fixed.exists, space.shape))
    for _ in range(8):
        cell = Cell(*map(int, pick.choice(cells)))
        split, front = space.splits[cell.split], space.fronts[cell.front]
        bits = front.bits_at(split)
        assert bits is not None
        setting = RequestSetting(
            edge=problem.edge,
            cloud=problem.cloud,
            link=link,
            geometry=problem.geometry,
            partition=Partition(
                split=split, front_bits=front.front_bits, back_bits=space.back_bits[cell.back]
            ),
            kv_bits=space.kv_bits[cell.kv],
            level=level_at(space.levels[cell.level], problem.quality, split),
            chunk=space.chunks[cell.chunk],
            exact_front=problem.exact_front,
            front_layer_bits=bits if front.layer_bits else (),
        )
        time = predict_request(
            setting,
            prompt_tokens=problem.limits.prompt_tokens,
            new_tokens=problem.answer_tokens,
            batch=problem.limits.num_sessions,
            drafting=space.drafts[cell.draft].drafting,
        )
        for mine, scalar in (
            (grid.tbt_s, time.tbt_s),
            (grid.tokens_per_round, time.tokens_per_round),
            (grid.edge_s_per_token, time.edge_s_per_token),
            (grid.cloud_s_per_token, time.cloud_s_per_token),
            (grid.uplink_bytes_per_token, time.uplink_bytes_per_token),
            *zip(grid.tbt_terms, time.tbt_terms, strict=True),
        ):
            assert np.broadcast_to(mine, space.shape)[cell] == pytest.approx(scalar, **CLOSE)


def test_what_a_run_reported_is_what_its_plan_counts_on_where_frames_go_ahead() -> None:
    cost = measured_drafting(2.5)
    assert cost.chances == pytest.approx((0.6,))
    assert 1 + sum(cost.reach) == pytest.approx(2.5)
    (first, *_) = draft_options(cost)
    assert first.drafting.num_drafts == 0
    assert first.drafting.tokens_per_round + sum(first.drafting.reach_ahead) == pytest.approx(2.5)


def test_all_drafters_together_take_what_the_devices_head_takes() -> None:
    head = DraftCost(kind="head", chances=(0.5,), guess_s=1e-3, memory_bytes=5e6, split=10)
    cost = measured_drafting(2.0, (head, DraftCost(kind="cloud", chances=(0.5,))))
    assert (cost.guess_s, cost.memory_bytes, cost.split) == (1e-3, 5e6, 10)
    assert measured_drafting(2.0).memory_bytes == 0


def test_deeper_guesses_are_as_good_as_the_last_that_is_known() -> None:
    reach = DraftCost(kind="cloud", chances=(0.5, 0.4)).reach
    assert reach[:4] == pytest.approx((0.5, 0.2, 0.08, 0.032))
    assert len(reach) == 64
