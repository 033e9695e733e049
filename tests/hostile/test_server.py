"""Hostile clients against a real `splitpoint serve`: memory, time and parts that die."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud.server.stuck_calls import MAX_STUCK_PER_PEER
from codec.ladder import Ladder
from protos import wire
from protos.messages import EdgeMessage, Frame, Open, Opened, ProbeChunk, Result
from protos.pull import FETCH_PATH, LIST_FILES_PATH
from tests import warm_python
from tests.conftest import ModelBench
from tests.hostile.raw_http2 import RawConnection
from tests.hostile.serve_process import ServeProcess, serve_process, until
from tests.warm_python import SPLITPOINT

STALL_S = 1.0
# One step takes a while, so that frames wait.
SLOW_STEP = """
import time
from cloud.engine.back_engine import BackEngine
forward = BackEngine.forward
def slow(self, batch):
    time.sleep(0.3)
    return forward(self, batch)
BackEngine.forward = slow
"""
DEAD_THREAD = """
from cloud.engine.frame_work import FrameRun
def die(self, begun_s, observer):
    raise RuntimeError("outside every guard")
FrameRun.note_wait = die
"""
HANGING_STEP = """
import time
from cloud.engine.back_engine import BackEngine
BackEngine.forward = lambda self, batch: time.sleep(3600)
"""


@pytest.fixture(scope="module")
def bundle(bench: ModelBench) -> Path:
    return bench.cloud_bundle()


@pytest.fixture(scope="module")
def calm(bundle: Path) -> Iterator[ServeProcess]:
    """A server with short time limits, which most tests share."""
    options = ("--max-stall", str(STALL_S), "--kv-memory", "32MiB")
    with serve_process(bundle, *options) as server:
        server.describe()
        yield server


class Asking:
    """What honest and hostile clients say to a server of the tiny model."""

    def __init__(self, bench: ModelBench) -> None:
        self.bench = bench
        self.width = bench.source.geometry.hidden_size
        self.ladder = Ladder.lossless(self.width)

    def open(self, session_id: str, **changes: Any) -> Open:
        request = Open(
            session_id=session_id,
            model_sha256=self.bench.source.sha256,
            split=0,
            hidden_size=self.width,
            codec_tables_sha256=self.ladder.tables_sha256,
            max_tokens=200,
        )
        return replace(request, **changes)

    def frame(self, sequence: int, num_rows: int, first: int = 0, **changes: Any) -> Frame:
        rows = np.random.default_rng(sequence).normal(size=(num_rows, self.width))
        ids = np.arange(1, num_rows + 1)
        frame = Frame(
            sequence=sequence,
            first_position=first,
            token_ids=tuple(ids.tolist()),
            hidden=self.ladder.encode("lossless", rows.astype(np.float32), ids),
        )
        return replace(frame, **changes)


@pytest.fixture(scope="module")
def asking(bench: ModelBench) -> Asking:
    return Asking(bench)


class Stream:
    """One Generate call from a thread."""

    def __init__(self, address: str, *messages: EdgeMessage, raw: tuple[bytes, ...] = ()) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._ends = threading.Event()
        self._first = [*(wire.encode_edge(message) for message in messages), *raw]
        untyped: Any = self._channel
        self.call: Any = untyped.stream_stream(wire.GENERATE_PATH)(self._requests(), timeout=60)

    def _requests(self) -> Iterator[bytes]:
        yield from self._first
        self._ends.wait(60)

    def next(self) -> Any:
        return wire.decode_cloud(next(self.call))

    def status(self) -> grpc.StatusCode:
        """What the stream ends with."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError:
            pass
        code: grpc.StatusCode = self.call.code()
        return code

    def close(self) -> None:
        self._ends.set()
        self._channel.close()


def honest_tokens(server: ServeProcess, asking: Asking, session_id: str) -> tuple[int, ...]:
    """The tokens of a few steps; the same at every time and beside whomever."""
    frames = [asking.frame(0, 6), *(asking.frame(i, 1, 5 + i) for i in range(1, 5))]
    stream = Stream(server.address, asking.open(session_id), *frames)
    try:
        assert isinstance(stream.next(), Opened)
        results = [stream.next() for _ in frames]
    finally:
        stream.close()
    assert all(isinstance(result, Result) for result in results)
    return tuple(token for result in results for token in result.token_ids)


