"""How true the link emulator is: round trips and rates, both ways, with 1 and 8 connections.

Definitions
    rtt      an echo of 64 bytes on an established connection. Expected: the set round trip and
             64 bytes at the set rate each way. Median and p95 over the probes.
    rate     payload bytes received in a window that starts after the queue has filled and the
             first byte has arrived, over its length, summed over the connections.
    share    of 8 connections, the smallest and largest rate over the mean one.
    replay   bytes through one connection that is greedy both ways while a recorded trace plays,
             against the trace's own integrals over the same time (`--replay TRACE --seconds S`).

The relay runs as its own process (`splitpoint emulate-link`'s code), server and client in another.
Prints a table, then one JSON object on the last line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from hwprofiles.links.schedule import BYTES_PER_S_PER_MBPS, read_trace

SETTINGS = ((5, 1), (5, 10), (5, 50), (5, 200), (50, 10), (50, 200), (300, 1))  # RTT ms, Mbit/s
RELAY = (
    "import typer; from splitpoint.commands.emulate_link import emulate_link; "
    "typer.run(emulate_link)"
)
CHUNK = b"x" * 65_536


def serve(listener: socket.socket) -> None:
    """First byte of a connection: e(cho), s(ink: count what comes), p(ump: send for ever)."""

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            kind = connection.recv(1)
            while kind == b"p":
                connection.sendall(CHUNK)
            while data := connection.recv(262_144):
                if kind == b"e":
                    connection.sendall(data)
                else:
                    sunk[connection.getpeername()[1]] = sunk.get(
                        connection.getpeername()[1], 0
                    ) + len(data)

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=one, args=(connection,), daemon=True).start()


sunk: dict[int, int] = {}


@contextlib.contextmanager
def relay(target: int, *options: str) -> Iterator[tuple[tuple[str, int], subprocess.Popen[str]]]:
    """The emulator as a process of its own."""
    command = [sys.executable, "-c", RELAY, "--to", f"127.0.0.1:{target}", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        host, port = process.stdout.readline().split(":")
        try:
            yield (host, int(port)), process
        finally:
            process.terminate()


def connect(address: tuple[str, int], kind: bytes) -> socket.socket:
    """A connection that has told the server what it is for."""
    connection = socket.create_connection(address, timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(kind)
    return connection


def round_trips_s(address: tuple[str, int], probes: int) -> list[float]:
    """Echo times, in seconds."""
    times = []
    with connect(address, b"e") as connection:
        for i in range(probes + 2):
            start_s = time.perf_counter()
            connection.sendall(b"p" * 64)
            left = 64
            while left:
                left -= len(connection.recv(left))
            if i >= 2:
                times.append(time.perf_counter() - start_s)
    return times


def rates(
    address: tuple[str, int], direction: str, connections: int, warm_s: float, seconds: float
) -> list[float]:
    """Bytes per second of each connection."""
    if direction == "down":
        return _down_rates(address, connections, warm_s, seconds)
    sunk.clear()
    stop = threading.Event()

    sockets = [connect(address, b"s") for _ in range(connections)]
    threads = [threading.Thread(target=_send_until, args=(s, stop), daemon=True) for s in sockets]
    for thread in threads:
        thread.start()
    time.sleep(warm_s)
    before, start_s = dict(sunk), time.perf_counter()
    time.sleep(seconds)
    after, end_s = dict(sunk), time.perf_counter()
    stop.set()
    for thread, connection in zip(threads, sockets, strict=True):
        thread.join()
        connection.close()
    each = sorted((n - before.get(key, 0)) / (end_s - start_s) for key, n in after.items())
    return each[-connections:]  # a connection of the window before may have left its number


def _down_rates(
    address: tuple[str, int], connections: int, warm_s: float, seconds: float
) -> list[float]:
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        counts = [0] * connections
        for i in range(connections):
            connection = stack.enter_context(connect(address, b"p"))
            selector.register(connection, selectors.EVENT_READ, i)
        now_s = time.perf_counter()
        start_s, end_s = now_s + warm_s, now_s + warm_s + seconds
        before: list[int] | None = None
        while (now_s := time.perf_counter()) < end_s:
            if before is None and now_s >= start_s:
                before, start_s = list(counts), now_s
            for key, _ in selector.select(0.01):
                counts[key.data] += len(key.fileobj.recv(262_144))  # type: ignore[union-attr]
        assert before is not None
        return [(n - b) / (now_s - start_s) for n, b in zip(counts, before, strict=True)]


def measure(rtt_ms: float, mbps: float, target: int, seconds: float) -> dict[str, Any]:
    """One setting: round trips, then both directions with 1 and 8 connections."""
    options = ("--rtt-ms", str(rtt_ms), "--up-mbps", str(mbps), "--down-mbps", str(mbps))
    with relay(target, *options) as (address, process):
        times = sorted(round_trips_s(address, max(8, min(60, int(1500 / rtt_ms)))))
        expected_s = rtt_ms / 1e3 + 2 * 64 / (mbps * BYTES_PER_S_PER_MBPS)
        row: dict[str, Any] = {
            "rtt_ms": rtt_ms,
            "mbps": mbps,
            "rtt_expected_ms": expected_s * 1e3,
            "rtt_p50_ms": median(times) * 1e3,
            "rtt_p95_ms": times[int(0.95 * len(times))] * 1e3,
        }
        before_s = _cpu_s(process.pid)
        began_s = time.perf_counter()
        for direction in ("up", "down"):
            for n in (1, 8):
                time.sleep(0.6 + rtt_ms / 1e3)  # the queue of the window before runs dry
                each = rates(address, direction, n, warm_s=0.5 + 3 * rtt_ms / 1e3, seconds=seconds)
                row[f"{direction}_{n}_mbps"] = sum(each) / BYTES_PER_S_PER_MBPS
                if n == 8:
                    mean = sum(each) / 8
                    row[f"{direction}_8_share"] = [min(each) / mean, max(each) / mean]
        row["relay_cpu"] = (_cpu_s(process.pid) - before_s) / (time.perf_counter() - began_s)
    return row


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def replay(path: str, seconds: float, every_s: float) -> dict[str, Any]:
    """Play a trace in real time to one connection that is greedy both ways, and compare bytes
    with the trace's integrals, every `every_s` seconds and at the end."""
    trace = read_trace(path)
    options = ["--trace", path, "--rtt-ms", "0", *([] if trace.up else ["--up-mbps", "10"])]
    checkpoints: list[dict[str, float]] = []
    # The far side sends unasked; even so the connection waits while a trace stands at zero, so
    # bytes count from its acceptance on.
    listener = socket.create_server(("127.0.0.1", 0))
    counts = {"up": 0, "down": 0}
    with contextlib.ExitStack() as stack:
        address, _ = stack.enter_context(relay(listener.getsockname()[1], *options))
        began_s = time.perf_counter()  # the trace began when the relay did, a moment earlier
        near = stack.enter_context(connect(address, b""))
        far, _ = listener.accept()
        since_s = time.perf_counter() - began_s
        stop = threading.Event()
        threads = [
            threading.Thread(target=work, args=(*arguments, stop))
            for work, arguments in (
                (_send_until, (near,)),
                (_send_until, (far,)),
                (_count_until, (near, counts, "down")),
                (_count_until, (far, counts, "up")),
            )
        ]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(stop.set)
        due_s = 0.0
        while due_s < seconds:
            due_s = min(due_s + every_s, seconds)
            time.sleep(max(0.0, due_s - (time.perf_counter() - began_s)))
            now_s, down, up = time.perf_counter() - began_s, counts["down"], counts["up"]
            row = {"at_s": now_s, "down_bytes": down}
            row["down_expected"] = trace.down.integral(now_s) - trace.down.integral(since_s)
            if trace.up is not None:
                expected = trace.up.integral(now_s) - trace.up.integral(since_s)
                row |= {"up_bytes": up, "up_expected": expected}
            checkpoints.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    found = {"trace": trace.name, "seconds": seconds, "since_s": since_s}
    return {**found, "checkpoints": checkpoints}


