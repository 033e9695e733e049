"""Measure the link probe against a link of known shape; print a table and JSON last.

The server is a real gRPC server in this process, the link the emulator's TCP relay, the probe the
one that `splitpoint profile link` runs. Median of `--repeats` probes a setting.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import grpc

from cloud.probe import answer_probe
from edge.grpc_probe import GrpcProbeStream
from edge.grpc_transport import GrpcTransport
from edge.link_probe import LinkMeasurement, probe_link
from hwprofiles.emulator import EmulatedLink
from hwprofiles.link_shape import LinkShape
from protos import wire

MBIT = 1e6 / 8
# name, RTT in seconds, up and down in Mbit/s
SETTINGS = (
    ("5 ms, 50 Mbit/s", 0.005, 50.0, 50.0),
    ("50 ms, 10 down / 2 up Mbit/s", 0.050, 2.0, 10.0),
    ("300 ms, 1 Mbit/s", 0.300, 1.0, 1.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    print("| link | | set | measured | error |\n| --- | --- | ---: | ---: | ---: |")
    with probe_server() as port:
        for name, rtt_s, up_mbps, down_mbps in SETTINGS:
            shape = LinkShape.fixed(
                rtt_s=rtt_s, up_bytes_per_s=up_mbps * MBIT, down_bytes_per_s=down_mbps * MBIT
            )
            found = [_probe(port, shape) for _ in range(arguments.repeats)]
            row = {
                "link": name,
                "rtt_s": [rtt_s, statistics.median(statistics.median(f.rtt_s) for f in found)],
                "up_mbps": [up_mbps, statistics.median(f.up.bytes_per_s for f in found) / MBIT],
                "down_mbps": [
                    down_mbps,
                    statistics.median(f.down.bytes_per_s for f in found) / MBIT,
                ],
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
                    f"{measured * scale:.4g} {unit} | {measured / known - 1:+.1%} |",
                    flush=True,
                )
    print(json.dumps({"benchmark": "predict_link", "repeats": arguments.repeats, "rows": rows}))


def _probe(port: int, shape: LinkShape) -> LinkMeasurement:
    with EmulatedLink(target=("127.0.0.1", port), shape=shape) as link:
        transport = GrpcTransport("{}:{}".format(*link.address))
        try:
            with GrpcProbeStream(transport) as stream:
                return probe_link(stream)
        finally:
            transport.close()


@contextmanager
def probe_server() -> Iterator[int]:
    """A gRPC server that serves the probe alone; its port."""

    async def handle(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for answer in answer_probe(requests):
            yield answer

    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    ports: list[int] = []

    async def serve() -> None:
        server = grpc.aio.server()
        method = wire.PROBE_PATH.rsplit("/", 1)[1]
        handlers = {method: grpc.stream_stream_rpc_method_handler(handle)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(wire.SERVICE_NAME, handlers),)
        )
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        ready.set()
        await stop.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


if __name__ == "__main__":
    main()
