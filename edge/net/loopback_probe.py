"""What the network stacks take of a link probe's round trip, measured on loopback.

The probe's own client asks a process that answers like a server, without a link between them. What
remains is protobuf, gRPC, HTTP/2, system calls and threads of both sides. Run as a module, this
file is the answering process.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from statistics import median
from typing import Final

import grpc

from edge.net.grpc_probe import GrpcProbeStream
from edge.net.grpc_transport import GrpcTransport
from edge.net.link_probe import TIMEOUT_S
from protos import wire
from protos.messages import ProbeChunk

NUM_PINGS: Final = 60
PAUSE_S: Final = 0.005  # threads that sleep for a link's round trip take longer to wake


def loopback_stack_s() -> float:
    """Seconds of a probe's round trip outside the link: the median of some on loopback."""
    command = [sys.executable, "-m", "edge.net.loopback_probe"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        if server.stdin is None or server.stdout is None:
            raise RuntimeError("a process without the pipes it was given")
        transport = GrpcTransport(f"127.0.0.1:{int(server.stdout.readline())}")
        try:
            with GrpcProbeStream(transport) as stream:
                return median(_pings_s(stream)[5:])
        finally:
            transport.close()
            server.stdin.close()


def _pings_s(stream: GrpcProbeStream) -> list[float]:
    found = []
    for sequence in range(NUM_PINGS):
        time.sleep(PAUSE_S)
        sent_s = time.perf_counter()
        stream.send(ProbeChunk(sequence=sequence, padding_bytes=0))
        found.append(stream.receive(TIMEOUT_S).at_s - sent_s)
    return found


async def _serve() -> None:
    async def answer(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for data in requests:
            chunk = wire.decode_probe(data)
            yield wire.encode_probe(
                ProbeChunk(sequence=chunk.sequence, padding_bytes=chunk.want_bytes)
            )

    server = grpc.aio.server()
    method = wire.PROBE_PATH.rsplit("/", 1)[1]
    handlers = {method: grpc.stream_stream_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(wire.SERVICE_NAME, handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(_serve())