def test_a_client_that_takes_no_answer_loses_its_session_and_its_stream(
    calm: ServeProcess, asking: Asking
) -> None:
    connection = RawConnection(calm.port, window=0)
    stream = connection.call(wire.GENERATE_PATH)
    connection.say(stream, asking.open("zero-window", resume_s=60.0))
    until(lambda: calm.num_sessions() == 1, within_s=10)
    until(lambda: calm.num_sessions() == 0, within_s=STALL_S + 10)
    connection.close()


def test_an_address_that_lets_no_call_end_has_few_and_is_served_again_when_it_closes_them(
    calm: ServeProcess, asking: Asking
) -> None:
    connection = RawConnection(calm.port, window=0)
    for index in range(MAX_STUCK_PER_PEER):
        connection.say(connection.call(wire.GENERATE_PATH), asking.open(f"stuck-{index}"))
    until(lambda: calm.num_sessions() == MAX_STUCK_PER_PEER, within_s=10)
    until(lambda: calm.num_sessions() == 0, within_s=STALL_S + 10)
    further = Stream(calm.address, asking.open("further"))
    assert further.status() is grpc.StatusCode.RESOURCE_EXHAUSTED
    further.close()
    connection.close()
    time.sleep(0.5)
    assert len(honest_tokens(calm, asking, "served-again")) == 5


def test_a_client_that_asks_and_never_reads_loses_its_session(
    calm: ServeProcess, asking: Asking
) -> None:
    connection = RawConnection(calm.port, window=64)
    stream = connection.call(wire.GENERATE_PATH)
    connection.say(stream, asking.open("never-reads"))
    until(lambda: calm.num_sessions() == 1, within_s=10)
    for sequence in range(30):
        connection.say(stream, asking.frame(sequence, 1, sequence))
    until(lambda: calm.num_sessions() == 0, within_s=STALL_S + 10)
    connection.close()


def test_messages_of_unknown_fields_are_refused_at_the_first(
    calm: ServeProcess, asking: Asking
) -> None:
    before = honest_tokens(calm, asking, "before")
    rude = b"\x12\x80\x84\x04" + b"\xfa\x3e\x00" * 22_000
    streams = [
        Stream(calm.address, asking.open(f"unknown-{index}"), raw=(rude,) * 20)
        for index in range(10)
    ]
    assert honest_tokens(calm, asking, "beside") == before
    assert {stream.status() for stream in streams} == {grpc.StatusCode.INVALID_ARGUMENT}
    for stream in streams:
        stream.close()
    until(lambda: calm.num_sessions() == 0, within_s=10)


def test_probes_that_never_read_are_few_and_end(calm: ServeProcess) -> None:
    before = calm.rss_mib
    connections = [RawConnection(calm.port, window=0) for _ in range(5)]
    asked = wire.encode_probe(ProbeChunk(sequence=1, padding_bytes=0, want_bytes=1 << 20))
    streams = []
    for connection in connections:
        for _ in range(20):
            stream = connection.call(wire.PROBE_PATH)
            connection.send(stream, asked)
            streams.append((connection, stream))
    assert calm.describe().active_sessions == 0
    refused = sum(connection.ended(stream, within_s=0.5) for connection, stream in streams[5:])
    assert refused >= len(streams) - 5 - 4
    assert calm.rss_mib < before + 30
    for connection in connections:
        connection.close()


def test_streams_that_say_nothing_have_places_of_their_own(
    calm: ServeProcess, asking: Asking
) -> None:
    silent = RawConnection(calm.port)
    streams = [silent.call(wire.GENERATE_PATH) for _ in range(90)]
    until(lambda: silent.ended(streams[-1], within_s=1.0), within_s=10)
    silent.close()
    assert len(honest_tokens(calm, asking, "beside-silence")) == 5


def test_rapid_resets_leave_the_server_answering(calm: ServeProcess, asking: Asking) -> None:
    before = honest_tokens(calm, asking, "before-resets")
    threads, files = calm.system.num_threads(), calm.system.num_fds()
    try:
        connection = RawConnection(calm.port)
        for _ in range(1500):
            stream = connection.call(wire.GENERATE_PATH)
            connection.h2.reset_stream(stream)
        connection.flush()
        connection.close()
    except ConnectionError:  # cut off: right as well
        pass
    assert honest_tokens(calm, asking, "after-resets") == before
    until(lambda: calm.num_sessions() == 0, within_s=10)
    until(lambda: calm.system.num_fds() <= files + 5, within_s=10)
    assert calm.system.num_threads() <= threads + 5


