"""Where a closed form exists, the simulation is that form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from hwprofiles.device_catalog import load_device
from hwprofiles.link import load_link
from optimizer.cost.cloud import SessionRows, back_step_s, sample_s
from optimizer.cost.codec import answer_bytes, frame_bytes
from optimizer.cost.edge import front_step
from optimizer.cost.link import link_at
from optimizer.cost.request import Deployment, expected_tokens, predict_request, round_parts
from optimizer.simulate.measures import ttft_s
from optimizer.simulate.scenario import (
    Arrivals,
    BatchLimits,
    Drafting,
    Lengths,
    Link,
    Servers,
    Software,
)
from tests.optimizer_simulate.scenes import GROUP, LEVEL, PLAN, run, scene

EDGE, CLOUD = load_device("raspberry-pi-5-8gb"), load_device("local-epyc-2core")
GEOMETRY = PLAN.model.geometry
# As many bytes as the request model's round trip for opening has: none.
NO_BYTES = Software(open_bytes=0, opened_bytes=0)


def deployment(link: str = "4g") -> Deployment:
    return Deployment(
        edge=EDGE,
        cloud=CLOUD,
        link=link_at(load_link(link), epsilon=0.5),
        geometry=GEOMETRY,
        partition=PLAN.partition,
        kv_bits=PLAN.kv_bits,
        level=LEVEL,
        chunk=PLAN.prefill_chunk,
    )


@pytest.mark.parametrize("link", ["lan", "wifi", "4g", "satellite"])
def test_one_client_on_a_fixed_link_is_the_request_model(link: str) -> None:
    record = run(scene(group={"link": Link(mix={link: 1.0}, quantile=0.5)}, software=NO_BYTES))
    expected = predict_request(deployment(link), prompt_tokens=150, new_tokens=20)
    [first, *_] = record.requests
    assert first.ttft_s == pytest.approx(expected.ttft_s, abs=1e-9)
    for step in range(19):
        round_s = round_parts(deployment(link), position=150 + step).total_s
        assert record.gaps_s[step] == pytest.approx(round_s, abs=1e-9)
    gaps_s = record.gaps_s[:19]
    assert first.e2e_s == pytest.approx(first.ttft_s + math.fsum(gaps_s), abs=1e-9)


def test_one_short_request_is_its_parts_written_out_by_hand() -> None:
    """Independent of the request model: one chunk up, one token down, one step."""
    record = run(
        scene(
            group={"prompt_tokens": Lengths(median=30), "output_tokens": Lengths(median=2)},
            software=NO_BYTES,
        )
    )
    link = link_at(load_link("4g"), epsilon=0.5)

    def trip(rows: int, position: int) -> float:
        front = front_step(
            EDGE, GEOMETRY, split=10, weight_bits=4, kv_bits=8, num_rows=rows, position=position
        ).total_s
        back = back_step_s(
            CLOUD,
            GEOMETRY,
            num_layers=GEOMETRY.num_layers - 10,
            back_bits=8,
            kv_bits=32,
            sessions=[SessionRows(rows, position)],
            num_logits=1,
        )
        codec = 1.6e-4 + 9e-8 * rows * GEOMETRY.hidden_size
        num_bytes = frame_bytes(LEVEL, hidden_size=GEOMETRY.hidden_size, num_rows=rows)
        wire = num_bytes / link.up_bytes_per_s + answer_bytes(1) / link.down_bytes_per_s
        stacks = sum(
            device.overheads.message_s.effective
            for device in (EDGE, CLOUD)
            if device.overheads.message_s is not None
        )
        drawn = sample_s(CLOUD, GEOMETRY, num_logits=1)
        return front + codec + wire + link.rtt_s + stacks + back + drawn

    stacks = trip(30, 0) - trip(30, 0)
    opening = (
        link.rtt_s
        + stacks
        + sum(
            device.overheads.message_s.effective
            for device in (EDGE, CLOUD)
            if device.overheads.message_s is not None
        )
    )
    assert record.requests[0].ttft_s == pytest.approx(opening + trip(30, 0), abs=1e-9)
    assert record.gaps_s[0] == pytest.approx(trip(1, 30), abs=1e-9)


def test_parts_add_up_to_what_was_waited() -> None:
    record = run(scene(group={"count": 6, "link": Link(mix={"4g": 1.0})}, duration_s=60.0))
    assert sum(record.step_parts_s) == pytest.approx(sum(record.gaps_s), rel=1e-9)
    assert sum(record.first_parts_s) == pytest.approx(float(ttft_s([record]).sum()), rel=1e-9)


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_a_server_that_takes_one_at_a_time_is_the_m_d_1_queue(load: float) -> None:
    """Mean wait of M/D/1: load * service / (2 (1 - load)) (Pollaczek-Khinchine)."""
    one_row = round_parts(deployment("lan"), position=0)
    service_s = one_row.decode_s + one_row.back_s + one_row.sample_s
    clients, requests = 3000, 36_000
    duration_s = requests * service_s / load
    record = run(
        scene(
            group={
                "count": clients,
                "link": Link(mix={"lan": 1.0}, quantile=0.5),
                "arrivals": Arrivals(kind="poisson", rate_per_s=load / service_s / clients),
                "prompt_tokens": Lengths(median=1),
                "output_tokens": Lengths(median=1),
            },
            servers=Servers(
                device="local-epyc-2core",
                max_sessions=10**9,
                kv_memory_bytes=1e15,
                batch=BatchLimits(max_rows=1, max_sessions=1, min_prefill_rows=1),
            ),
            software=NO_BYTES,
            duration_s=duration_s,
            seed=5,
        )
    )
    unhindered = predict_request(deployment("lan"), prompt_tokens=1, new_tokens=1).ttft_s
    waits = ttft_s([record]) - unhindered
    assert len(waits) > 0.95 * requests
    rate = len(waits) / duration_s  # what was drawn, not what was asked for
    drawn_load = rate * service_s
    expected = drawn_load * service_s / (2 * (1 - drawn_load))
    assert float(np.mean(waits)) == pytest.approx(expected, rel=0.02)


def test_drafts_bring_the_expected_tokens_a_round() -> None:
    plan = replace(PLAN, drafting="ngram")
    record = run(
        scene(
            group={"output_tokens": Lengths(median=400), "arrivals": GROUP.arrivals},
            drafting=Drafting(acceptance=0.7, length=4, best_length=False),
            duration_s=200.0,
        ),
        plan,
    )
    per_round = (len(record.gaps_s)) / record.steps
    assert per_round == pytest.approx(expected_tokens(0.7, 4), rel=0.03)
