"""Explanations are true: what they claim of other limits and links holds when planned again."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.prediction import Limits
from optimizer.artifacts.specs import load_spec
from optimizer.cost.link import LinkPoint, link_at
from optimizer.search.explain import (
    LIMIT_FIELDS,
    binding_limits,
    explain,
    flips,
    relaxations,
)
from optimizer.search.planner import Planner
from optimizer.search.problem import Problem
from optimizer.search.request import make_problem
from tests.optimizer.search.instances import links, problems

SMOL = load_spec("smollm2-135m").geometry
LINK = LinkPoint(up_bytes_per_s=4e5, down_bytes_per_s=4e5, rtt_s=0.05)
RELAXED = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def relaxed(limits: Limits, changes: dict[str, float]) -> Limits:
    """The limits with these fields changed."""
    fields: dict[str, Any] = dict(changes)
    return replace(limits, **fields)


def limits_between(planner: Planner, link: LinkPoint, shares: list[float]) -> Limits:
    """Limits that lie at these shares between the least and the most of what configurations
    need."""
    limits = planner.problem.limits
    grid = planner.grid(link, replace(limits, max_tbt_s=1e9, max_ttft_s=1e9))
    changes = {}
    for constraint, share in zip(grid.constraints, shares, strict=False):
        values = np.broadcast_to(constraint.values, grid.fixed.exists.shape)[grid.fixed.exists]
        low, high = float(values.min()), float(values.max())
        changes[LIMIT_FIELDS[constraint.name]] = max(low + share * (high - low), 1e-9)
    return relaxed(limits, changes)


@RELAXED
@given(
    problem=problems(), link=links, shares=st.lists(st.floats(-0.2, 0.4), min_size=4, max_size=4)
)
def test_a_relaxation_is_enough_and_nothing_less_is(
    problem: Problem, link: LinkPoint, shares: list[float]
) -> None:
    planner = Planner(problem)
    limits = limits_between(planner, link, shares)
    assume(planner.solve(link, limits) is None)
    for item in relaxations(planner.grid(link, limits)):
        if item.limit == "max tokens":
            continue
        field = LIMIT_FIELDS[item.limit]
        if item.needed is None:
            assert planner.solve(link, relaxed(limits, {field: math.inf})) is None
            continue
        assert item.needed > item.given
        enough = planner.solve(link, relaxed(limits, {field: item.needed * (1 + 1e-9)}))
        less = planner.solve(link, relaxed(limits, {field: item.needed * (1 - 1e-6)}))
        assert enough is not None
        assert less is None


@RELAXED
@given(problem=problems(), link=links, shares=st.lists(st.floats(0.0, 0.6), min_size=4, max_size=4))
def test_a_binding_limit_holds_the_objective_back(
    problem: Problem, link: LinkPoint, shares: list[float]
) -> None:
    planner = Planner(replace(problem, slack=0.0))
    limits = limits_between(planner, link, shares)
    found = planner.solve(link, limits)
    assume(found is not None)
    assert found is not None
    binding = binding_limits(planner, link, found)
    lifted = relaxed(limits, {LIMIT_FIELDS[name]: math.inf for name in binding})
    free = planner.solve(link, lifted)
    assert free is not None
    if binding:
        assert free.value < found.value
    given_limits = [one for one in LIMIT_FIELDS.values() if getattr(limits, one) is not None]
    everything = dict.fromkeys(given_limits, math.inf)
    unlimited = planner.solve(link, relaxed(limits, everything))
    assert unlimited is not None
    if not binding:
        assert unlimited.value >= found.value * (1 - 1e-5)


def real_planner() -> Planner:
    limits = Limits(edge_memory_bytes=190e6, max_tbt_s=0.2, prompt_tokens=64)
    return Planner(
        make_problem(
            SMOL,
            load_device("raspberry-pi-5-8gb"),
            load_device("local-epyc-2core"),
            limits=limits,
            max_tokens=512,
        )
    )


def test_prices_are_what_planning_again_finds() -> None:
    planner = real_planner()
    found = planner.solve(LINK)
    assert found is not None
    prices = {price.change: price for price in explain(planner, LINK, found).prices}
    more = planner.solve(LINK, replace(planner.problem.limits, edge_memory_bytes=190e6 + 2**26))
    faster = planner.solve(replace(LINK, up_bytes_per_s=4e5 + 1.25e6))
    nearer = planner.solve(replace(LINK, rtt_s=0.04))
    for change, other in (
        ("64 MiB more edge memory", more),
        ("10 Mbit/s more uplink", faster),
        ("10 ms less round trip", nearer),
    ):
        assert other is not None
        price = prices[change]
        assert (price.before, price.after) == (found.value, other.value)
        assert price.split == planner.split_of(other.cell)
    assert prices["10 ms less round trip"].gain > 0.0099


def test_flips_are_the_nearest_ones_on_a_fine_scan() -> None:
    planner = real_planner()
    found = planner.solve(LINK)
    assert found is not None
    split = planner.split_of(found.cell)
    for flip in flips(planner, LINK, found):
        if flip.quantity != "edge memory [bytes]":
            continue
        steps = np.geomspace(190e6, flip.value, 60)
        for memory in steps[:-1]:
            limits = replace(planner.problem.limits, edge_memory_bytes=float(memory))
            other = planner.solve(LINK, limits)
            assert other is not None
            # A bisection of eight halvings of a 7 % step: within 0.03 % of the flip.
            if abs(memory / flip.value - 1) > 5e-4:
                assert planner.split_of(other.cell) == split
        at = planner.solve(LINK, replace(planner.problem.limits, edge_memory_bytes=flip.value))
        assert (None if at is None else planner.split_of(at.cell)) == flip.split != split


def test_a_bad_quantile_is_planned_like_the_link_it_is() -> None:
    from hwprofiles.links.catalog import load_link

    planner = real_planner()
    profile = load_link("4g")
    bad = planner.solve(link_at(profile, epsilon=0.05))
    same = planner.solve(
        LinkPoint(
            up_bytes_per_s=profile.up_bytes_per_s.p05,
            down_bytes_per_s=profile.down_bytes_per_s.p05,
            rtt_s=profile.rtt_s.p95,
        )
    )
    assert bad is not None
    assert same is not None
    assert (bad.cell, bad.value) == (same.cell, same.value)
