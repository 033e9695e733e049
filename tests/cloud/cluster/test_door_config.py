"""What HAProxy is told: its configuration, and the commands when replicas come and go."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cloud.cluster.door_config import (
    DoorFiles,
    Seat,
    commands,
    commands_anew,
    door_config,
    seats_after,
)
from cloud.cluster.door_process import DoorProcess
from cloud.errors import StartError
from protos.addresses import Address
from tests.cloud.cluster.haproxy import HAPROXY, WHY_NOT
from tests.cloud.cluster.test_book import report
from tests.tls_keys import make_keys, needs_openssl

MAP = Path("/door/slots.map")
HERE = Address("127.0.0.1", 50051)


def text(files: DoorFiles, address: Address = HERE) -> str:
    return door_config(address, files, num_slots=2, streams=100)


def test_the_door_listens_and_hashes_on_what_the_edge_sends() -> None:
    said = text(DoorFiles(folder=Path("/door")))
    assert "bind 127.0.0.1:50051 proto h2" in said
    assert "balance hdr(x-affinity)" in said
    assert said.index("%[req.hdr(x-session-id)]") < said.index("%[req.hdr(x-prefix-hash)]")
    assert "use-server s2 if { var(txn.slot) -m str s2 }" in said
    assert "http-request set-header x-forwarded-for %[src]" in said  # not what a client says
    assert "ssl" not in said


def test_with_a_certificate_it_speaks_tls_alone() -> None:
    files = DoorFiles(
        folder=Path("/door"),
        certificate=Path("/door/door.pem"),
        client_ca=Path("/ca.pem"),
        replicas_ca=Path("/inner.pem"),
    )
    said = text(files, Address("::", 443))
    assert (
        "bind [::]:443 ssl crt '/door/door.pem' alpn h2 ssl-min-ver TLSv1.2 ca-file '/ca.pem' "
    ) in said
    assert "ssl alpn h2 verify required ca-file '/inner.pem' disabled" in said


def test_behind_another_proxy_the_door_leaves_what_that_one_says() -> None:
    files = DoorFiles(folder=Path("/door"))
    said = door_config(HERE, files, num_slots=2, streams=100, behind_proxy=True)
    assert "x-forwarded-for" not in said
    assert "http-request set-header x-affinity" in said


def test_a_machine_that_vanishes_is_noticed_on_both_sides() -> None:
    """HAProxy answers gRPC's own pings, so neither side would hear of the other one's end."""
    said = text(DoorFiles(folder=Path("/door")))
    for side in ("clitcpka", "srvtcpka"):
        assert f"    option {side}\n" in said
        assert f"    {side}-idle 20s\n    {side}-intvl 5s\n    {side}-cnt 2\n" in said
    assert len(re.findall("^    (?:bind|default-server) .* tcp-ut 30s", said, re.MULTILINE)) == 2


def test_devices_keep_their_connection_and_send_long_frames_at_once() -> None:
    """HAProxy's own choices: a connection ends after 10 s without a stream, as a head that does not
    come does, and a stream may have 64 KiB on its way."""
    said = text(DoorFiles(folder=Path("/door")))
    assert "    timeout http-keep-alive 15m\n" in said  # as long as a server keeps it
    assert "    tune.h2.fe.initial-window-size 1048576\n" in said


def test_a_folder_that_would_end_a_word_is_refused() -> None:
    with pytest.raises(StartError, match=r"/my door: HAProxy takes no such folder; set TMPDIR"):
        text(DoorFiles(folder=Path("/my door")))
    with pytest.raises(StartError, match="a path for HAProxy has no such signs"):
        text(DoorFiles(folder=Path("/door"), client_ca=Path("/a\nglobal\nuser root")))


@needs_openssl
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "there is one")
@pytest.mark.parametrize("is_secured", [False, True])
def test_haproxy_takes_the_configuration(tmp_path: Path, is_secured: bool) -> None:
    files = DoorFiles(folder=tmp_path)
    if is_secured:
        odd = tmp_path / 'it\'s a $HOME "folder" \\ # of keys'
        odd.mkdir()
        keys = make_keys(odd, "door")
        pem = tmp_path / "door.pem"
        pem.write_bytes(keys.cert.read_bytes() + keys.key.read_bytes())
        files = replace(files, certificate=pem, client_ca=keys.ca, replicas_ca=keys.ca)
    files.map.write_text("")
    files.config.write_text(text(files))
    done = subprocess.run(
        [str(HAPROXY), "-c", "-f", str(files.config)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "ALERT" not in done.stderr


def test_a_replica_keeps_its_slot_while_others_come_and_go() -> None:
    seats = seats_after({}, [report("a"), report("b")], 2)
    assert {slot: seat.replica for slot, seat in seats.items()} == {"s1": "a", "s2": "b"}
    seats = seats_after(seats, [report("b"), report("c"), report("d")], 2)
    assert {slot: seat.replica for slot, seat in seats.items()} == {"s2": "b", "s1": "c"}


def test_only_what_changes_is_told() -> None:
    before = {"s1": Seat("a", HERE, True), "s2": Seat("b", HERE, True)}
    assert commands(before, before, MAP) == []
    after = {"s1": Seat("a", HERE, False), "s2": Seat("c", Address("10.0.0.2", 7), True)}
    assert commands(before, after, MAP) == [
        f"del map {MAP} a",  # who names it goes where others go
        "set server replicas/s1 state drain",
        f"del map {MAP} b",
        "set server replicas/s2 state maint",
        "set server replicas/s2 addr 10.0.0.2 port 7",
        f"add map {MAP} c s2",
        "set server replicas/s2 state ready",
    ]


def test_a_replica_that_came_to_drain_is_never_found_by_its_name() -> None:
    draining = {"s1": Seat("a", HERE, False)}
    assert commands({}, draining, MAP) == [
        f"set server replicas/s1 addr {HERE.host} port {HERE.port}",
        "set server replicas/s1 state drain",
    ]
    assert commands(draining, {}, MAP) == ["set server replicas/s1 state maint"]
    assert commands(draining, {"s1": Seat("a", HERE, True)}, MAP) == [
        f"add map {MAP} a s1",
        "set server replicas/s1 state ready",
    ]


def test_after_silence_everything_is_told_anew() -> None:
    assert commands_anew({"s2": Seat("a", HERE, True)}, MAP, 2) == [
        f"clear map {MAP}",
        "set server replicas/s1 state maint",
        "set server replicas/s2 state maint",
        f"set server replicas/s2 addr {HERE.host} port {HERE.port}",
        f"add map {MAP} a s2",
        "set server replicas/s2 state ready",
    ]


def test_a_replica_that_is_gone_gets_no_streams() -> None:
    assert commands({"s1": Seat("a", HERE, True)}, {}, MAP) == [
        f"del map {MAP} a",
        "set server replicas/s1 state maint",
    ]


def test_an_old_haproxy_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "haproxy"
    old.write_text("#!/bin/sh\necho 'HAProxy version 2.6.12 2023/03/28'\n")
    old.chmod(0o755)
    with pytest.raises(StartError, match=r"HAProxy 2\.8 or newer is needed \(HAProxy version 2\.6"):
        DoorProcess(str(old), HERE, num_slots=1, streams=10)


def test_a_haproxy_that_is_not_there_is_named() -> None:
    with pytest.raises(StartError, match="/no/haproxy: HAProxy cannot be run"):
        DoorProcess("/no/haproxy", HERE, num_slots=1, streams=10)
