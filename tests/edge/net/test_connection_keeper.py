"""The connection between generations: asked after at intervals, and made anew when it is dead."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import pytest

from edge.errors import ConnectError, DeadlineError, LostError, RefusedError, TransportError
from edge.net.channel import ServerChannel
from edge.net.connection_keeper import INTERVAL_S, Clocks, ConnectionKeeper
from edge.net.credentials import Credentials
from tests.waiting import comes_true

PATH = "/test/Echo"


class FakeTransport:
    def __init__(self) -> None:
        self.is_idle = True
        self.error: TransportError | None = None
        self.asked = 0
        self.renewed = 0

    def describe(self, timeout_s: float) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error

    def renew(self) -> bool:
        self.renewed += 1
        return True


class FakeClocks:
    def __init__(self) -> None:
        self.running_s = self.wall_s = 1000.0

    def __call__(self) -> Clocks:
        return Clocks(self.running_s, self.wall_s)

    def pass_s(self, running_s: float, asleep_s: float = 0.0) -> None:
        self.running_s += running_s
        self.wall_s += running_s + asleep_s


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def clocks() -> FakeClocks:
    return FakeClocks()


def test_the_server_is_asked_at_first_and_then_at_intervals(
    transport: FakeTransport, clocks: FakeClocks
) -> None:
    keeper = ConnectionKeeper(transport, clocks=clocks)
    keeper.tick()
    assert transport.asked == 1
    clocks.pass_s(INTERVAL_S - 1)
    keeper.tick()
    assert transport.asked == 1
    clocks.pass_s(1)
    keeper.tick()
    assert (transport.asked, transport.renewed) == (2, 0)


def test_after_a_sleep_it_is_asked_at_once(transport: FakeTransport, clocks: FakeClocks) -> None:
    keeper = ConnectionKeeper(transport, clocks=clocks)
    keeper.tick()
    clocks.pass_s(2, asleep_s=3600)
    keeper.tick()
    assert transport.asked == 2


def test_while_an_answer_runs_nothing_is_asked(
    transport: FakeTransport, clocks: FakeClocks
) -> None:
    transport.is_idle = False
    ConnectionKeeper(transport, clocks=clocks).tick()
    assert transport.asked == 0


@pytest.mark.parametrize(
    ("error", "renewed"),
    [(DeadlineError("silent"), 1), (ConnectError("away"), 1), (RefusedError("no token"), 0)],
)
def test_only_a_path_without_an_answer_is_made_anew(
    transport: FakeTransport, clocks: FakeClocks, error: TransportError, renewed: int
) -> None:
    transport.error = error
    keeper = ConnectionKeeper(transport, clocks=clocks)
    assert keeper.is_answered is None
    keeper.tick()
    assert transport.renewed == renewed
    assert keeper.is_answered == (not renewed)


class DeafRelay:
    """Passes bytes to a port. `go_deaf`: the connections there are carry nothing from now on."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._deaf = threading.Event()
        self._is_closed = False
        self.num_connections = 0
        self.connected = threading.Event()
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def go_deaf(self) -> None:
        self._deaf.set()
        self._deaf = threading.Event()

    def go_deaf_at_once(self) -> None:
        self._deaf.set()

    def close(self) -> None:
        self._is_closed = True
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # the server has gone, and a channel tries again
                near.close()
                continue
            self.num_connections += 1
            self._sockets += [near, far]
            if self._is_closed:
                self.close()
                return
            deaf = self._deaf
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink, deaf), daemon=True).start()
            self.connected.set()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket, deaf: threading.Event) -> None:
        try:
            while data := source.recv(1 << 16):
                if not deaf.is_set():
                    sink.sendall(data)
        except OSError:
            pass


@contextmanager
def relayed_echo() -> Iterator[DeafRelay]:
    """A gRPC server that echoes unary calls and streams, behind a relay."""

    methods: dict[str, Any] = {
        "Describe": grpc.unary_unary_rpc_method_handler(lambda data, _: data),
        "Echo": grpc.unary_unary_rpc_method_handler(lambda data, _: data),
        "Stream": grpc.stream_stream_rpc_method_handler(lambda data, _: data),
    }
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    relay = DeafRelay(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    try:
        yield relay
    finally:
        relay.close()
        server.stop(0)


def test_a_warm_channel_connects_before_the_first_call() -> None:
    with relayed_echo() as relay:
        channel = ServerChannel(f"127.0.0.1:{relay.port}", Credentials())
        channel.warm()
        assert relay.connected.wait(20)
        assert channel.ask(PATH, b"x", timeout_s=20) == b"x"
        assert relay.num_connections == 1
        channel.close()


def test_a_dead_connection_is_replaced_but_not_under_a_stream() -> None:
    with relayed_echo() as relay:
        channel = ServerChannel(f"127.0.0.1:{relay.port}", Credentials())
        go_on = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"y"
            go_on.wait(30)

        call = channel.stream("/test/Stream", requests())
        assert next(call) == b"y"
        assert not channel.is_idle
        assert not channel.renew()
        go_on.set()
        assert list(call) == []
        assert comes_true(lambda: channel.is_idle)  # gRPC tells the end in a thread of its own
        relay.go_deaf()
        with pytest.raises(grpc.RpcError):
            channel.ask(PATH, b"x", timeout_s=0.3)
        assert channel.renew()
        assert channel.ask(PATH, b"z", timeout_s=20) == b"z"
        assert relay.num_connections == 2
        channel.close()


def test_a_closed_channel_says_so_and_stays_closed() -> None:
    channel = ServerChannel("127.0.0.1:9", Credentials())
    channel.close()
    channel.warm()
    assert not channel.renew()
    with pytest.raises(LostError, match="closed"):
        channel.ask(PATH, b"x", timeout_s=1)


def test_the_thread_ends_while_a_question_is_on_its_way() -> None:
    with relayed_echo() as relay:
        channel = ServerChannel(f"127.0.0.1:{relay.port}", Credentials())
        asked = threading.Event()

        class Asking(FakeTransport):
            def describe(self, timeout_s: float) -> None:
                asked.set()
                try:
                    channel.ask(PATH, b"x", timeout_s=timeout_s)
                except grpc.RpcError as error:
                    raise LostError("closed") from error

            def renew(self) -> bool:
                return channel.renew()

        relay.go_deaf_at_once()
        keeper = ConnectionKeeper(Asking())
        keeper.start()
        assert asked.wait(20)
        keeper.stop()
        channel.close()
        keeper.join()
        assert comes_true(lambda: not keeper._thread.is_alive())
