"""The link probe: its estimators by arithmetic, and the whole of it through an emulated link."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from cloud.server.link_probe import MAX_CALL_BYTES, answer_probe
from edge.errors import DeadlineError, InputError
from edge.net.grpc_probe import GrpcProbeStream
from edge.net.grpc_transport import GrpcTransport
from edge.net.link_probe import (
    CHUNK_BYTES,
    Arrival,
    estimate_rate,
    next_burst_bytes,
    probe_link,
)
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.profile import LinkProfile
from hwprofiles.links.shape import LinkShape
from hwprofiles.profiles.catalog import to_plain
from hwprofiles.schema.strict_yaml import build_strict
from protos import wire
from protos.errors import RemoteWireError
from protos.messages import ProbeChunk


def test_evenly_spaced_arrivals_give_their_rate_exactly() -> None:
    estimate = estimate_rate([0.1 * i for i in range(11)], 1000, settle_s=0.25)
    assert estimate.bytes_per_s == pytest.approx(10_000)
    assert estimate.window_s == pytest.approx(0.7)  # arrivals from 0.3 on
    assert estimate.segments == pytest.approx((10_000.0,) * 5)


def test_the_ramp_at_the_start_does_not_count() -> None:
    ramp = [0.0, 0.5, 0.9, 1.2]  # slower while the window opens
    steady = [1.2 + 0.1 * i for i in range(1, 12)]
    estimate = estimate_rate(ramp + steady, 1000, settle_s=1.0)
    assert estimate.bytes_per_s == pytest.approx(10_000)


def test_never_more_than_half_of_a_short_burst_is_left_out() -> None:
    assert estimate_rate([0.0, 0.1, 0.2, 0.3], 100, settle_s=9.0).window_s == pytest.approx(0.2)
    assert estimate_rate([0.0, 0.1], 100, settle_s=9.0).bytes_per_s == pytest.approx(1000)
    with pytest.raises(ValueError, match="two"):
        estimate_rate([0.0], 100, settle_s=0.0)


def test_the_next_burst_lasts_the_target_at_the_last_rate() -> None:
    last = estimate_rate([0.0, 1.0, 2.0], 500_000, settle_s=0.0)
    assert next_burst_bytes(last, settle_s=0.1, target_s=0.9) == 600_000


class FluidLink:
    """A probe stream over an ideal link: one delay, one rate a direction, no randomness."""

    def __init__(self, rtt_s: float, up: float, down: float) -> None:
        self.rtt_s, self.up, self.down = rtt_s, up, down
        self.now_s, self.up_free_s, self.down_free_s = 0.0, 0.0, 0.0
        self.answers: list[Arrival] = []
        self.moved = 0

    def send(self, chunk: ProbeChunk) -> None:
        self.moved += chunk.padding_bytes + chunk.want_bytes
        self.up_free_s = max(self.now_s, self.up_free_s) + (chunk.padding_bytes + 22) / self.up
        there_s = self.up_free_s + self.rtt_s / 2
        self.down_free_s = max(there_s, self.down_free_s) + (chunk.want_bytes + 22) / self.down
        answer = ProbeChunk(sequence=chunk.sequence, padding_bytes=chunk.want_bytes)
        self.answers.append(Arrival(answer, self.down_free_s + self.rtt_s / 2))

    def receive(self, timeout_s: float) -> Arrival:
        arrival = self.answers.pop(0)
        if arrival.at_s - self.now_s > timeout_s:
            raise DeadlineError("late")
        self.now_s = max(self.now_s, arrival.at_s)
        return arrival

    def clock(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("rtt_s", "up", "down"), [(0.005, 6.25e6, 6.25e6), (0.05, 2.5e5, 1.25e6), (0.3, 1.25e5, 1.25e5)]
)
def test_an_ideal_link_is_found_to_a_percent(rtt_s: float, up: float, down: float) -> None:
    link = FluidLink(rtt_s, up, down)
    found = probe_link(link, clock=link.clock)
    assert float(np.median(found.rtt_s)) == pytest.approx(rtt_s, rel=0.05)
    assert found.up.bytes_per_s == pytest.approx(up, rel=0.01)
    assert found.down.bytes_per_s == pytest.approx(down, rel=0.01)
    assert not found.capped


def test_what_the_network_stacks_take_is_no_part_of_the_link() -> None:
    link = FluidLink(0.005, 1e9, 1e9)
    found = probe_link(link, clock=link.clock, stack_s=0.0004)
    assert found.stack_s == 0.0004
    assert min(found.rtt_s) == pytest.approx(0.0046, rel=0.01)
    link = FluidLink(0.005, 1e9, 1e9)
    slow_stack = probe_link(link, clock=link.clock, stack_s=1.0)
    assert min(slow_stack.rtt_s) == pytest.approx(0.0005, rel=0.01)


def test_the_byte_cap_holds_and_is_said() -> None:
    link = FluidLink(0.02, 1e8, 1e8)
    found = probe_link(link, cap_bytes=1 << 20, clock=link.clock)
    assert found.capped
    assert link.moved <= found.spent_bytes <= 1 << 20
    with pytest.raises(InputError, match="cap"):
        probe_link(link, cap_bytes=1000)


def test_a_dead_server_is_a_deadline() -> None:
    with pytest.raises(DeadlineError):
        probe_link(FluidLink(100.0, 1e6, 1e6), clock=lambda: 0.0)


def test_the_measurement_becomes_a_link_profile_that_loads() -> None:
    link = FluidLink(0.05, 2.5e5, 1.25e6)
    profile = probe_link(link, clock=link.clock).profile(name="home", source="a test")
    data = {key: value for key, value in to_plain(profile).items() if key != "folder"}
    assert build_strict(data, LinkProfile, source="x") == profile
    assert profile.rtt_s.measured


def test_the_server_answers_with_the_bytes_asked_for_and_no_more_than_its_cap() -> None:
    async def ask(chunks: list[bytes]) -> list[ProbeChunk]:
        async def stream() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        return [wire.decode_probe(answer) async for answer in answer_probe(stream())]

    one = wire.encode_probe(ProbeChunk(sequence=7, padding_bytes=10, want_bytes=33))
    assert asyncio.run(ask([one])) == [ProbeChunk(sequence=7, padding_bytes=33)]
    with pytest.raises(RemoteWireError):
        asyncio.run(ask([b"\xff\xff\xff"]))
    big = wire.encode_probe(ProbeChunk(sequence=1, padding_bytes=0, want_bytes=1 << 20))
    with pytest.raises(RemoteWireError, match="at most"):
        asyncio.run(ask([big] * (MAX_CALL_BYTES // (1 << 20) + 1)))


@contextmanager
def probe_server() -> Iterator[int]:
    """A gRPC server that knows nothing but the probe."""

    async def handle(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for answer in answer_probe(requests):
            yield answer

    ready, ports = threading.Event(), []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = grpc.aio.server()
        method = wire.PROBE_PATH.rsplit("/", 1)[1]
        handlers = {method: grpc.stream_stream_rpc_method_handler(handle)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(wire.SERVICE_NAME, handlers),)
        )
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        ready.set()
        await stop.wait()
        await server.stop(0)

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def test_the_probe_crosses_a_real_server_and_an_emulated_link() -> None:
    shape = LinkShape.fixed(rtt_s=0.03, up_bytes_per_s=1.25e6, down_bytes_per_s=2.5e6)
    with probe_server() as port, EmulatedLink(target=("127.0.0.1", port), shape=shape) as link:
        host, relay_port = link.address
        transport = GrpcTransport(f"{host}:{relay_port}")
        with GrpcProbeStream(transport) as stream:
            found = probe_link(stream, cap_bytes=4 << 20)
        transport.close()
    # Loose, because timings are no test assertions: the table in
    # docs/results/planning-and-predictions.md is exact.
    assert 0.025 < float(np.median(found.rtt_s)) < 0.3
    assert 0.1e6 < found.up.bytes_per_s < 2.5e6
    assert 0.2e6 < found.down.bytes_per_s < 5e6
    assert found.spent_bytes <= 4 << 20
    assert found.spent_bytes > CHUNK_BYTES
