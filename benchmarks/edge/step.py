"""The edge's own share of a decode step, part by part, and what it costs while it waits.

    python benchmarks/edge/step.py --bundle BUNDLE [--tokens 120] [--threads 1 2]

`splitpoint serve` in a process of its own on loopback; this process is the edge. For each number of
kernel threads, spinning off and on, plain steps without drafting:

- front, encode: wall time around the kernels and the codec.
- out: from the encoded frame to gRPC's thread having the message (journal, protobuf, hand-over).
- in: from gRPC's thread having the answer to the generation having it (protobuf, hand-over).
- share: the sum, which is the edge's own wall time in a step but for gRPC's C core.
- cpu: processor time of this whole process a step, every thread and gRPC's core in it.
- idle: processor time a second of a client that is connected and waits for nothing.

Medians over the steps; JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edge.net.grpc_transport as grpc_transport
from benchmarks.edge.facts import machine
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from edge.net.transport import Received
from protos import wire
from splitpoint.server_process import serving

IDLE_S = 3.0
PROMPT = "Explain in a few sentences how a heat pump warms a house in winter."


class Marks:
    """When messages passed the two ends of the stream's queues."""

    def __init__(self) -> None:
        self.encoded_s: list[float] = []
        self.taken_s: list[float] = []
        self.came_s: list[float] = []
        self.got_s: list[float] = []

    def watch(self) -> None:
        """Wrap the stream's methods; the benchmark alone does this."""
        stream: Any = grpc_transport._GrpcStream
        send, requests, receive = stream.send, stream._requests, stream.receive
        transport_wire: Any = wire  # the very module that grpc_transport calls
        decode = transport_wire.decode_cloud
        marks = self

        def timed_send(self: Any, frame: Any) -> int:
            marks.encoded_s.append(time.monotonic())
            size: int = send(self, frame)
            return size

        def timed_requests(self: Any) -> Iterator[bytes]:
            for data in requests(self):
                marks.taken_s.append(time.monotonic())
                yield data

        def timed_decode(data: bytes) -> Any:
            marks.came_s.append(time.monotonic())
            return decode(data)

        def timed_receive(self: Any, timeout_s: float) -> Received:
            received: Received = receive(self, timeout_s)
            marks.got_s.append(time.monotonic())
            return received

        stream.send, stream._requests, stream.receive = timed_send, timed_requests, timed_receive
        transport_wire.decode_cloud = timed_decode

    def clear(self) -> None:
        for times in (self.encoded_s, self.taken_s, self.came_s, self.got_s):
            times.clear()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--level", default="auto")
    arguments = parser.parse_args()
    marks = Marks()
    marks.watch()
    rows: list[dict[str, Any]] = []
    with serving(arguments.bundle, ["--kv-memory", "256MiB"]) as address:
        for threads in arguments.threads:
            for spinning in (False, True) if threads > 1 else (False,):
                with EdgeClient(
                    arguments.bundle, address, threads=threads, spinning=spinning
                ) as client:
                    measured = measure(client, marks, arguments.tokens, arguments.level)
                rows.append({"threads": threads, "spinning": spinning, **measured})
                print(
                    f"threads {threads}, spinning {spinning}: "
                    + ", ".join(f"{name} {value:.2f}" for name, value in measured.items()),
                    file=sys.stderr,
                )
    print(
        json.dumps({"command": " ".join(["python", *sys.argv]), "machine": machine(), "runs": rows})
    )
    return 0


def measure(client: EdgeClient, marks: Marks, tokens: int, level: str) -> dict[str, float]:
    request = CompletionRequest(max_new_tokens=tokens, level=level, draft="off", ignore_eos=True)
    client.complete(PROMPT, CompletionRequest(max_new_tokens=4, level=level, draft="off"))
    marks.clear()
    cpu_s, wall_s = time.process_time(), time.monotonic()
    completion = client.complete(PROMPT, request)
    cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
    steps = [step for step in completion.steps if step.phase == "decode"]
    count = len(steps)
    # What is taken begins with Open and ends with Close, what comes with Opened and Closed; frames
    # and answers between them pair up in order.
    taken = marks.taken_s[1 : 1 + len(marks.encoded_s)]
    out = [b - a for a, b in zip(marks.encoded_s, taken, strict=True)][-count:]
    came = marks.came_s[: len(marks.got_s)]
    back = [b - a for a, b in zip(came, marks.got_s, strict=True)][-count:]
    idle_cpu_s = time.process_time()
    time.sleep(IDLE_S)
    idle_cpu_s = time.process_time() - idle_cpu_s
    parts = {
        "front_ms": 1e3 * statistics.median(step.front_s for step in steps),
        "encode_ms": 1e3 * statistics.median(step.encode_s for step in steps),
        "out_ms": 1e3 * statistics.median(out),
        "in_ms": 1e3 * statistics.median(back),
    }
    return {
        **parts,
        "share_ms": sum(parts.values()),
        "cpu_ms_a_step": 1e3 * cpu_s / (count + 1),
        "step_ms": 1e3 * statistics.median(step.edge_s + step.round_trip_s for step in steps),
        "wire_ms": 1e3 * statistics.median(step.wire_s for step in steps),
        "cloud_ms": 1e3 * statistics.median(step.cloud_s for step in steps),
        "cpu_share": cpu_s / wall_s,
        "idle_cpu_share": idle_cpu_s / IDLE_S,
        "bytes_a_step": statistics.median(step.uplink_bytes for step in steps),
    }


if __name__ == "__main__":
    sys.exit(main())
