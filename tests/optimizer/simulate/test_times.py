"""Taken apart and remembered, the cost models still say what they said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.plan import ModelRef
from optimizer.artifacts.specs import load_spec
from optimizer.cost.cloud import SessionRows, back_step_s
from optimizer.errors import ScenarioError
from optimizer.simulate.scenario import MeasuredSteps, Servers, StepPoint
from optimizer.simulate.server_setup import back_times
from optimizer.simulate.times import MeasuredBack, ModelledBack
from tests.optimizer.simulate.scenes import PLAN, scene, setup_of

SESSION = st.builds(SessionRows, st.integers(1, 200), st.integers(0, 3000))
SLIDING = replace(
    PLAN, model=ModelRef(id="g", sha256="1" * 64, geometry=load_spec("gemma-2-9b").geometry)
)
BACKS = {
    (device, plan.model.id): (
        load_device(device),
        plan,
        ModelledBack(load_device(device), plan, kv_bits=bits),
        bits,
    )
    for device, bits in (("local-epyc-2core", 32), ("l4-24gb", 16))
    for plan in (PLAN, SLIDING)
}


@settings(max_examples=60, deadline=None)
@given(batch=st.lists(SESSION, min_size=1, max_size=12), logits=st.integers(0, 12))
@pytest.mark.parametrize("key", BACKS)
def test_a_batch_takes_what_the_cost_model_says(
    key: tuple[str, str], batch: list[SessionRows], logits: int
) -> None:
    device, plan, back, bits = BACKS[key]
    geometry = plan.model.geometry
    expected = back_step_s(
        device,
        geometry,
        num_layers=geometry.num_layers - plan.partition.split,
        back_bits=plan.partition.back_bits,
        kv_bits=bits,
        sessions=batch,
        num_logits=logits,
    )
    assert back.seconds(batch, logits) == pytest.approx(expected, rel=1e-9)


def test_measured_batches_are_met_and_joined_by_lines() -> None:
    points = [(1, 1, 0.010), (4, 4, 0.022), (8, 8, 0.030), (64, 1, 0.080), (128, 1, 0.140)]
    measured = MeasuredSteps(
        points=tuple(StepPoint(rows=r, sessions=s, seconds=t) for r, s, t in points),
        context_tokens=100,
        attention_s_per_token=1e-6,
    )
    back = MeasuredBack(replace(measured, attention_s_per_token=0.0))
    for rows, sessions, seconds in points:
        share = rows // sessions
        assert back.seconds([SessionRows(share, 99)] * sessions, 1) == pytest.approx(seconds)
    assert back.seconds([SessionRows(1, 0)] * 6, 6) == pytest.approx(0.026)
    further = MeasuredBack(measured).seconds([SessionRows(1, 1099)], 1)
    assert further == pytest.approx(0.010 + 1e-6 * 999.5)


def test_measured_batches_spread_as_they_were_seen_to() -> None:
    point = (StepPoint(rows=1, sessions=1, seconds=0.010),)
    measured = MeasuredSteps(
        points=point, context_tokens=1, attention_s_per_token=0.0, spread=(0.9, 1.0, 1.4)
    )
    back, again = MeasuredBack(measured, seed=1), MeasuredBack(measured, seed=1)
    drawn = sorted(back.seconds([SessionRows(1, 0)], 1) for _ in range(2001))
    assert 0.009 <= drawn[0] < drawn[-1] <= 0.014
    assert drawn[1000] == pytest.approx(0.010, rel=0.02)
    assert again.seconds([SessionRows(1, 0)], 1) in drawn


def test_measured_batches_need_a_first_point() -> None:
    with pytest.raises(ScenarioError, match="one row of one session"):
        MeasuredSteps(
            points=(StepPoint(rows=4, sessions=4, seconds=1.0),),
            context_tokens=1,
            attention_s_per_token=0.0,
        )


def test_no_two_servers_and_no_two_seeds_draw_the_same_batches_and_decisions_draw_none() -> None:
    measured = MeasuredSteps(
        points=(StepPoint(rows=1, sessions=1, seconds=0.010),),
        context_tokens=256,
        attention_s_per_token=0.0,
        spread=(0.5, 1.0, 1.5),
    )
    setup = setup_of(scene(servers=Servers(device="local-epyc-2core", measured=measured)))

    def some(seed: int | None) -> list[float]:
        back = back_times(setup, seed)
        return [back.seconds([SessionRows(1, 0)], 1) for _ in range(5)]

    assert some(1) == some(1) != some(2)
    assert some(None) == [0.010] * 5
