"""The demo's parts: it plans a real split, and asks across an emulated link."""

from __future__ import annotations

import time

from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from hwprofiles.profiles.catalog import load_device
from optimizer.cost.link import LinkPoint
from splitpoint.commands.demo import _Question
from splitpoint.server_process import crossing
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer

SLOW = LinkPoint(up_bytes_per_s=1.25e6, down_bytes_per_s=2.5e6, rtt_s=0.04)


def test_the_demo_plans_a_split_where_a_free_choice_would_be_none(bench: ModelBench) -> None:
    layers = bench.num_layers
    question = _Question(
        bench.source,
        load_device("local-epyc-2core"),
        load_device("local-epyc-2core-cloud"),
        1 << 30,
        "made up",
        SLOW,
    )
    assert question.plan(range(layers + 1), "tbt").partition.split == layers  # the device has room
    plan = question.plan(range(1, layers))
    assert 0 < plan.partition.split < layers
    assert plan.predicted is not None


def test_across_the_emulated_link_tokens_are_the_same_and_a_round_trip_later(
    bench: ModelBench, server: RunningServer
) -> None:
    request = CompletionRequest(max_new_tokens=5, ignore_eos=True, draft="off")
    bundle = bench.edge_bundle(2)
    with EdgeClient(bundle, server.address) as client:
        near = client.complete("abc", request)
    with crossing(SLOW, server.address) as address, EdgeClient(bundle, address) as client:
        started_s = time.monotonic()
        far = client.complete("abc", request)
        took_s = time.monotonic() - started_s
    assert far.token_ids == near.token_ids
    assert took_s > 5 * SLOW.rtt_s
