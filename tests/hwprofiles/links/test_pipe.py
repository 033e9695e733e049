"""Claims about the link model: whole delivery traces, fairness, bounds, and recorded traces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.links.pipe import Pipe, deliver_all
from hwprofiles.links.schedule import LinkTrace, Steps, read_trace
from hwprofiles.links.shape import Curve, LinkShape, PipeShape

NO_DELAY = Steps.constant(0.0)


def pipe_of(rate: Steps, delay_s: float = 0.0, **more: object) -> Pipe[str]:
    return Pipe(replace(PipeShape(rate=rate, delay_s=Steps.constant(delay_s)), **more))  # type: ignore[arg-type]


def trace_of(pipe: Pipe[str], *packets: tuple[float, str, int, str]) -> list[tuple[float, str]]:
    return [(round(d.delivered_s, 4), d.payload) for d in deliver_all(pipe, packets)]


def test_packets_are_sent_one_after_the_other_and_then_travel() -> None:
    pipe = pipe_of(Steps.constant(1000.0), delay_s=0.25)
    assert trace_of(
        pipe,
        (0.0, "a", 100, "first"),
        (0.0, "a", 400, "second"),
        (0.05, "a", 100, "third"),
        (3.0, "a", 10, "after a silence"),
    ) == [(0.35, "first"), (0.75, "second"), (0.85, "third"), (3.26, "after a silence")]


def test_a_rate_that_changes_under_a_packet_stretches_it() -> None:
    rate = Steps(starts_s=(0.0, 1.0, 3.0), values=(100.0, 0.0, 50.0), period_s=4.0)
    # 100 bytes in the first second, none for two, 50 in the fourth, and again from the start.
    assert trace_of(
        pipe_of(rate), (0.5, "a", 60, "A"), (0.5, "a", 40, "B"), (0.5, "a", 100, "C")
    ) == [
        (3.2, "A"),
        (4.0, "B"),
        (5.0, "C"),
    ]


def test_flows_take_turns_and_a_short_message_does_not_wait_for_the_bulk() -> None:
    pipe = pipe_of(Steps.constant(1448.0))
    bulk = [(0.0, "bulk", 1448, f"bulk {i}") for i in range(4)]
    assert trace_of(pipe, *bulk, (0.5, "chat", 724, "hello")) == [
        (1.0, "bulk 0"),
        (2.0, "bulk 1"),
        (2.5, "hello"),
        (3.5, "bulk 2"),
        (4.5, "bulk 3"),
    ]


@given(
    sizes=st.lists(st.integers(400, 1448), min_size=2, max_size=6),
    rate=st.floats(1e3, 1e6),
)
def test_flows_that_always_send_get_equal_shares_whatever_their_packet_sizes(
    sizes: list[int], rate: float
) -> None:
    pipe: Pipe[str] = Pipe(PipeShape(rate=Steps.constant(rate), delay_s=NO_DELAY))
    largest = pipe.packet_bytes()
    for flow, size in enumerate(sizes):
        for _ in range(40 * largest // size):
            pipe.offer(0.0, flow, size, "")
    sent = dict.fromkeys(range(len(sizes)), 0)
    for delivery in pipe.advance(30 * largest * len(sizes) / rate):
        sent[delivery.flow] += delivery.num_bytes  # type: ignore[index]
    assert max(sent.values()) - min(sent.values()) <= 3 * largest


def test_an_outage_holds_everything_and_loses_nothing() -> None:
    pipe = pipe_of(Steps.constant(100.0), delay_s=1.0)
    pipe.offer(0.0, "a", 100, "sent before")
    pipe.offer(0.0, "a", 100, "half sent")
    pipe.pause(1.5)
    pipe.offer(2.0, "a", 100, "during")
    assert pipe.next_s() == pytest.approx(2.0, abs=1e-5)
    assert [d.payload for d in pipe.advance(50.0)] == ["sent before"]
    assert pipe.next_s() == math.inf
    pipe.resume(100.0)
    assert trace_of(pipe) == [(101.5, "half sent"), (102.5, "during")]


def test_a_new_shape_applies_to_the_rest_of_the_packet_being_sent() -> None:
    pipe = pipe_of(Steps.constant(100.0))
    pipe.offer(0.0, "a", 100, "A")
    pipe.set_shape(0.75, PipeShape(rate=Steps.constant(10.0), delay_s=Steps.constant(5.0)))
    assert trace_of(pipe) == [(0.75 + 2.5 + 5.0, "A")]


def test_forgetting_a_flow_frees_the_link_for_the_others() -> None:
    pipe = pipe_of(Steps.constant(100.0))
    for flow in ("gone", "kept"):
        pipe.offer(0.0, flow, 100, flow)
        pipe.offer(0.0, flow, 100, flow)
    pipe.forget(0.5, "gone")
    assert trace_of(pipe) == [(1.5, "kept"), (2.5, "kept")]
    assert pipe.queued_bytes == 0


def test_jitter_delays_by_its_distribution_and_never_reorders() -> None:
    curve = Curve(levels=(0.0, 0.5, 1.0), values=(0.0, 0.01, 0.1))
    shape = PipeShape(rate=Steps.constant(1e9), delay_s=NO_DELAY, jitter_s=curve, seed=7)
    pipe: Pipe[int] = Pipe(shape)
    rare = deliver_all(pipe, [(i * 0.5, "a", 1, i) for i in range(4000)])
    delays = sorted(d.delivered_s - d.payload * 0.5 for d in rare)
    assert delays[1000] == pytest.approx(0.005, rel=0.1)
    assert sum(delay < 0.01 for delay in delays) == pytest.approx(2000, abs=150)
    assert delays[3000] == pytest.approx(0.055, rel=0.1)
    dense = deliver_all(Pipe(shape), [(i * 0.001, "a", 1, i) for i in range(4000)])
    assert [d.payload for d in dense] == list(range(4000))
    assert all(d.delivered_s >= d.payload * 0.001 for d in dense)


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    def run(seed: int) -> list[float]:
        shape = LinkShape.fixed(
            rtt_s=0.1, up_bytes_per_s=1e5, down_bytes_per_s=1e5, jitter_s=0.02, seed=seed
        )
        packets = [(i * 0.05, "a", 500, "") for i in range(50)]
        return [d.delivered_s for d in deliver_all(Pipe(shape.up), packets)]

    assert run(1) == run(1)
    assert run(1) != run(2)


@given(
    flows=st.integers(1, 20),
    queue=st.integers(1448, 300_000),
    rate=st.floats(1e3, 1e8),
)
def test_senders_that_keep_to_their_room_fill_no_more_than_the_queue(
    flows: int, queue: int, rate: float
) -> None:
    shape = PipeShape(rate=Steps.constant(rate), delay_s=NO_DELAY, queue_bytes=queue)
    pipe: Pipe[str] = Pipe(shape)
    packet = pipe.packet_bytes()
    now_s = 0.0
    for _ in range(30):
        for flow in range(flows):
            while room := pipe.room_bytes(flow):
                pipe.offer(now_s, flow, min(room, packet), "")
        now_s = pipe.next_s()
        pipe.advance(now_s)
        # A share shrinks as flows arrive, so the k-th to arrive finds its k-th part of the queue
        # (two packets at the least) and those before it keep what they have.
        bound = sum(max(queue // k, 2 * packet) for k in range(1, flows + 1))
        assert pipe.queued_bytes <= bound


def greedy(pipe: Pipe[str], until_s: float, sample_s: float) -> Iterator[int]:
    """Bytes delivered by each multiple of `sample_s`, by a sender that always fills its room."""
    now_s, delivered = 0.0, 0
    for i in range(1, round(until_s / sample_s) + 1):
        stop_s = i * sample_s + 1e-6
        while now_s < stop_s:
            while pipe.room_bytes("a"):
                pipe.offer(now_s, "a", 1500, "")
            now_s = min(pipe.next_s(), stop_s)
            delivered += sum(d.num_bytes for d in pipe.advance(now_s))
        yield delivered


def exact_bytes(path: Path, column: str, at_s: list[Fraction]) -> list[Fraction]:
    """The bytes a repeating trace lets through by each time, in exact decimal arithmetic."""
    lines = [line.split(",") for line in path.read_text().split()]
    index = lines[0].index(column)
    rows = [(Fraction(line[0]), Fraction(line[index]) * 125_000) for line in lines[1:]]
    steps = sorted(b[0] - a[0] for a, b in pairwise(rows))
    ends = [row[0] for row in rows[1:]] + [rows[-1][0] + steps[len(steps) // 2]]
    totals, total, base, k = [], Fraction(0), Fraction(0), 0
    for t in at_s:
        while base + ends[k] <= t:
            total += rows[k][1] * (ends[k] - rows[k][0])
            k += 1
            if k == len(rows):
                base, k = base + ends[-1], 0
        totals.append(total + rows[k][1] * (t - base - rows[k][0]))
    return totals


def recorded_trace(name: str) -> Path:
    checkout = Path(__file__).resolve().parents[3]
    path = checkout.parent / "shared" / "data" / "network" / "cellular_updown" / name
    if not path.is_file():
        pytest.skip(f"the recorded trace {name} is not in this checkout")
    return path


@pytest.mark.parametrize(
    "name", ["att-lte-driving-2016.csv", "tmobile-umts-driving.csv", "verizon-lte-short.csv"]
)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_thirty_minutes_of_a_recorded_trace_carry_exactly_its_bytes(
    name: str, direction: str
) -> None:
    path = recorded_trace(name)
    trace = read_trace(path)
    shape: PipeShape = getattr(LinkShape.from_trace(trace, rtt_s=0.0), direction)
    sample_s = 10.0
    got = list(greedy(Pipe(shape), 1800.0, sample_s))
    want = exact_bytes(path, f"{direction}_mbps", [Fraction(10) * (i + 1) for i in range(len(got))])
    # Whole packets only; this recorder's bins hold whole 1,500-byte packets, so none is split.
    assert got == [int(bytes_) // 1500 * 1500 for bytes_ in want]
    assert len(got) == 180
    assert got[-1] > 100_000_000


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "walk.csv"
    path.write_text("t_s,ping_ms,down_mbps,mode\n5,,8,LTE\n6,40,0,LTE\n8,,4,5G\n9,60,1,5G\n")
    return path


def test_a_trace_counts_from_its_first_row_holds_values_and_repeats(trace: Path) -> None:
    assert read_trace(trace) == LinkTrace(
        name="walk",
        down=Steps(starts_s=(0.0, 1.0, 3.0, 4.0), values=(1e6, 0.0, 5e5, 1.25e5), period_s=5.0),
        up=None,
        rtt_s=Steps(starts_s=(0.0, 1.0, 3.0, 4.0), values=(0.04, 0.04, 0.04, 0.06), period_s=5.0),
    )
    assert read_trace(trace).down.integral(12.5) == 2 * 1.625e6 + 1e6


def test_a_trace_of_the_downlink_alone_needs_a_stated_uplink(trace: Path) -> None:
    with pytest.raises(ValueError, match="walk has no uplink rate"):
        LinkShape.from_trace(read_trace(trace))
    shape = LinkShape.from_trace(read_trace(trace), up_bytes_per_s=1e5)
    assert shape.up.rate == Steps.constant(1e5)
    assert shape.up.delay_s.values == (0.02, 0.02, 0.02, 0.03)


@given(
    values=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    amount=st.integers(1, 400),
)
def test_when_is_the_earliest_time_at_which_the_integral_gets_there(
    values: list[int], amount: int
) -> None:
    steps = Steps(
        starts_s=tuple(map(float, range(len(values)))),
        values=tuple(map(float, values)),
        period_s=float(len(values)),
    )
    if not any(values):
        assert steps.when(amount) == math.inf
        return
    slots, left = 0, Fraction(amount)
    while left > (value := values[slots % len(values)]):
        left -= value
        slots += 1
    assert steps.when(amount) == pytest.approx(float(slots + left / value), rel=1e-12)
    assert steps.integral(steps.when(amount)) == pytest.approx(amount, rel=1e-12)
