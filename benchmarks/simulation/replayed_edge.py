"""One edge device of `simulated_against_measured.py`: the real edge code, with a recorded front.

The front sleeps for as long as the simulated device would compute and hands out rows that a
real front made for the same tokens. So many devices fit on one machine without taking its cores
from the server; everything else (encoding, journal, gRPC, drafting, controller) is the real
edge, in a process of its own.

    python benchmarks/simulation/replayed_edge.py JOB.json     # written by replayed_fleet.py

It answers one question over a connection of its own, prints `ready`, waits for the moment to start
(a line on stdin), and prints one JSON line at the end.
"""

from __future__ import annotations

import json
import random
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codec.ladder import Ladder
from decoding.params import SamplingParams
from edge.draft.ngram import NgramDrafter
from edge.errors import TooSlowError, TransportError
from edge.generation.chunk_sizer import ChunkSizer
from edge.generation.connector import Connector
from edge.generation.drafting import DraftSelector
from edge.generation.level_selector import LevelSelector
from edge.generation.loop import RemoteGeneration
from edge.net.grpc_transport import GrpcTransport
from edge.step_trace import StepTrace
from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.bundle import open_bundle
from optimizer.artifacts.plan import Plan
from optimizer.policy.retry import Clock, RetryPolicy
from optimizer.simulate.times import FrontTimes
from protos.messages import Open


class RecordedFront:
    """A front that takes a device's time and returns recorded rows. rows: float32 [T, D]."""

    def __init__(self, rows: np.ndarray, times: FrontTimes | None) -> None:
        self._rows = rows
        self._times = times
        self.num_tokens = 0

    def forward(self, token_ids: np.ndarray) -> np.ndarray:
        """See FrontSegment. The thread sleeps, and waits out the last stretch awake."""
        count, position = len(token_ids), self.num_tokens
        if self._times is not None:
            until_s = time.perf_counter() + self._times.seconds(count, position)
            time.sleep(max(until_s - time.perf_counter() - 2e-4, 0.0))
            while time.perf_counter() < until_s:
                pass
        self.num_tokens += count
        return self._rows[position : position + count]

    def rollback(self, num_tokens: int) -> None:
        """See FrontSegment."""
        self.num_tokens = num_tokens

    def keep_steps(self, steps: Sequence[Sequence[int]]) -> None:
        """See FrontSegment: each replay begins anew."""
        self.num_tokens = 0


def main() -> int:
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    plan = open_bundle(Path(job["bundle"]), role="edge").plan
    hidden_size = plan.model.geometry.hidden_size
    tables = Path(job["bundle"]) / "codec" / f"split-{plan.partition.split}.tables"
    ladder = (
        Ladder.load(tables, hidden_size=hidden_size)
        if tables.is_file()
        else Ladder.lossless(hidden_size)
    )
    recording = np.load(job["recording"])
    prompt = [int(token) for token in recording["prompt"]]
    device = job["device"]
    times = None if device is None else FrontTimes(load_device(device), plan)
    if times is not None:
        warm(times, plan.prefill_chunk, len(recording["rows"]))
    names = ladder.names
    edge = Edge(
        job=job,
        plan=plan,
        ladder=ladder,
        recording=recording["rows"],
        prompt=prompt,
        times=times,
        levels=names[names.index(plan.level) :],
    )
    edge.ask(GrpcTransport(job["warm_address"]))
    edge.steps.clear()
    transport = GrpcTransport(job["address"])  # connects with the first question
    print("ready", flush=True)
    start_s = float(sys.stdin.readline())
    asked: list[dict[str, Any]] = []
    while time.monotonic() < start_s:
        time.sleep(max(start_s - time.monotonic(), 0) / 2 + 1e-4)
    for think_s in job["think_s"]:
        time.sleep(think_s)
        if time.monotonic() >= start_s + job["seconds"]:
            break
        asked.append(edge.ask(transport))
    print(json.dumps({"asked": asked, "steps": edge.steps}))
    return 0


@dataclass(frozen=True, kw_only=True)
class Edge:
    """The device: what it asks, with what. `steps`: the trace of every answered frame."""

    job: dict[str, Any]
    plan: Plan
    ladder: Ladder
    recording: np.ndarray
    prompt: list[int]
    times: FrontTimes | None
    levels: tuple[str, ...]
    steps: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, transport: GrpcTransport) -> dict[str, Any]:
        """One question to the end; when it was asked, when each token came, how it ended."""
        job, clock, retry_policy = self.job, Clock(), RetryPolicy()
        selector = LevelSelector(
            ladder=self.ladder, levels=self.levels, deadline_s=job["deadline_s"]
        )
        begun_s = time.monotonic()
        generation = RemoteGeneration(
            front=RecordedFront(self.recording, self.times),
            selector=selector,
            connector=Connector(
                request=Open(
                    session_id=secrets.token_hex(16),
                    model_sha256=self.plan.model.sha256,
                    split=self.plan.partition.split,
                    hidden_size=self.plan.model.geometry.hidden_size,
                    codec_tables_sha256=self.ladder.tables_sha256,
                    max_tokens=len(self.prompt) + job["output_tokens"],
                    sampling=SamplingParams(),
                ),
                transports=[transport],
                retry_policy=retry_policy,
                clock=clock,
                rng=random.Random(),
            ),
            chunks=ChunkSizer(self.plan.prefill_chunk, selector=selector),
            retry_policy=retry_policy,
            clock=clock,
            drafting=DraftSelector(NgramDrafter(), clock=clock.now, in_flight=job["in_flight"])
            if job["drafting"]
            else None,
        )
        token_s: list[float] = []

        def keep(step: StepTrace) -> None:
            self.steps.append({name: getattr(step, name) for name in KEPT})

        ended = "done"
        try:
            tokens = generation.tokens(self.prompt, keep)
            for token in tokens:
                token_s.append(token.at_s)
                if len(token_s) >= job["output_tokens"]:
                    break
            tokens.close()
        except (TransportError, TooSlowError) as error:
            ended = f"{type(error).__name__}: {error}"
        return {"asked_s": begun_s, "token_s": token_s, "ended": ended}


KEPT = (
    "phase",
    "sequence",
    "ahead",
    "first_position",
    "num_rows",
    "num_drafts",
    "num_new_tokens",
    "level",
    "front_s",
    "encode_s",
    "wire_s",
    "cloud_codec_s",
    "cloud_queue_s",
    "cloud_compute_s",
    "cloud_sample_s",
    "batch_sessions",
    "uplink_bytes",
    "downlink_bytes",
)


def warm(times: FrontTimes, chunk: int, longest: int) -> None:
    """Every value that will be asked for, so that looking it up takes no time of the run's."""
    for position in range(longest):
        times.seconds(1, position)
    for rows in range(16, chunk + 1, 16):
        times.seconds(rows, 0)


if __name__ == "__main__":
    sys.exit(main())
