"""Claims about the relay on real sockets: bytes, back-pressure, outages, resets, retargeting."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random

import pytest

from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.emulator.sockets import Address
from hwprofiles.errors import EmulatorError
from hwprofiles.links.shape import LinkShape

FAST = LinkShape.fixed(rtt_s=0.002, up_bytes_per_s=2e7, down_bytes_per_s=2e7)
SLOW = LinkShape.fixed(rtt_s=0.002, up_bytes_per_s=2e5, down_bytes_per_s=2e5)


@contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[Address]:
    """A TCP server that runs `handle` in a thread for every connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(20)
            handle(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=one, args=(connection,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65_536):
        connection.sendall(data)


def name_of(name: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(name)


def connect(address: Address) -> socket.socket:
    return socket.create_connection(address, timeout=20)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while data := connection.recv(65_536):
        parts.append(data)
    return b"".join(parts)


def exactly(connection: socket.socket, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        part = connection.recv(num_bytes - len(data))
        assert part, "closed early"
        data += part
    return bytes(data)


def push_until_blocked(client: socket.socket) -> None:
    """Send until nothing has been accepted for half a second."""
    client.settimeout(0.5)
    with suppress(TimeoutError):
        while True:
            client.send(b"x" * 65_536)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in another thread."""
    end_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.005)


def test_bytes_arrive_intact_in_both_directions_on_many_connections() -> None:
    sent, got = {}, {}

    def exchange(address: Address, i: int) -> None:
        payload = Random(i).randbytes(150_000 + 7919 * i)
        sent[i] = hashlib.sha256(payload).digest()
        with connect(address) as client:

            def send() -> None:
                client.sendall(payload)
                client.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            got[i] = hashlib.sha256(read_all(client)).digest()
            sender.join()

    with serving(echo) as target, EmulatedLink(target=target, shape=FAST) as link:
        threads = [threading.Thread(target=exchange, args=(link.address, i)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: link.counters().open_connections == 0)
        counters = link.counters()
    total = sum(150_000 + 7919 * i for i in range(20))
    assert got == sent
    assert len(got) == 20
    assert counters.total_connections == 20
    assert counters.up.delivered_bytes == counters.down.delivered_bytes == total
    assert counters.up.queued_bytes == counters.down.queued_bytes == 0


def test_a_server_that_speaks_first_is_heard_after_two_round_trips() -> None:
    """It accepts when the client's acknowledgement is there, one and a half round trips in."""
    shape = LinkShape.fixed(rtt_s=0.1, up_bytes_per_s=2e7, down_bytes_per_s=2e7)
    with serving(name_of(b"hello")) as target, EmulatedLink(target=target, shape=shape) as link:
        begun_s = time.monotonic()
        with connect(link.address) as client:
            assert exactly(client, 5) == b"hello"
        assert time.monotonic() - begun_s > 0.199  # later, on a busy machine; never sooner


def test_a_half_closed_connection_still_carries_the_answer() -> None:
    def count(connection: socket.socket) -> None:
        connection.sendall(str(len(read_all(connection))).encode())

    with serving(count) as target, EmulatedLink(target=target, shape=FAST) as link:  # noqa: SIM117
        with connect(link.address) as client:
            client.sendall(b"x" * 12_345)
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"12345"


def test_a_sender_is_slowed_and_no_more_than_the_queue_is_held() -> None:
    """The sender pushes for ever; a paused link must take a queue's worth and no more."""
    with serving(read_all_quietly) as target, EmulatedLink(target=target, shape=SLOW) as link:
        link_queue = SLOW.up.queue_bytes
        with connect(link.address) as client:
            client.sendall(b"x")
            until(lambda: link.counters().up.delivered_bytes == 1)
            link.pause()
            push_until_blocked(client)
            held = link.counters().up.queued_bytes
            assert link_queue // 2 <= held <= link_queue
            link.resume()


def read_all_quietly(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


def test_a_receiver_that_does_not_read_stops_the_sender_too() -> None:
    release = threading.Event()

    def lazy(connection: socket.socket) -> None:
        release.wait(20)
        read_all_quietly(connection)

    with serving(lazy) as target, EmulatedLink(target=target, shape=FAST) as link:
        with connect(link.address) as client:
            push_until_blocked(client)
            counters = link.counters()
            held = counters.up.received_bytes - counters.up.delivered_bytes
            assert held <= FAST.up.queue_bytes
            # What was delivered fills the receiver's kernel (megabytes at the most), not memory.
            assert counters.up.delivered_bytes < 20_000_000
        release.set()


def test_an_outage_holds_back_everything_and_then_loses_nothing() -> None:
    payload = Random(1).randbytes(60_000)
    with serving(echo) as target, EmulatedLink(target=target, shape=SLOW) as link:  # noqa: SIM117
        with connect(link.address) as client:
            client.sendall(b"ready")
            assert exactly(client, 5) == b"ready"
            link.pause()
            sender = threading.Thread(target=client.sendall, args=(payload,))
            sender.start()
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(1)
            assert link.counters().paused
            client.settimeout(20)
            link.resume()
            assert exactly(client, len(payload)) == payload
            sender.join()


def test_dropped_connections_are_reset_at_both_ends_and_new_ones_work() -> None:
    ends: list[str] = []

    def watch(connection: socket.socket) -> None:
        try:
            echo(connection)
            ends.append("closed")
        except ConnectionResetError:
            ends.append("reset")

    with serving(watch) as target, EmulatedLink(target=target, shape=FAST) as link:
        with connect(link.address) as client:
            client.sendall(b"hello")
            assert exactly(client, 5) == b"hello"
            assert link.drop_connections() == 1
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        until(lambda: ends == ["reset"])
        with connect(link.address) as client:
            client.sendall(b"again")
            assert exactly(client, 5) == b"again"
        assert link.counters().dropped_connections == 1


def test_a_client_that_crashes_resets_its_server() -> None:
    ends: list[str] = []

    def watch(connection: socket.socket) -> None:
        try:
            echo(connection)
            ends.append("closed")
        except ConnectionResetError:
            ends.append("reset")

    with serving(watch) as target, EmulatedLink(target=target, shape=FAST) as link:
        client = connect(link.address)
        client.sendall(b"hello")
        assert exactly(client, 5) == b"hello"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        until(lambda: ends == ["reset"])
        until(lambda: link.counters().open_connections == 0)


def test_new_connections_go_to_the_new_target_and_open_ones_stay() -> None:
    with (
        serving(echo) as first,
        serving(name_of(b"second")) as second,
        EmulatedLink(target=first, shape=FAST) as link,
        connect(link.address) as old,
    ):
        old.sendall(b"one")
        assert exactly(old, 3) == b"one"
        link.retarget(second)
        with connect(link.address) as new:
            assert read_all(new) == b"second"
        old.sendall(b"two")
        assert exactly(old, 3) == b"two"


def test_a_target_that_refuses_gives_the_client_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        refused = unused.getsockname()
    with EmulatedLink(target=refused, shape=FAST) as link, connect(link.address) as client:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert link.counters().failed_dials == 1


def test_a_changed_shape_carries_on_with_open_connections() -> None:
    stopped = LinkShape.fixed(rtt_s=0.002, up_bytes_per_s=0.0, down_bytes_per_s=2e5)
    with serving(echo) as target, EmulatedLink(target=target, shape=FAST) as link:  # noqa: SIM117
        with connect(link.address) as client:
            client.sendall(b"fast")
            assert exactly(client, 4) == b"fast"
            link.set_shape(stopped)
            client.sendall(b"held")
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(20)
            link.set_shape(SLOW)
            assert exactly(client, 4) == b"held"


def test_leaving_the_block_closes_every_socket_and_the_link_is_over() -> None:
    with serving(echo) as target:
        with EmulatedLink(target=target, shape=SLOW) as link:
            address = link.address
            client = connect(address)
            client.sendall(b"x" * 1000)
            assert exactly(client, 1) == b"x"
        with client, pytest.raises(ConnectionResetError):
            read_all(client)
        with pytest.raises(ConnectionRefusedError):
            connect(address)
        with pytest.raises(EmulatorError, match="not running"):
            link.pause()


def test_an_address_in_use_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = taken.getsockname()
        link = EmulatedLink(target=where, shape=FAST, listen=where)
        with pytest.raises(EmulatorError, match=f"cannot listen on 127.0.0.1:{where[1]}"):
            link.__enter__()
