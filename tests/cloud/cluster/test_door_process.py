"""HAProxy as a child: what it is told, what it leaves behind, and what it says."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.cluster.door_process import DoorProcess
from cloud.errors import StartError
from tests.cloud.cluster.haproxy import HAPROXY, WHY_NOT, free_address
from tests.tls_keys import make_keys, needs_openssl

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "there is one")


@pytest.fixture
def door() -> Iterator[DoorProcess]:
    made = DoorProcess(str(HAPROXY), free_address(), num_slots=1, streams=10)
    yield made
    made.stop()


def test_it_takes_commands_however_often_replicas_come_and_go(door: DoorProcess) -> None:
    """It says a line for each change. Nobody may read them, so they must not fill a pipe."""
    for _ in range(400):
        door.tell(["set server replicas/s1 state ready", "set server replicas/s1 state maint"])
    assert door.trouble() is None


def test_a_command_that_did_nothing_is_reported(
    door: DoorProcess, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        door.tell(
            [
                "set server replicas/s1 addr 127.0.0.2 port 7",
                "set server replicas/s1 addr 127.0.0.2 port 7",
                f"add map {door.files.map} a s1",
                f"del map {door.files.map} a",
                f"del map {door.files.map} a",
                "set server replicas/s1 state ready",
            ]
        )
        assert caplog.records == []
        door.tell(["set server replicas/s9 state ready"])
    (record,) = caplog.records
    assert record.message == (
        "HAProxy answers 'set server replicas/s9 state ready' with 'No such server.'"
    )


@needs_openssl
def test_the_key_is_not_on_disk_while_it_runs(tmp_path: Path) -> None:
    """Whoever kills the door would leave it there."""
    keys = make_keys(tmp_path, "door")
    door = DoorProcess(
        str(HAPROXY),
        free_address(),
        num_slots=1,
        streams=10,
        certificate=keys.cert.read_bytes() + keys.key.read_bytes(),
    )
    try:
        left = [path for path in door.files.folder.iterdir() if path.is_file()]
        assert not any(b"PRIVATE KEY" in path.read_bytes() for path in left)
        assert door.files.folder.stat().st_mode & 0o077 == 0
    finally:
        door.stop()
    assert not door.files.folder.exists()


def test_a_port_that_is_taken_is_named() -> None:
    address = free_address()
    refused = pytest.raises(StartError, match=f"does not start for {address} .*cannot bind")
    with socket.create_server(address), refused:
        DoorProcess(str(HAPROXY), address, num_slots=1, streams=10)
