"""The configuration of the HAProxy in front of the replicas, and the commands that keep it current.

HAProxy takes gRPC apart into streams. A stream goes to the replica that its client names. Else a
hash of the prompt's first block, or of the session's id, chooses one, so that equal beginnings
meet. A replica much fuller than the others is passed over. `optimizer.policy.replica_choice` says
the same rule in Python. Nothing here does I/O.

The configuration has numbered slots, empty at first. A replica gets a slot by commands on
HAProxy's own socket. So no process is replaced when replicas come and go, and no stream ends.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from cloud.cluster.book import ReplicaReport
from cloud.errors import StartError
from optimizer.policy.replica_choice import MOST_LOAD_PERCENT
from protos.addresses import Address
from protos.metadata import FORWARDED_FOR_KEY, PREFIX_KEY, REPLICA_KEY, SESSION_KEY

_BACKEND: Final = "replicas"
# A machine that has vanished is noticed as soon as gRPC's own pings would: HAProxy answers those.
_KEEPALIVE: Final = """
    option clitcpka
    option srvtcpka
    clitcpka-idle 20s
    clitcpka-intvl 5s
    clitcpka-cnt 2
    srvtcpka-idle 20s
    srvtcpka-intvl 5s
    srvtcpka-cnt 2"""
_HAS_KEEPALIVE: Final = sys.platform == "linux"
_UNACKNOWLEDGED: Final = " tcp-ut 30s"
# The slots' file stands inside an expression and in commands, where no quotes help.
_PLAIN_PATH: Final = re.compile(r"[\w./+-]+")
_HEAD: Final = """\
# Written by Splitpoint for its own HAProxy: changes here last until the next start.
global
    stats socket {socket} mode 600 level admin
    tune.h2.max-concurrent-streams {streams}
    # A frame of a long prompt crosses a slow link without a wait for permission to send on.
    tune.h2.fe.initial-window-size 1048576
    hard-stop-after 10s

defaults
    mode http
    option http-no-delay
    option abortonclose{keepalive}
    option redispatch 1
    retries 3
    retry-on conn-failure
    timeout connect 2s
    timeout http-request 10s
    timeout http-keep-alive 15m
    timeout queue 5s
    timeout client 1h
    timeout server 1h

frontend door
    bind {bind}
{peer}    http-request set-header x-affinity %[req.hdr({session})]
    http-request set-header x-affinity %[req.hdr({prefix})] if {{ req.hdr({prefix}) -m found }}
    http-request set-var(txn.slot) req.hdr({replica}),map({map})
    default_backend {backend}

backend {backend}
    balance hdr(x-affinity)
    hash-type consistent sdbm avalanche
    hash-balance-factor {most_load}
    # A connection for each stream: no client's reading holds up another's answers.
    http-reuse never
    default-server check inter 1s fall 2 rise 1{unacknowledged}{tls} disabled
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorFiles:
    """Where HAProxy finds things. folder: of its own, for its owner alone; short, for the socket.

    certificate: PEM of the door's chain and key (None: plain text). replicas_ca: PEM of who signed
    the replicas' certificate (None: they speak plain text). client_ca: PEM of who signs the
    clients' (None: they need none).
    """

    folder: Path
    certificate: Path | None = None
    replicas_ca: Path | None = None
    client_ca: Path | None = None

    @property
    def socket(self) -> Path:
        """HAProxy's own socket for commands."""
        return self.folder / "haproxy.sock"

    @property
    def map(self) -> Path:
        """The slot of each replica by its name; empty at first."""
        return self.folder / "slots.map"

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.folder / "haproxy.cfg"


