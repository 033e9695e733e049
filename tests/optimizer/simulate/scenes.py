"""Small scenarios that the simulator's tests start from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hwprofiles.links.catalog import load_link
from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.artifacts.specs import load_spec
from optimizer.cost.codec import LevelCost
from optimizer.cost.link import link_at
from optimizer.cost.setting import RequestSetting
from optimizer.simulate.record import Record
from optimizer.simulate.scenario import Arrivals, Clients, Lengths, Link, Scenario, Servers
from optimizer.simulate.setup import Setup, load_setup
from optimizer.simulate.simulation import simulate

LEVEL = LevelCost(
    name="q3",
    bits_per_element=2.68,
    encode_fixed_s=1e-4,
    encode_s_per_element=4e-8,
    decode_fixed_s=6e-5,
    decode_s_per_element=5e-8,
)
PLAN = Plan(
    model=ModelRef(id="m", sha256="0" * 64, geometry=load_spec("smollm2-135m").geometry),
    partition=Partition(split=10, front_bits=4, back_bits=8),
    back_start=10,
    kv_bits=8,
    level="q3",
    max_tokens=1024,
    prefill_chunk=64,
)
GROUP = Clients(
    name="clients",
    count=1,
    devices={"raspberry-pi-5-8gb": 1.0},
    link=Link(mix={"4g": 1.0}, quantile=0.5),
    arrivals=Arrivals(kind="closed", think_s=1.0, fixed_think=True),
    prompt_tokens=Lengths(median=150),
    output_tokens=Lengths(median=20),
)
SCENE = Scenario(
    name="scene",
    clients=(GROUP,),
    servers=Servers(device="local-epyc-2core"),
    duration_s=10.0,
    drain_s=60.0,
    adaptive_chunks=False,
)


EDGE, CLOUD = load_device("raspberry-pi-5-8gb"), load_device("local-epyc-2core")


def deployment(link: str = "4g") -> RequestSetting:
    """SCENE's and PLAN's, for the cost models."""
    return RequestSetting(
        edge=EDGE,
        cloud=CLOUD,
        link=link_at(load_link(link), epsilon=0.5),
        geometry=PLAN.model.geometry,
        partition=PLAN.partition,
        kv_bits=PLAN.kv_bits,
        level=LEVEL,
        chunk=PLAN.prefill_chunk,
    )


def scene(*, group: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    """SCENE with keys of its group and of itself replaced."""
    return replace(SCENE, clients=(replace(GROUP, **(group or {})),), **changes)


def setup_of(scenario: Scenario, plan: Plan = PLAN) -> Setup:
    return load_setup(scenario, plan, {LEVEL.name: LEVEL})


def run(scenario: Scenario, plan: Plan = PLAN) -> Record:
    """One replication."""
    return simulate(setup_of(scenario, plan))


def same(first: Record, second: Record) -> bool:
    """Whether two records tell the same story (their wall times aside)."""
    return (
        all(
            np.array_equal(np.array(a[:8]), np.array(b[:8]), equal_nan=True)
            and a.outcome == b.outcome
            for a, b in zip(first.requests, second.requests, strict=True)
        )
        and first.gaps_s == second.gaps_s
        and first.servers == second.servers
        and first.events == second.events
    )
