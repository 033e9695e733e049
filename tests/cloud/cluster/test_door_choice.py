"""`optimizer.policy.replica_choice` against a real HAProxy, with streams that stay open."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.cluster.door_config import DoorFiles, door_config
from optimizer.policy.replica_choice import SlotLoad, chosen_slot, header_hash
from protos.addresses import Address
from tests.cloud.cluster.haproxy import HAPROXY, WHY_NOT, free_address

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "there is one")

NUM_SLOTS = 5
START_S = 10.0


def choosing_lines(address: Address, folder: Path) -> list[str]:
    """What the door's own configuration says about the choice."""
    text = door_config(address, DoorFiles(folder=folder), num_slots=NUM_SLOTS, streams=10)
    words = ("balance ", "hash-type ", "hash-balance-factor ", "http-reuse ")
    return [line for line in text.splitlines() if line.strip().startswith(words)]


@contextlib.contextmanager
def door(folder: Path, ports: list[int]) -> Iterator[Address]:
    """A HAProxy that chooses among plain HTTP servers as the door chooses among replicas."""
    address = free_address()
    servers = [f"    server s{n} 127.0.0.1:{port}" for n, port in enumerate(ports, start=1)]
    head = ["defaults", "    mode http", "    timeout connect 2s"]
    head += ["    timeout client 60s", "    timeout server 60s"]
    front = ["frontend door", f"    bind {address}", "    default_backend replicas"]
    back = ["backend replicas", *choosing_lines(address, folder), *servers]
    config = folder / "haproxy.cfg"
    config.write_text("\n".join([*head, *front, *back, ""]), encoding="utf-8")
    with subprocess.Popen([str(HAPROXY), "-f", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            yield address
        finally:
            process.terminate()


def connected(address: Address) -> socket.socket:
    """A connection, once the door listens."""
    until_s = time.monotonic() + START_S
    while True:
        try:
            return socket.create_connection((address.host, address.port), timeout=5)
        except ConnectionRefusedError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("num_names", [120, 3])
def test_the_rule_in_python_is_that_of_haproxy(tmp_path: Path, num_names: int) -> None:
    with contextlib.ExitStack() as stack:
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(NUM_SLOTS)]
        for listener in listeners:
            stack.enter_context(listener).settimeout(0.002)
        ports = [listener.getsockname()[1] for listener in listeners]
        address = stack.enter_context(door(tmp_path, ports))
        streams = [0] * NUM_SLOTS
        passed_over = 0
        for number in range(120):
            name = f"{number % num_names:032x}"
            client = stack.enter_context(connected(address))
            client.sendall(f"GET / HTTP/1.1\r\nhost: x\r\nx-affinity: {name}\r\n\r\n".encode())
            loads = [SlotLoad(n, count) for n, count in enumerate(streams, start=1)]
            place = header_hash(name.encode())
            expected = chosen_slot(loads, place)
            passed_over += expected != chosen_slot(
                [load._replace(streams=0) for load in loads], place
            )
            taken = next(
                slot
                for _ in range(1_000)
                for slot, listener in enumerate(listeners, start=1)
                if accepted(listener, stack)
            )
            assert taken == expected
            streams[taken - 1] += 1
        assert passed_over > 0 or num_names > 3


def accepted(listener: socket.socket, stack: contextlib.ExitStack) -> bool:
    """Whether a stream has come to this server; it stays open."""
    try:
        stream, _ = listener.accept()
    except TimeoutError:
        return False
    stack.enter_context(stream)
    return True