def test_calls_whose_request_never_comes_do_not_fill_the_server(calm: ServeProcess) -> None:
    connection = RawConnection(calm.port)
    paths = (wire.DESCRIBE_PATH, "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
    for path in paths:
        for _ in range(20):
            connection.call(path)
    time.sleep(0.2)
    assert calm.describe().num_layers > 0
    connection.close()


def test_frames_that_wait_are_held_to_the_budget_and_their_memory_goes_back(
    bundle: Path, asking: Asking
) -> None:
    """25 sessions send 16 frames each: 90 MiB where 8 MiB are allowed."""
    options = ("--frame-memory", "8MiB", "--kv-memory", "64MiB", "--max-stall", "60")
    with serve_process(bundle, *options, fault=SLOW_STEP) as server:
        alone = honest_tokens(server, asking, "alone")
        before = server.rss_mib
        padding = bytes(100 << 10)
        frames = [asking.frame(index, 190, want_token=False) for index in range(16)]
        big = [frames[0], *(replace(one, hidden=one.hidden + padding) for one in frames[1:])]
        streams = [Stream(server.address, asking.open(f"hog-{i}"), *big) for i in range(25)]
        most = 0.0
        for _ in range(20):
            most = max(most, server.rss_mib)
            time.sleep(0.05)
        assert honest_tokens(server, asking, "beside") == alone
        for stream in streams:
            stream.close()
        until(lambda: server.num_sessions() == 0, within_s=20)
        # A process keeps some memory after its first large load: 30 MiB once.
        after = server.settled_rss_mib(before + 30)
        assert most < before + 8 + 90
        assert after < before + 60


@pytest.mark.parametrize(
    ("fault", "options"),
    [(DEAD_THREAD, ()), (HANGING_STEP, ("--max-step", "1"))],
    ids=["the model thread dies", "a step hangs"],
)
def test_a_server_that_has_failed_says_so_and_ends_with_an_error(
    bundle: Path, asking: Asking, fault: str, options: tuple[str, ...]
) -> None:
    with serve_process(bundle, "--kv-memory", "16MiB", *options, fault=fault) as server:
        idle = Stream(server.address, asking.open("idle"))
        assert isinstance(idle.next(), Opened)
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            busy = Stream(server.address, asking.open("busy"), asking.frame(0, 6))
            assert isinstance(busy.next(), Opened)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with ThreadPoolExecutor() as pool:
            statuses = list(pool.map(Stream.status, (idle, busy)))
        assert statuses == [grpc.StatusCode.UNAVAILABLE] * 2
        assert server.process.wait(timeout=20) == 1
        assert "splitpoint: error: " in server.said()
        idle.close()
        busy.close()


def test_connections_to_the_metrics_are_few_and_end(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    options = ("--kv-memory", "16MiB", "--metrics", f"127.0.0.1:{port}")
    with serve_process(bundle, *options) as server:
        threads = server.system.num_threads()
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        time.sleep(0.5)
        assert server.system.num_threads() <= threads + 17
        for one in silent:
            one.close()
        until(lambda: server.system.num_threads() <= threads + 2, within_s=15)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b"splitpoint_frame_bytes" in answer.read()


def test_a_probe_needs_the_token_and_a_token_has_one_line(bundle: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("sesam name=a\nsesam name=b\n")
    arguments = ["serve", str(bundle), "--listen", "127.0.0.1:0", "--token-file", str(tokens)]
    done = warm_python.run(SPLITPOINT, arguments, timeout=60)
    assert done.returncode == 1
    assert "line 2" in done.stderr
    assert "sesam" not in done.stderr
    tokens.write_text("sesam name=a\n")
    with serve_process(bundle, "--kv-memory", "16MiB", "--token-file", str(tokens)) as server:
        connection = RawConnection(server.port)
        sessions = (wire.PROBE_PATH, wire.DESCRIBE_PATH, wire.GENERATE_PATH)
        for path in (*sessions, LIST_FILES_PATH, FETCH_PATH):
            # Nothing was sent: a stranger's message is not even read.
            assert connection.ended(connection.call(path), within_s=10)
        connection.close()
