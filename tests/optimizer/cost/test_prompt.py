"""A prompt whose first tokens go as ids: the request model and the device's policy say the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge.generation.prefill_planner import PrefillPlanner
from hwprofiles.links.catalog import load_link
from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.plan import Partition
from optimizer.artifacts.prefill import PREFILL_PLACES, PrefillPlace
from optimizer.artifacts.specs import load_spec
from optimizer.cost.codec import LevelCost
from optimizer.cost.link import LinkPoint, link_at
from optimizer.cost.prompt import (
    cloud_prefill_s,
    prefill_costs,
    prefill_s,
    prompt_bytes,
    prompt_chunks,
    prompt_ids,
)
from optimizer.cost.request import predict_request
from optimizer.cost.setting import RequestSetting
from optimizer.policy.prefill_place import GRAIN, num_ids, ttft_s
from protos import wire
from protos.messages import Frame
from tests.edge.generation.steps import step_trace

GEOMETRY = load_spec("smollm2-135m").geometry
SETTING = RequestSetting(
    edge=load_device("raspberry-pi-5-8gb"),
    cloud=load_device("local-epyc-2core"),
    link=link_at(load_link("4g"), epsilon=0.5),
    geometry=GEOMETRY,
    partition=Partition(split=10, front_bits=4, back_bits=8),
    kv_bits=8,
    level=LevelCost(name="q3", bits_per_element=2.7, encode_fixed_s=1e-4, decode_fixed_s=6e-5),
    chunk=64,
)
CLOUD = replace(SETTING, prefill="cloud")
BOTH = replace(SETTING, prefill="both")
# A device, a link and a server that are nearly as fast as each other: a prompt is shared.
EVEN = replace(
    BOTH,
    cloud=load_device("raspberry-pi-5-8gb"),
    link=LinkPoint(up_bytes_per_s=1e5, down_bytes_per_s=1e6, rtt_s=0.05),
)


@pytest.mark.parametrize("num_tokens", [1, 20, 150, 700])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_prompt_in_the_cloud_takes_what_the_policy_says(num_tokens: int, batch: int) -> None:
    costs = prefill_costs(CLOUD, num_tokens=num_tokens, batch=batch)
    predicted_s = prefill_s(CLOUD, num_tokens=num_tokens, batch=batch)
    assert predicted_s == pytest.approx(ttft_s(costs, num_tokens, num_tokens), rel=1e-12)
    request = predict_request(CLOUD, prompt_tokens=num_tokens, new_tokens=1, batch=batch)
    assert request.ttft_s == pytest.approx(predicted_s, rel=1e-12)


@pytest.mark.parametrize("num_tokens", [1, 20, 150, 700])
@pytest.mark.parametrize("setting", [BOTH, EVEN], ids=["4g", "even"])
def test_both_sends_as_many_ids_as_the_policy_says(
    setting: RequestSetting, num_tokens: int
) -> None:
    costs = prefill_costs(setting, num_tokens=num_tokens)
    assert prompt_ids(setting, num_tokens=num_tokens) == num_ids("both", num_tokens, costs)


def test_a_device_that_measured_these_steps_decides_nearly_as_the_plan() -> None:
    """The device tells the layers below the split from its share of all layers alone."""
    num_tokens = 700
    costs = prefill_costs(EVEN, num_tokens=num_tokens)
    planned = prompt_ids(EVEN, num_tokens=num_tokens)
    assert 0 < planned < num_tokens
    chunks = prompt_chunks(EVEN, num_tokens=num_tokens)
    planner = PrefillPlanner(split=10, num_layers=GEOMETRY.num_layers, chunk_tokens=64)
    bytes_up = int(chunks.frame_bytes.sum())
    trace = step_trace(
        phase="prefill",
        num_rows=num_tokens,
        front_s=float(chunks.edge_s.sum()),
        encode_s=0.0,
        cloud_compute_s=float(chunks.cloud_s.sum()),
        hidden_bytes=bytes_up,
        uplink_bytes=bytes_up,
    )
    planner.learn(trace, is_prefill=True, seconds_per_byte=1 / EVEN.link.up_bytes_per_s)
    decided = planner.num_ids("both", num_tokens)
    assert ttft_s(costs, num_tokens, decided) < 1.1 * ttft_s(costs, num_tokens, planned)


@pytest.mark.parametrize("num_tokens", [1, 150, 1024, 1500])
def test_ids_take_the_bytes_of_real_messages(num_tokens: int) -> None:
    frames = [
        Frame(
            sequence=number,
            first_position=start,
            token_ids=tuple(range(20_000 + start, 20_000 + min(start + 1024, num_tokens))),
            hidden=b"",
            want_token=start + 1024 >= num_tokens,
        )
        for number, start in enumerate(range(0, num_tokens, 1024))
    ]
    sent = sum(len(wire.encode_edge(frame)) + 5 + 9 for frame in frames)
    assert prompt_bytes(CLOUD, num_tokens=num_tokens) == sent
    request = predict_request(CLOUD, prompt_tokens=num_tokens, new_tokens=1)
    assert request.uplink_bytes == sent


def test_ids_cost_the_server_all_layers_and_rows_cost_it_the_back() -> None:
    on_edge, in_cloud = (cloud_prefill_s(one, num_tokens=150) for one in (SETTING, CLOUD))
    ratio = GEOMETRY.num_layers / (GEOMETRY.num_layers - 10)
    assert on_edge < in_cloud < 1.3 * ratio * on_edge


def test_what_is_shared_is_sooner_than_either_alone() -> None:
    seconds = {
        place: prefill_s(replace(EVEN, prefill=place), num_tokens=700) for place in PREFILL_PLACES
    }
    assert prompt_ids(EVEN, num_tokens=700) % GRAIN == 0
    assert seconds["both"] < min(seconds["edge"], seconds["cloud"])


@pytest.mark.parametrize("split", [0, GEOMETRY.num_layers])
@pytest.mark.parametrize("place", ["cloud", "both"])
def test_at_the_ends_a_prompt_has_one_place(split: int, place: PrefillPlace) -> None:
    plain = replace(SETTING, partition=replace(SETTING.partition, split=split))
    placed = replace(plain, prefill=place)
    first, second = (
        predict_request(setting, prompt_tokens=150, new_tokens=20) for setting in (placed, plain)
    )
    assert first == second
