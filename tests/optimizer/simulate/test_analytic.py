"""Where a closed form exists, the simulation is that form."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace

import numpy as np
import pytest

from hwprofiles.links.catalog import load_link
from optimizer.cost.cloud import SessionRows, back_step_s, sample_s
from optimizer.cost.codec import LevelCost, answer_bytes, frame_bytes
from optimizer.cost.edge import front_step
from optimizer.cost.link import link_at
from optimizer.cost.request import expected_tokens, predict_request, round_parts
from optimizer.cost.round_trip import NEW_CONNECTION_ROUND_TRIPS
from optimizer.policy.batching import Scheduler
from optimizer.simulate.measures import ttft_s
from optimizer.simulate.record import RequestRow
from optimizer.simulate.scenario import (
    Arrivals,
    DraftingScenario,
    Lengths,
    Link,
    Servers,
    Software,
)
from tests.optimizer.simulate.scenes import CLOUD, EDGE, GROUP, LEVEL, PLAN, deployment, run, scene

GEOMETRY = PLAN.model.geometry
# The request model has round trips for opening, and no bytes.
NO_BYTES = Software(
    open_bytes=0,
    opened_bytes=0,
    close_bytes=0,
    closed_bytes=0,
    connect_up_bytes=0,
    connect_down_bytes=0,
)


ONE_AT_A_TIME = Scheduler(max_rows=1, max_sessions=1, min_prefill_rows=1)


@pytest.mark.parametrize("link", ["lan", "wifi", "4g", "satellite"])
def test_one_client_on_a_fixed_link_is_the_request_model(link: str) -> None:
    record = run(scene(group={"link": Link(mix={link: 1.0}, quantile=0.5)}, software=NO_BYTES))
    first, second, *_ = record.requests
    for row, round_trips in ((first, NEW_CONNECTION_ROUND_TRIPS), (second, 0.0)):
        expected = predict_request(
            deployment(link), prompt_tokens=150, new_tokens=20, open_round_trips=round_trips
        )
        assert row.ttft_s == pytest.approx(expected.ttft_s, abs=1e-9)
    for step in range(19):
        round_s = round_parts(deployment(link), position=150 + step).total_s
        assert record.gaps_s[step] == pytest.approx(round_s, abs=1e-9)
    gaps_s = record.gaps_s[:19]
    assert first.e2e_s == pytest.approx(first.ttft_s + math.fsum(gaps_s), abs=1e-9)


def test_a_prompt_has_its_own_bits_where_they_are_known() -> None:
    dear = replace(LEVEL, prompt_bits_per_element=4.0)
    record = run(scene(software=NO_BYTES, levels=(dear,)))
    place = replace(deployment(), level=dear)
    expected = predict_request(place, prompt_tokens=150, new_tokens=20)
    second = record.requests[1]
    assert second.ttft_s == pytest.approx(expected.ttft_s, abs=1e-9)
    plain = predict_request(deployment(), prompt_tokens=150, new_tokens=20)
    assert expected.ttft_s > plain.ttft_s + 1e-3
    assert expected.tbt_s == plain.tbt_s


def test_one_short_request_is_its_parts_written_out_by_hand() -> None:
    """Independent of the request model: one chunk up, one token down, one step."""
    record = run(
        scene(
            group={"prompt_tokens": Lengths(median=30), "output_tokens": Lengths(median=2)},
            software=NO_BYTES,
        )
    )
    link = link_at(load_link("4g"), epsilon=0.5)
    found = (device.overheads.message_s for device in (EDGE, CLOUD))
    stacks = sum(figure.effective for figure in found if figure is not None)

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
        drawn = sample_s(CLOUD, GEOMETRY, num_logits=1)
        return float(front + codec + wire + link.rtt_s + stacks + back + drawn)

    round_trip = link.rtt_s + stacks
    front_s = front_step(
        EDGE, GEOMETRY, split=10, weight_bits=4, kv_bits=8, num_rows=30, position=0
    ).total_s
    first, second, *_ = record.requests
    for row, connected_s in ((first, 3 * round_trip), (second, 0.0)):
        # The chunk is made while the connection is, and leaves behind the Open.
        ready_s = front_s + 1e-4 + 4e-8 * 30 * GEOMETRY.hidden_size
        waited_s = max(connected_s, ready_s)
        assert row.ttft_s == pytest.approx(waited_s + trip(30, 0) - ready_s, abs=1e-9)
    # The device is free when the stream has ended, a round trip after the last token; then the
    # thought of one second begins.
    assert second.asked_s - (first.asked_s + first.e2e_s) == pytest.approx(1 + round_trip, abs=1e-9)
    assert record.gaps_s[0] == pytest.approx(trip(1, 30), abs=1e-9)


def test_parts_add_up_to_what_was_waited() -> None:
    record = run(scene(group={"count": 6, "link": Link(mix={"4g": 1.0})}, duration_s=60.0))
    assert sum(record.step_parts_s) == pytest.approx(sum(record.gaps_s), rel=1e-9)
    assert sum(record.first_parts_s) == pytest.approx(float(ttft_s([record]).sum()), rel=1e-9)


def test_every_wait_of_many_clients_is_lindleys() -> None:
    """Before a server that takes one row at a time: Lindley's (1952) recursion on the questions
    that were drawn, client by client."""
    # A codec that takes no time: the server decodes all that came in before it starts a batch,
    # which is not one customer at a time.
    free = LevelCost(name="q3", bits_per_element=2.68)
    place = replace(deployment("lan"), level=free)
    one_row = round_parts(place, position=0)
    service_s = float(one_row.back_s + one_row.sample_s)
    clients, requests, load = 800, 8_000, 0.6
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
                batch=ONE_AT_A_TIME,
            ),
            software=replace(NO_BYTES, connect_round_trips=0),
            levels=(free,),
            duration_s=duration_s,
        )
    )
    unhindered_s = predict_request(place, prompt_tokens=1, new_tokens=1).ttft_s
    closing_s = place.link.rtt_s + place.stack_s
    lindley = lindley_waits(record.requests, service_s, unhindered_s, closing_s)
    assert len(lindley) > 7_500
    assert ttft_s([record]) - unhindered_s == pytest.approx(np.array(lindley), abs=1e-9)
    drawn_load = len(lindley) / duration_s * service_s
    assert record.servers[0].busy_s == pytest.approx(drawn_load * duration_s, rel=1e-3)


def lindley_waits(
    rows: list[RequestRow], service_s: float, unhindered_s: float, closing_s: float
) -> list[float]:
    """What each request waits before a server that takes one at a time, in the rows' order.

    A client puts its next question when it has closed the last: its `unhindered_s`, its wait and
    `closing_s` later.
    """
    questions: dict[int, list[int]] = {}
    for index in reversed(range(len(rows))):
        questions.setdefault(rows[index].client, []).append(index)
    put = [(rows[own[-1]].asked_s, own.pop(), client) for client, own in questions.items()]
    heapq.heapify(put)
    free_s, waits = 0.0, [0.0] * len(rows)
    while put:
        begun_s, index, client = heapq.heappop(put)
        wait_s = max(0.0, free_s - begun_s)
        free_s = begun_s + wait_s + service_s
        waits[index] = begun_s + wait_s - rows[index].asked_s
        if questions[client]:
            following = questions[client].pop()
            ended_s = begun_s + wait_s + unhindered_s + closing_s
            heapq.heappush(put, (max(rows[following].asked_s, ended_s), following, client))
    return waits


def test_drafts_bring_the_expected_tokens_a_round() -> None:
    plan = replace(PLAN, drafting="ngram")
    record = run(
        scene(
            group={"output_tokens": Lengths(median=400), "arrivals": GROUP.arrivals},
            drafting=DraftingScenario(acceptance=0.7, length=4, best_length=False),
            duration_s=200.0,
        ),
        plan,
    )
    per_round = (len(record.gaps_s)) / record.steps
    assert per_round == pytest.approx(expected_tokens(0.7, 4), rel=0.03)
