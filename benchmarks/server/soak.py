"""Honest and hostile clients at one server for ten minutes: what is left behind, and who suffers.

    make soak, or: python -m benchmarks.server.soak [--minutes 10] [--out FILE]

A server of a tiny seeded model runs in a process of its own. Honest clients play recorded sessions:
first alone, for a tenth of the time, then beside hostile clients that come from another address
and do in turn what `HOSTILE` lists. Prints what the server holds before and after (resident
memory, threads, descriptors, KV blocks), whether every honest token was the same as alone, and the
95th percentile of the times between honest tokens, alone and beside. Exit status 1 where memory,
threads or descriptors grew by more than 5 %, a token differs, or p95 is over 1.5 times that alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import socket
import struct
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Literal

import grpc
import psutil

from benchmarks.server.load_clients import Played, Player, Recording, gaps_s, quantile, record
from codec.ladder import Ladder
from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.sources.model_source import open_source
from protos import wire
from protos.messages import ProbeChunk
from tests.hostile.raw_http2 import RawConnection
from tests.hostile.serve_process import ServeProcess, serve_process, until
from tests.tiny_models import make_tiny_model

NUM_HONEST = 4
STEP_PAUSE_S = 0.02
HOSTILE_ADDRESS = "127.0.0.2"
HOSTILE_PAUSE_S = 0.1
MOST_GROWTH = 1.05
MOST_SLOWDOWN = 1.5


class Hostile:
    """The hostile clients' ways. Each method is one of them, once."""

    def __init__(self, port: int, metrics_port: int, recording: Recording) -> None:
        self._port = port
        self._metrics_port = metrics_port
        self._recording = recording
        self._rng = random.Random(1)

    def _connect(self, window: int = 65_535) -> RawConnection:
        return RawConnection(self._port, window=window, source=HOSTILE_ADDRESS)

    def _open(self, connection: RawConnection, resume_s: float = 0.0) -> int:
        stream = connection.call(wire.GENERATE_PATH)
        name = f"hostile-{self._rng.getrandbits(64):x}"
        connection.say(stream, replace(self._recording.request, session_id=name, resume_s=resume_s))
        return stream

    def zero_window(self) -> None:
        connection = self._connect(window=0)
        self._open(connection, resume_s=60.0)
        time.sleep(0.2)
        connection.close()

    def never_reads(self) -> None:
        connection = self._connect(window=64)
        stream = self._open(connection)
        for frame in self._recording.frames:
            connection.say(stream, frame)
        time.sleep(0.2)
        connection.close()

    def unknown_fields(self) -> None:
        connection = self._connect()
        for _ in range(5):
            connection.send(self._open(connection), b"\x12\x80\x84\x04" + b"\xfa\x3e\x00" * 22_000)
        connection.close()

    def rubbish(self) -> None:
        connection = self._connect()
        for _ in range(5):
            size = self._rng.randrange(1 << 20)
            connection.send(self._open(connection), self._rng.randbytes(size))
        connection.close()

    def probes(self) -> None:
        connection = self._connect(window=0)
        asked = wire.encode_probe(ProbeChunk(sequence=1, padding_bytes=0, want_bytes=1 << 20))
        for _ in range(20):
            connection.send(connection.call(wire.PROBE_PATH), asked)
        connection.close()

    def rapid_reset(self) -> None:
        connection = self._connect()
        for _ in range(200):
            connection.h2.reset_stream(connection.call(wire.GENERATE_PATH))
        connection.flush()
        connection.close()

    def silence(self) -> None:
        connection = self._connect()
        for _ in range(50):
            connection.call(wire.GENERATE_PATH)
        connection.close()

    def parked(self) -> None:
        connection = self._connect()
        self._open(connection, resume_s=2.0)
        connection.read(0.2)
        connection.close()

    def metrics(self) -> None:
        held = [socket.create_connection(("127.0.0.1", self._metrics_port)) for _ in range(30)]
        for one in held:
            # Reset at once, or this side runs out of ports.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()


HOSTILE: tuple[Callable[[Hostile], None], ...] = (
    Hostile.zero_window,
    Hostile.never_reads,
    Hostile.unknown_fields,
    Hostile.rubbish,
    Hostile.probes,
    Hostile.rapid_reset,
    Hostile.silence,
    Hostile.parked,
    Hostile.metrics,
)


def be_hostile(port: int, metrics_port: int, recording: Recording, stop: Event) -> None:
    """Do what `HOSTILE` lists, over and over, until told to stop."""
    hostile = Hostile(port, metrics_port, recording)
    while not stop.is_set():
        for way in HOSTILE:
            with contextlib.suppress(OSError):  # cut off or refused: as it should be
                way(hostile)
            stop.wait(HOSTILE_PAUSE_S)


