"""The rows beside a plan are the best of their splits, and the sentence under them is true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from optimizer.cost.link import LinkPoint
from optimizer.search.alternatives import PlanAlternative, alternatives, why
from optimizer.search.planner import Planner
from optimizer.search.problem import Problem
from tests.optimizer.search.brute import BruteForce
from tests.optimizer.search.instances import links, problems

ROW = PlanAlternative(
    what="this plan",
    split=5,
    ttft_s=1.0,
    tbt_s=0.1,
    cloud_s_per_token=0.05,
    uplink_bytes_per_token=500.0,
    edge_memory_bytes=1e9,
    quality_drop_pct=1.0,
)
CLOUD = replace(ROW, what="all in the cloud", split=0, cloud_s_per_token=0.1)
DEVICE = replace(ROW, what="all on the device", split=10, broken=("edge memory", "TBT"))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), link=links)
def test_every_row_is_the_best_of_its_split(problem: Problem, link: LinkPoint) -> None:
    problem = replace(problem, objective="tbt", slack=0.0)
    planner = Planner(problem)
    found = planner.solve(link)
    assume(found is not None)
    assert found is not None
    rows = alternatives(planner, link, found)
    assert len({row.split for row in rows}) == len(rows)
    for row in rows[1:]:
        space = replace(problem.space, splits=(row.split,))
        alone = replace(problem, space=space)
        brute = BruteForce(alone, link, Planner(alone).fixed.lengths)
        kept = [
            outcome.tbt_s
            for outcome in brute.outcomes
            if brute.keeps(outcome, problem.limits, problem.max_tokens)
        ]
        assert bool(row.broken) == (not kept)
        if not kept:
            grid = Planner(alone).grid(link)
            shape = space.shape
            broken = sum(~np.broadcast_to(limit.kept, shape) for limit in grid.constraints)
            exists = np.broadcast_to(grid.fixed.exists, shape)
            assert len(row.broken) == np.asarray(broken)[exists].min()
        if kept:
            assert row.tbt_s == pytest.approx(min(kept), rel=1e-8)


def test_the_sentence_says_what_is_saved_and_what_forbids_the_rest() -> None:
    said = why((ROW, CLOUD, DEVICE), num_layers=10)
    assert said == (
        "The server works 50 % less for a token than with all layers in the cloud; all layers on "
        "the device would break the limit on edge memory and TBT."
    )


def test_plain_cloud_that_is_better_everywhere_is_called_so() -> None:
    better = replace(CLOUD, cloud_s_per_token=0.04, uplink_bytes_per_token=35.0)
    assert why((ROW, better), num_layers=10).startswith(
        "All in the cloud is better in every column"
    )
    assert not replace(better, ttft_s=2.0).is_better_everywhere(ROW)
    assert not ROW.is_better_everywhere(ROW)


def test_a_whole_device_and_a_whole_cloud_are_named() -> None:
    assert why((replace(ROW, split=10),), num_layers=10) == (
        "The device holds every layer within the limits, so no server is needed."
    )
    assert why((replace(ROW, split=0), DEVICE), num_layers=10) == (
        "The server runs every layer and gets token ids: a split would not pay here; all layers on "
        "the device would break the limit on edge memory and TBT."
    )
