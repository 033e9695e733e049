"""What a proxy costs a message: the door's HAProxy, or Envoy, beside the replica itself.

    python -m benchmarks.server.door --bundle FOLDER [--haproxy FILE] [--tls] [--rounds 20]
    python -m benchmarks.server.door --bundle FOLDER --envoy FILE

One `splitpoint serve` runs in a process of its own. Messages of a decode step's size go to it and
back over its link probe, one after the other on one stream: directly, and through HAProxy with the
door's own configuration, or through Envoy with `deploy/door/envoy.yaml` in plain text. Both ways
take turns, a block of messages each, so that they meet the same machine. The model is idle: this is
the network path alone. Prints the median and the 95th percentile of each, and their difference, as
JSON.
"""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import yaml

from cloud.cluster.book import ReplicaReport
from cloud.cluster.door_config import commands, seats_after
from cloud.cluster.door_process import DoorProcess
from optimizer.policy.replicas import ReplicaLoad
from protos import wire
from protos.addresses import Address
from protos.messages import ProbeChunk
from tests.hostile.serve_process import serve_process
from tests.tls_keys import Keys, make_keys

UP_BYTES, DOWN_BYTES = 600, 60
BLOCK = 100


class Pinger:
    """One stream of the link probe; `block` sends so many messages and times each answer."""

    def __init__(self, address: str, keys: Keys | None) -> None:
        if keys is None:
            channel = grpc.insecure_channel(address)
        else:
            credentials = grpc.ssl_channel_credentials(keys.ca.read_bytes())
            name = (("grpc.ssl_target_name_override", "localhost"),)
            channel = grpc.secure_channel(address, credentials, options=name)
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        untyped: Any = channel
        self._answers = untyped.stream_stream(wire.PROBE_PATH)(
            self._requests(), wait_for_ready=True
        )

    def _requests(self) -> Iterator[bytes]:
        while (data := self._outbox.get()) is not None:
            yield data

    def block(self, count: int) -> list[float]:
        """Round trips in milliseconds."""
        chunk = ProbeChunk(sequence=0, padding_bytes=UP_BYTES, want_bytes=DOWN_BYTES)
        message = wire.encode_probe(chunk)
        times = []
        for _ in range(count):
            started_s = time.perf_counter()
            self._outbox.put(message)
            next(self._answers)
            times.append(1e3 * (time.perf_counter() - started_s))
        return times

    def end(self) -> None:
        self._outbox.put(None)
        self._answers.cancel()


def door_to(port: int, binary: str, keys: Keys | None) -> tuple[DoorProcess, int]:
    """A door with one replica behind it, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        door_port = probe.getsockname()[1]
    pem = None if keys is None else keys.cert.read_bytes() + keys.key.read_bytes()
    door = DoorProcess(
        binary, Address("127.0.0.1", door_port), num_slots=2, streams=100, certificate=pem
    )
    load = ReplicaLoad(0, 1, 0, 0, 1)
    report = ReplicaReport(name="r", host="127.0.0.1", port=port, serving=True, load=load)
    door.tell(commands({}, seats_after({}, [report], 2), door.files.map))
    return door, door_port


def envoy_to(port: int, binary: str, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Envoy as `deploy/door` has it, without TLS, with one server behind it, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        door_port = int(probe.getsockname()[1])
    config = yaml.safe_load(Path("deploy/door/envoy.yaml").read_text(encoding="utf-8"))
    (listener,), (cluster,) = (config["static_resources"][key] for key in ("listeners", "clusters"))
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": door_port}
    del listener["filter_chains"][0]["transport_socket"], cluster["transport_socket"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    place = {"address": "127.0.0.1", "port_value": port}
    endpoint["endpoint"]["address"]["socket_address"] = place
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    options = ["--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
    return subprocess.Popen([binary, "-c", str(path), *options]), door_port


def measure(
    bundle: Path, binary: str, *, tls: bool, rounds: int, envoy: str = ""
) -> dict[str, dict[str, float]]:
    """The figures of one run. tls: to the door and, directly, to a second server that speaks it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keys = make_keys(folder, "door") if tls else None
        own = ["--tls-cert", str(keys.cert), "--tls-key", str(keys.key)] if keys else []
        direct = stack.enter_context(serve_process(bundle, *own))
        behind = stack.enter_context(serve_process(bundle)) if tls else direct
        if envoy:
            process, door_port = envoy_to(behind.port, envoy, folder)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            time.sleep(3)  # until its health check has found the server
        else:
            door, door_port = door_to(behind.port, binary, keys)
            stack.callback(door.stop)
        pingers = {
            "direct": Pinger(direct.address, keys),
            "door": Pinger(f"127.0.0.1:{door_port}", keys),
        }
        times: dict[str, list[float]] = {name: [] for name in pingers}
        for pinger in pingers.values():
            pinger.block(BLOCK)  # connects, and warms up
        for _ in range(rounds):
            for name, pinger in pingers.items():
                times[name] += pinger.block(BLOCK)
        for pinger in pingers.values():
            pinger.end()
    figures = {
        name: {"p50_ms": statistics.median(all_), "p95_ms": statistics.quantiles(all_, n=20)[18]}
        for name, all_ in times.items()
    }
    added = {key: figures["door"][key] - figures["direct"][key] for key in ("p50_ms", "p95_ms")}
    return {**figures, "added": added}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--haproxy", default=shutil.which("haproxy"))
    parser.add_argument("--envoy", default="", help="measure this in place of HAProxy")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if options.envoy and options.tls:
        parser.error("--envoy is measured in plain text")
    figures = measure(
        options.bundle,
        options.haproxy,
        tls=options.tls,
        rounds=options.rounds,
        envoy=options.envoy,
    )
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
