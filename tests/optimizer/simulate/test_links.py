"""A simulated link delivers when the emulator's model delivers."""

from __future__ import annotations

import random

import pytest
from simpy import Environment

from hwprofiles.links.catalog import load_link
from hwprofiles.links.pipe import Pipe, deliver_all
from hwprofiles.links.schedule import Steps
from hwprofiles.links.shape import LinkShape, PipeShape
from optimizer.simulate.links import Blocked, OwnLane, SharedPipe, own_lanes


def messages(seed: int, span_s: float, count: int = 200) -> list[tuple[float, int]]:
    """Times and sizes of messages, the times in order."""
    rng = random.Random(seed)
    times = sorted(rng.uniform(0, span_s) for _ in range(count))
    return [(at_s, rng.choice([250, 1_400, 40_000])) for at_s in times]


def piped(shape: PipeShape, sent: list[tuple[float, int]]) -> list[float]:
    """When the last byte of each comes out of the emulator's own model, packet by packet."""
    packets = []
    for number, (at_s, num_bytes) in enumerate(sent):
        size = shape.packet_bytes(at_s)
        for start in range(0, num_bytes, size):
            packets.append((at_s, 0, min(size, num_bytes - start), number))
    last: dict[int, float] = {}
    for delivery in deliver_all(Pipe[int](shape), packets):
        last[delivery.payload] = delivery.delivered_s
    return [last[number] for number in range(len(sent))]


@pytest.mark.parametrize("name", ["lan", "wifi", "4g", "3g", "satellite"])
def test_a_link_of_ones_own_is_the_pipe(name: str) -> None:
    shape = load_link(name).shape(seed=3)
    for pipe in (shape.up, shape.down):
        sent = messages(1, 60.0)
        lane = OwnLane(pipe, pipe.rate, 0.0)
        found = [lane.arrival_s(*message) for message in sent]
        assert found == pytest.approx(piped(pipe, sent), abs=1e-6)


def test_a_constant_link_takes_the_short_way_to_the_same_times() -> None:
    shape = LinkShape.fixed(rtt_s=0.05, up_bytes_per_s=1e5, down_bytes_per_s=1e6)
    sent = messages(2, 30.0)
    lanes = own_lanes(shape, start=0.0, outages=())
    found: list[float] = []
    for at_s, num_bytes in sent:
        lanes.up.send(at_s, num_bytes, found.append)
    assert found == pytest.approx(piped(shape.up, sent), abs=1e-8)


@pytest.mark.parametrize("outages", [(), ((3.0, 7.0), (20.0, 21.0), (20.5, 22.0))])
def test_a_shared_pipe_with_one_sender_is_a_link_of_ones_own(
    outages: tuple[tuple[float, float], ...],
) -> None:
    shape = load_link("4g").shape(seed=1).up
    env = Environment()
    found: list[float] = []
    sent = messages(3, 60.0)
    pipe = SharedPipe(env, shape, outages)
    for at_s, num_bytes in sent:
        pipe.send(0, at_s, num_bytes, found.append)
    env.run(until=400)
    lane = OwnLane(shape, Blocked(shape.rate, outages) if outages else shape.rate, 0.0)
    assert found == pytest.approx([lane.arrival_s(*message) for message in sent], abs=1e-6)


def test_senders_share_a_pipe_fairly() -> None:
    shape = LinkShape.fixed(rtt_s=0.0, up_bytes_per_s=1e6, down_bytes_per_s=1e6).up
    env = Environment()
    pipe = SharedPipe(env, shape)
    ended: dict[int, float] = {}
    for flow in range(4):
        pipe.send(flow, 0.0, 250_000, lambda t, flow=flow: ended.update({flow: t}))  # type: ignore[misc]
    env.run(until=10)
    assert all(t == pytest.approx(1.0, abs=0.01) for t in ended.values())
    assert len(ended) == 4


def test_what_an_outage_blocks_is_sent_after_it() -> None:
    rate = Blocked(Steps.constant(100.0), [(2.0, 5.0)])
    assert rate.integral(1.0) == 100
    assert rate.integral(4.0) == 200
    assert rate.integral(6.0) == 300
    assert rate.when(150.0) == 1.5
    assert rate.when(200.0) == 2.0
    assert rate.when(250.0) == 5.5