def _send_until(connection: socket.socket, stop: threading.Event) -> None:
    """Send for ever, until told to stop."""
    # Closing resets: what the sender's kernel still holds must not run into the next window.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.settimeout(0.05)
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            connection.send(CHUNK)


def _count_until(
    connection: socket.socket, counts: dict[str, int], way: str, stop: threading.Event
) -> None:
    """Receive for ever, until told to stop."""
    connection.settimeout(0.05)
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            counts[way] += len(connection.recv(262_144))


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of each rate window")
    parser.add_argument("--replay", metavar="TRACE", help="replay this trace instead")
    parser.add_argument("--every", type=float, default=60.0, help="checkpoints of the replay, s")
    parser.add_argument("--only", type=int, help="only the setting of this number, from 0")
    options = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    target = listener.getsockname()[1]
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    facts = {"python": platform.python_version(), "cpus": os.cpu_count()}
    if options.replay:
        result = replay(options.replay, options.seconds, options.every)
        last = result["checkpoints"][-1]
        for way in ("down", "up") if "up_bytes" in last else ("down",):
            error = last[f"{way}_bytes"] / last[f"{way}_expected"] - 1
            print(f"{result['trace']} {way}: {last[f'{way}_bytes']} bytes, {error:+.4%} of its own")
        print(json.dumps({**facts, "replay": result}))
        return 0
    print(
        "| set RTT | set rate | RTT expected | RTT p50 | RTT p95 | up 1 | up 8 | down 1 | down 8 "
        "| worst share of 8 | relay CPU |"
    )
    print("|" + "---|" * 11)
    rows = []
    for i, (rtt_ms, mbps) in enumerate(SETTINGS):
        if options.only is not None and options.only != i:
            continue
        row = measure(rtt_ms, mbps, target, options.seconds)
        rows.append(row)
        shares = row["up_8_share"] + row["down_8_share"]
        worst = max(shares, key=lambda share: abs(share - 1))
        speeds = " | ".join(f"{row[k]:.2f}" for k in RATE_KEYS)
        print(
            f"| {rtt_ms} ms | {mbps} Mbit/s | {row['rtt_expected_ms']:.2f} ms "
            f"| {row['rtt_p50_ms']:.2f} ms | {row['rtt_p95_ms']:.2f} ms | {speeds} "
            f"| {worst:.2f} | {row['relay_cpu']:.0%} |",
            flush=True,
        )
    print(json.dumps({**facts, "rows": rows}))
    return 0


RATE_KEYS = ("up_1_mbps", "up_8_mbps", "down_1_mbps", "down_8_mbps")

if __name__ == "__main__":
    raise SystemExit(main())
