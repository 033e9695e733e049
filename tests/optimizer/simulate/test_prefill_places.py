"""Prompts that go as token ids: the simulation is the closed form, to the byte."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprofiles.links.catalog import load_link
from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.prefill import PrefillPlace
from optimizer.cost.cloud import SessionRows, back_step_s, sample_s
from optimizer.cost.codec import answer_bytes
from optimizer.cost.edge import front_prefill
from optimizer.cost.link import link_at
from optimizer.cost.prompt import prompt_ids
from optimizer.cost.request import predict_request
from optimizer.cost.setting import RequestSetting
from optimizer.errors import ScenarioError
from optimizer.simulate.measures import measure
from optimizer.simulate.scenario import (
    Fault,
    Lengths,
    Link,
    MeasuredSteps,
    Servers,
    StepPoint,
)
from optimizer.simulate.times import LowerRows, ModelledBack
from protos.sizes import token_frame_bytes
from tests.optimizer.simulate.scenes import GROUP, LEVEL, PLAN, SCENE, run, scene, setup_of
from tests.optimizer.simulate.test_analytic import NO_BYTES

EDGE, CLOUD = load_device("raspberry-pi-5-8gb"), load_device("local-epyc-2core")
GEOMETRY = PLAN.model.geometry
ALL_LAYERS = replace(PLAN, back_start=0)
IN_CLOUD = replace(ALL_LAYERS, prefill="cloud")


def place_of(place: PrefillPlace, link: str) -> RequestSetting:
    return RequestSetting(
        edge=EDGE,
        cloud=CLOUD,
        link=link_at(load_link(link), epsilon=0.5),
        geometry=GEOMETRY,
        partition=PLAN.partition,
        kv_bits=PLAN.kv_bits,
        level=LEVEL,
        chunk=PLAN.prefill_chunk,
        prefill=place,
    )


@pytest.mark.parametrize("link", ["lan", "wifi", "4g", "satellite"])
@pytest.mark.parametrize("place", ["edge", "cloud", "both"])
@pytest.mark.parametrize("prompt", [30, 150, 600])
def test_one_client_is_the_request_model_at_every_place(
    link: str, place: PrefillPlace, prompt: int
) -> None:
    group = {
        "link": Link(mix={link: 1.0}, quantile=0.5),
        "prompt_tokens": Lengths(median=prompt),
        "prefill": place,
    }
    record = run(scene(group=group, software=NO_BYTES, duration_s=30.0), ALL_LAYERS)
    setting = place_of(place, link)
    expected = predict_request(setting, prompt_tokens=prompt, new_tokens=20)
    row = record.requests[1]  # of an open connection
    # A row's frame of more than 256 rows and the model's step differ in how they are cut.
    assert row.ttft_s == pytest.approx(expected.ttft_s, rel=1e-9)
    assert row.prompt_ids == prompt_ids(setting, num_tokens=prompt)


def test_a_prompt_in_the_cloud_is_its_parts_written_out_by_hand() -> None:
    record = run(scene(software=NO_BYTES), IN_CLOUD)
    link = link_at(load_link("4g"), epsilon=0.5)
    found = (device.overheads.message_s for device in (EDGE, CLOUD))
    stacks_s = sum(figure.effective for figure in found if figure is not None)
    num_bytes = token_frame_bytes(150, want_token=True)
    all_layers_s = back_step_s(
        CLOUD, GEOMETRY, num_layers=GEOMETRY.num_layers, back_bits=8, kv_bits=32,
        sessions=[SessionRows(150, 0)], num_logits=1,
    )  # fmt: skip
    ttft_s = (
        link.rtt_s
        + stacks_s
        + num_bytes / link.up_bytes_per_s
        + all_layers_s
        + sample_s(CLOUD, GEOMETRY, num_logits=1)
        + answer_bytes(1) / link.down_bytes_per_s
    )
    assert record.requests[1].ttft_s == pytest.approx(ttft_s, abs=1e-9)
    asked = len(record.requests)
    assert record.prompt_ids == 150 * asked
    assert record.id_bytes == num_bytes * asked
    assert record.level_counts["ids"] == asked


def test_the_first_step_waits_until_the_device_has_computed_the_prompt_too() -> None:
    slow = "raspberry-pi-4-4gb"
    group = {"link": Link(mix={"lan": 1.0}, quantile=0.5), "devices": {slow: 1.0}}
    record = run(scene(group=group, software=NO_BYTES), IN_CLOUD)
    plain = run(scene(group=group, software=NO_BYTES), ALL_LAYERS)
    fill_s = front_prefill(
        load_device(slow), GEOMETRY, split=10, weight_bits=4, kv_bits=8, num_tokens=150, chunk=64
    ).sum()
    second = record.requests[1]
    assert second.ttft_s < fill_s  # or nothing would be waited for
    # The device fills its cache from the moment that the session is open: a round trip after the
    # question. The first gap is what is left of that, and a step.
    opened_s = place_of("cloud", "lan").link.rtt_s + place_of("cloud", "lan").stack_s
    waited_s = opened_s + fill_s - second.ttft_s
    first_gap = len(record.gaps_s) // len(record.requests)
    assert record.gaps_s[first_gap] - plain.gaps_s[first_gap] == pytest.approx(waited_s, abs=2e-3)
    assert record.gaps_s[first_gap + 1] == pytest.approx(plain.gaps_s[first_gap + 1])
    parts = sum(record.step_parts_s)
    assert parts == pytest.approx(sum(record.gaps_s), rel=1e-9)


def test_a_group_may_differ_from_the_plan() -> None:
    group = {"prefill": "edge"}
    assert run(scene(group=group), IN_CLOUD).prompt_ids == 0
    assert run(scene(), IN_CLOUD).prompt_ids > 0
    ids = replace(GROUP, name="ids", prefill="cloud")
    both = run(replace(SCENE, clients=(GROUP, ids)), ALL_LAYERS)
    rows = {row.group: row.prompt_ids for row in both.requests}
    assert rows == {0: 0, 1: 150}


def test_ids_are_shown_where_there_are_any() -> None:
    for plan, wanted in ((IN_CLOUD, True), (ALL_LAYERS, False)):
        found = measure(SCENE, [run(SCENE, plan)])
        assert (dict(found.for_people()).get("prompt tokens as ids") is not None) is wanted
        assert (found.prompt_ids > 0) is wanted


def test_a_batch_with_ids_runs_the_layers_below_for_them_alone() -> None:
    rows, ids = [SessionRows(1, 90), SessionRows(3, 7)], SessionRows(40, 0)
    found = ModelledBack(CLOUD, PLAN, kv_bits=32).seconds(rows, 5, [LowerRows(*ids, 0)])
    expected = back_step_s(
        CLOUD, GEOMETRY, num_layers=GEOMETRY.num_layers, back_bits=8, kv_bits=32,
        sessions=[*rows, ids], num_logits=5, skipped_layers=[10, 10, 0],
    )  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-12)


def test_ids_are_sent_again_after_a_lost_server() -> None:
    fault = Fault(kind="server_loss", at_s=1.5, duration_s=0.5)
    record = run(scene(faults=(fault,), duration_s=4.0), IN_CLOUD)
    assert record.reconnects == 1
    assert {row.outcome for row in record.requests} == {"done"}


MEASURED = MeasuredSteps(
    points=(StepPoint(rows=1, sessions=1, seconds=0.01),),
    context_tokens=100,
    attention_s_per_token=0.0,
)


def test_a_place_that_cannot_be_is_one_clear_line() -> None:
    with pytest.raises(ScenarioError, match="holds only the layers from 10 on"):
        setup_of(scene(group={"prefill": "cloud"}))
    servers = Servers(device="local-epyc-2core", measured=MEASURED)
    with pytest.raises(ScenarioError, match="nothing of the layers below"):
        setup_of(scene(servers=servers), IN_CLOUD)
    whole = replace(
        PLAN, partition=replace(PLAN.partition, split=GEOMETRY.num_layers), back_start=0
    )
    with pytest.raises(ScenarioError, match="this plan has no server"):
        setup_of(scene(group={"prefill": "both"}), whole)