async def honest(address: str, recordings: list[Recording], seconds: float) -> list[Played]:
    """Sessions one after the other, `NUM_HONEST` at a time, until the time is over."""
    ends_s = time.monotonic() + seconds
    played: list[Played] = []

    async def client(index: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            while time.monotonic() < ends_s:
                player = Player(channel, recordings[index % len(recordings)])
                try:
                    await player.open()
                    await player.prefill()
                    await player.decode(pause_s=STEP_PAUSE_S)
                    await player.close()
                except grpc.aio.AioRpcError as error:
                    player.played.refused = str(error.details())
                    await asyncio.sleep(0.5)
                player.played.recording = index % len(recordings)
                played.append(player.played)

    await asyncio.gather(*(client(index) for index in range(NUM_HONEST)))
    return played


def _summed(values: dict[str, str], name: str) -> float:
    """A metric over all of its labels."""
    return sum(float(value) for key, value in values.items() if key.partition("{")[0] == name)


def holdings(server: ServeProcess, metrics_port: int) -> dict[str, float]:
    """What the server holds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {
        "rss_mib": round(server.rss_mib, 1),
        "threads": server.system.num_threads(),
        "descriptors": server.system.num_fds(),
        "kv_blocks_used": _summed(values, "splitpoint_kv_blocks_used"),
        "frame_bytes": float(values["splitpoint_frame_bytes"]),
    }


def build(folder: Path) -> tuple[Path, list[Recording]]:
    """A bundle of the tiny model, and sessions of it."""
    make_tiny_model("llama", folder / "model")
    source = open_source(folder / "model")
    plan = Plan(
        model=ModelRef(id=source.id, sha256=source.sha256, geometry=source.geometry),
        partition=Partition(split=0, front_bits=32, back_bits=32),
        back_start=0,
        kv_bits=32,
        level="lossless",
        max_tokens=200,
        prefill_chunk=16,
    )
    sides: tuple[Literal["cloud"]] = ("cloud",)
    build_bundle(source, plan, folder / "bundle", progress=lambda stage: None, sides=sides)
    model, ladder = source.load_model().eval(), Ladder.lossless(source.geometry.hidden_size)
    return folder / "bundle", [
        record(
            model, source.sha256, ladder, "lossless", split=1, num_tokens=60,
            prompt=[(7 * index + 3 * i * i) % 250 + 1 for i in range(30)],
        )
        for index in range(NUM_HONEST)
    ]  # fmt: skip


def soak(minutes: float) -> dict[str, object]:
    """The whole run; what it found."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        metrics_port = int(taken.getsockname()[1])
    options = ("--kv-memory", "32MiB", "--max-stall", "5", "--max-resume", "5")
    with tempfile.TemporaryDirectory() as folder:
        bundle, recordings = build(Path(folder))
        metrics = ("--metrics", f"127.0.0.1:{metrics_port}")
        context = multiprocessing.get_context("spawn")
        with serve_process(bundle, *options, *metrics) as server:
            stop = context.Event()
            rude = context.Process(
                target=be_hostile, args=(server.port, metrics_port, recordings[0], stop)
            )

            def settled() -> dict[str, float]:
                until(lambda: server.num_sessions() == 0, within_s=60)
                time.sleep(12)  # metrics connections end, and freed memory is given back
                return holdings(server, metrics_port)

            asyncio.run(honest(server.address, recordings, 5.0))  # whatever is made once is made
            alone = asyncio.run(honest(server.address, recordings, minutes * 6))
            before = settled()
            rude.start()
            beside = asyncio.run(honest(server.address, recordings, minutes * 60))
            stop.set()
            rude.join(60)
            after = settled()
            alive = psutil.pid_exists(server.process.pid) and server.process.poll() is None
    return report(alone, beside, before, after, alive=alive)


def report(
    alone: list[Played],
    beside: list[Played],
    before: dict[str, float],
    after: dict[str, float],
    *,
    alive: bool,
) -> dict[str, object]:
    """The numbers, and which of the limits they keep."""
    p95_alone_s, p95_beside_s = (quantile(gaps_s(played), 0.95) for played in (alone, beside))
    counted = ("rss_mib", "threads", "descriptors")
    wanted = {one.recording: one.tokens for one in alone}
    same = all(one.tokens == wanted[one.recording] for one in (*alone, *beside) if not one.refused)
    kept = {
        "alive": alive,
        "growth": all(after[name] <= MOST_GROWTH * before[name] + 0.5 for name in counted),
        "kv_freed": after["kv_blocks_used"] == before["kv_blocks_used"] == 0,
        "tokens": same and len(beside) > 0,
        "none_refused": not any(one.refused for one in beside),
        "p95": p95_beside_s <= MOST_SLOWDOWN * p95_alone_s,
    }
    return {
        "before": before,
        "after": after,
        "sessions": len(beside),
        "refused": sorted({one.refused for one in beside if one.refused}),
        "p95_alone_ms": round(1e3 * p95_alone_s, 2),
        "p95_beside_ms": round(1e3 * p95_beside_s, 2),
        "kept": kept,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="write the report to this file too")
    arguments = parser.parse_args()
    found = soak(arguments.minutes)
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    kept = found["kept"]
    return 0 if isinstance(kept, dict) and all(kept.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