def door_config(
    address: Address,
    files: DoorFiles,
    *,
    num_slots: int,
    streams: int,
    behind_proxy: bool = False,
) -> str:
    """The text of the configuration. streams: most at once over one client's connection.

    behind_proxy: another proxy has written whose calls they are, and that stays. Raises StartError
    for a path that HAProxy cannot take.
    """
    if not _PLAIN_PATH.fullmatch(str(files.map)):
        raise StartError(
            f"{files.folder}: HAProxy takes no such folder; set TMPDIR to a plainer one"
        )
    bind = str(address)
    if files.certificate is None:
        bind += " proto h2"
    else:
        bind += f" ssl crt {_quoted(files.certificate)} alpn h2 ssl-min-ver TLSv1.2"
    if files.client_ca is not None:
        bind += f" ca-file {_quoted(files.client_ca)} verify required"
    if _HAS_KEEPALIVE:
        bind += _UNACKNOWLEDGED
    tls = (
        " proto h2"
        if files.replicas_ca is None
        else f" ssl alpn h2 verify required ca-file {_quoted(files.replicas_ca)}"
    )
    head = _HEAD.format(
        socket=_quoted(files.socket),
        streams=streams,
        bind=bind,
        keepalive=_KEEPALIVE if _HAS_KEEPALIVE else "",
        unacknowledged=_UNACKNOWLEDGED if _HAS_KEEPALIVE else "",
        peer="" if behind_proxy else f"    http-request set-header {FORWARDED_FOR_KEY} %[src]\n",
        session=SESSION_KEY,
        prefix=PREFIX_KEY,
        replica=REPLICA_KEY,
        map=files.map,
        backend=_BACKEND,
        most_load=MOST_LOAD_PERCENT,
        tls=tls,
    )
    slots = [f"s{number}" for number in range(1, num_slots + 1)]
    rules = [f"    use-server {slot} if {{ var(txn.slot) -m str {slot} }}" for slot in slots]
    servers = [f"    server {slot} 127.0.0.1:1" for slot in slots]
    return "\n".join([head.rstrip(), *rules, *servers, ""])


def _quoted(path: Path) -> str:
    """A word of the configuration that means this path, whatever signs are in it."""
    text = str(path)
    if not text.isprintable():
        raise StartError(f"{text!r}: a path for HAProxy has no such signs")
    return "'" + text.replace("'", "'\\''") + "'"


class Seat(NamedTuple):
    """Which replica a slot has, and whether new streams go there."""

    replica: str
    address: Address
    serving: bool


def seats_after(
    seats: Mapping[str, Seat], replicas: Iterable[ReplicaReport], num_slots: int
) -> dict[str, Seat]:
    """The slots for the replicas that are there now; whoever has a slot keeps it.

    A replica for which no slot is left waits until one is.
    """
    there = {one.name: one for one in replicas}
    kept = {slot: seat for slot, seat in seats.items() if seat.replica in there}
    slot_of = {seat.replica: slot for slot, seat in kept.items()}
    free = [slot for number in range(num_slots) if (slot := f"s{number + 1}") not in kept]
    for name in sorted(there):
        if name not in slot_of and free:
            slot_of[name] = free.pop(0)
    return {
        slot: Seat(name, Address(there[name].host, there[name].port), there[name].serving)
        for name, slot in slot_of.items()
    }


def commands(
    before: Mapping[str, Seat], after: Mapping[str, Seat], slots_map: Path
) -> Sequence[str]:
    """What HAProxy must be told when the slots change. Streams that run are left alone.

    A replica that takes no sessions is not found by its name: who names it goes where others go.
    """
    told: list[str] = []
    for slot in sorted({*before, *after}):
        old, new = before.get(slot), after.get(slot)
        server = f"{_BACKEND}/{slot}"
        is_other = old is None or new is None or old.replica != new.replica
        if old is not None and old.serving and (new is None or is_other or not new.serving):
            told.append(f"del map {slots_map} {old.replica}")
        if old is not None and is_other:
            told.append(f"set server {server} state maint")
        if new is None:
            continue
        if is_other or (old is not None and old.address != new.address):
            host, port = new.address
            told.append(f"set server {server} addr {host} port {port}")
        if new.serving and (old is None or is_other or not old.serving):
            told.append(f"add map {slots_map} {new.replica} {slot}")
        if is_other or (old is not None and old.serving != new.serving):
            told.append(f"set server {server} state {'ready' if new.serving else 'drain'}")
    return told


def commands_anew(after: Mapping[str, Seat], slots_map: Path, num_slots: int) -> Sequence[str]:
    """What HAProxy must be told where nobody knows what it has heard. Streams are left alone."""
    emptied = [f"set server {_BACKEND}/s{slot + 1} state maint" for slot in range(num_slots)]
    return [f"clear map {slots_map}", *emptied, *commands({}, after, slots_map)]
