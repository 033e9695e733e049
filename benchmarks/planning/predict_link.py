"""Measure the link probe against a link of known shape; print a table and JSON last.

A gRPC server, the emulator's relay and the probe that `splitpoint profile link` runs, each in a
process of its own. The relay's own round trip by a plain TCP echo stands beside the probe's. Median
of `--repeats` probes a setting.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

from cloud.server.link_probe import answer_probe
from edge.net.grpc_probe import GrpcProbeStream
from edge.net.grpc_transport import GrpcTransport
from edge.net.link_probe import LinkMeasurement, probe_link
from edge.net.loopback_probe import loopback_stack_s
from protos import wire

MBIT = 1e6 / 8
# name, RTT in seconds, up and down in Mbit/s
SETTINGS = (
    ("5 ms, 50 Mbit/s", 0.005, 50.0, 50.0),
    ("50 ms, 10 down / 2 up Mbit/s", 0.050, 2.0, 10.0),
    ("300 ms, 1 Mbit/s", 0.300, 1.0, 1.0),
)


RELAY = (
    "import typer; from splitpoint.commands.emulate_link import emulate_link; "
    "typer.run(emulate_link)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--real-time", action="store_true", help="SCHED_FIFO: needs root")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
        return
    if arguments.real_time:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    rows = []
    print("| link | | set | measured | error |\n| --- | --- | ---: | ---: | ---: |")
    echo = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=answer_echoes, args=(echo,), daemon=True).start()
    with process(__file__, "--serve") as port:
        for name, rtt_s, up_mbps, down_mbps in SETTINGS:
            shape = ["--rtt-ms", str(rtt_s * 1e3), "--up-mbps", str(up_mbps)]
            shape += ["--down-mbps", str(down_mbps)]
            with process("-c", RELAY, "--to", f"127.0.0.1:{port}", *shape) as relay:
                found = [probe(relay) for _ in range(arguments.repeats)]
            to = f"127.0.0.1:{echo.getsockname()[1]}"
            with process("-c", RELAY, "--to", to, *shape) as at:
                plain_s = echo_s(at)
            rtts = [statistics.median(f.rtt_s) for f in found]
            row: dict[str, Any] = {
                "link": name,
                "rtt_s": [rtt_s, statistics.median(rtts)],
                "up_mbps": [up_mbps, statistics.median(f.up.bytes_per_s for f in found) / MBIT],
                "down_mbps": [
                    down_mbps,
                    statistics.median(f.down.bytes_per_s for f in found) / MBIT,
                ],
                "tcp_echo_s": plain_s,
                "stack_s": statistics.median(f.stack_s for f in found),
                "spent_bytes": max(f.spent_bytes for f in found),
                "capped": any(f.capped for f in found),
            }
            rows.append(row)
            for key, scale, unit in (
                ("rtt_s", 1e3, "ms"),
                ("up_mbps", 1, "Mbit/s"),
                ("down_mbps", 1, "Mbit/s"),
            ):
                known, measured = row[key]
                print(
                    f"| {name} | {key.split('_')[0]} | {known * scale:g} {unit} | "
                    f"{measured * scale:.4g} {unit} | {measured / known - 1:+.1%} |"
                )
            print(
                f"| {name} | tcp echo | | {plain_s * 1e3:.4g} ms | {plain_s / rtt_s - 1:+.1%} |",
                flush=True,
            )
    print(json.dumps({"benchmark": "predict_link", "repeats": arguments.repeats, "rows": rows}))


def probe(port: int) -> LinkMeasurement:
    """What `splitpoint profile link` does."""
    stack_s = loopback_stack_s()
    transport = GrpcTransport(f"127.0.0.1:{port}")
    try:
        with GrpcProbeStream(transport) as stream:
            return probe_link(stream, stack_s=stack_s)
    finally:
        transport.close()


def answer_echoes(listener: socket.socket) -> None:
    """Send back what comes, one connection at a time."""
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(4096):
                connection.sendall(data)


def echo_s(port: int) -> float:
    """Median round trip of 64 bytes over plain TCP."""
    times = []
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(22):
            began_s = time.perf_counter()
            connection.sendall(b"p" * 64)
            connection.recv(64)
            times.append(time.perf_counter() - began_s)
    return statistics.median(times[2:])


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[int]:
    """A Python process that prints [HOST:]PORT first; its port."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield int(running.stdout.readline().rpartition(":")[2])
        finally:
            running.terminate()


async def serve() -> None:
    """A gRPC server that serves the probe alone; prints its port."""

    async def handle(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for answer in answer_probe(requests):
            yield answer

    server = grpc.aio.server()
    method = wire.PROBE_PATH.rsplit("/", 1)[1]
    handlers = {method: grpc.stream_stream_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(wire.SERVICE_NAME, handlers),)
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    main()
