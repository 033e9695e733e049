"""The number of replicas under a recorded load: up and down again, with every answer compared.

    python -m benchmarks.server.autoscaling BUNDLE TRACE.csv [--begin 510] [--seconds 360]
        [--thin 6] [--plot FILE.png]

Every THIN-th request of a window of a recorded trace (t_s, prompt_tokens, output_tokens) comes at
its recorded moment, from real edge clients. Prompts and answers are divided by `--scale-tokens` and
capped. Some long answers begin late and are under way when replicas end. One server gives
the tokens that are wanted. Needs Ray (`make test-ray`). JSON last; exit 1 when a token differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.server.replica_clients import ClientPool, Job, machine, timed_round, until
from decoding.params import SamplingParams
from edge.generation.completion import CompletionRequest
from tests.end_to_end.clusters import ClusterProcess, running_cluster
from tests.end_to_end.servers import running_server

MOST_PROMPT, MOST_OUTPUT = 256, 48
LONG_TOKENS = 1600
EVERY_S = 1.0
# After the last answer: until a minute of too little load has ended the others.
LULL_S = 240.0


@dataclass(frozen=True)
class Seen:
    """One look at the cluster, so many seconds after the load's begin."""

    at_s: float
    replicas: int
    fullness: float


class Watch:
    """Looks at the cluster until it is stopped; `looks` is what it saw."""

    def __init__(self, cluster: ClusterProcess) -> None:
        self.looks: list[Seen] = []
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._begin_s = time.monotonic()
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            serving = self._cluster.samples("splitpoint_replica_serving")
            fullness = self._cluster.samples("splitpoint_replica_fullness")
            at_s = round(time.monotonic() - self._begin_s, 1)
            self.looks.append(Seen(at_s, int(sum(serving.values())), sum(fullness.values())))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def read_jobs(path: Path, arguments: argparse.Namespace) -> list[Job]:
    """The window's requests, thinned and scaled, and the long ones."""
    begin_s, scale = arguments.begin, arguments.scale_tokens
    with path.open(encoding="utf-8") as file:
        rows = [
            (float(row["t_s"]) - begin_s, int(row["prompt_tokens"]), int(row["output_tokens"]))
            for row in csv.DictReader(file)
        ]
    window = [row for row in rows if 0 <= row[0] < arguments.seconds][:: arguments.thin]
    jobs = []
    for number, (at_s, prompt_tokens, output_tokens) in enumerate(window):
        words = min(max(prompt_tokens // scale, 4), MOST_PROMPT)
        prompt = f"Entry {number}." + " and then" * (words // 2)
        jobs.append(Job(prompt, _request(min(max(output_tokens, 4), MOST_OUTPUT), number), at_s))
    peak_s = arguments.seconds * arguments.long_at
    return jobs + [
        Job(f"A long story, number {index}.", _request(LONG_TOKENS, index), peak_s)
        for index in range(arguments.long)
    ]


def _request(tokens: int, seed: int) -> CompletionRequest:
    sampling = SamplingParams(temperature=0.9, seed=seed)
    return CompletionRequest(max_new_tokens=tokens, sampling=sampling, ignore_eos=True)


def changes(looks: Sequence[Seen]) -> list[tuple[float, int]]:
    """When the number of replicas that take sessions changed, and to what."""
    found: list[tuple[float, int]] = []
    for look in looks:
        if not found or found[-1][1] != look.replicas:
            found.append((look.at_s, look.replicas))
    return found


def draw(looks: Sequence[Seen], jobs: Sequence[Job], path: Path) -> None:
    """Requests, fullness and replicas over time, one below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.4), layout="constrained")
    above, middle, below = figure.subplots(3, sharex=True)
    times = [look.at_s for look in looks]
    bins = range(0, int(times[-1]) + 10, 10)
    above.hist([job.at_s for job in jobs], bins=list(bins), color="#1f6fb2")
    above.set_ylabel("requests\nin 10 s")
    middle.plot(times, [look.fullness for look in looks], color="#b35c00", lw=1.2)
    middle.set_ylabel("fullness,\nsummed")
    below.step(times, [look.replicas for look in looks], where="post", color="#2e7d4f", lw=2)
    below.set_ylabel("replicas that\ntake sessions")
    below.set_yticks(range(max(look.replicas for look in looks) + 2))
    below.set_xlabel("seconds")
    for axes in (above, middle, below):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--begin", type=float, default=510.0)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--thin", type=int, default=6)
    parser.add_argument("--scale-tokens", type=int, default=64)
    parser.add_argument("--long", type=int, default=2)
    parser.add_argument("--long-at", type=float, default=0.6, help="share of the window")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--max-replicas", type=int, default=3)
    parser.add_argument("--max-sessions", type=int, default=4)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    jobs = read_jobs(arguments.trace, arguments)
    with (
        running_server(arguments.bundle) as server,
        ClientPool(arguments.bundle, server.address, arguments.clients) as pool,
    ):
        at_once = [Job(job.prompt, job.request) for job in jobs]
        wanted = pool.run(at_once)
    options = ("--kv-memory", "512MiB", "--drain", "2", "--max-replicas",
               str(arguments.max_replicas), "--max-sessions", str(arguments.max_sessions),
               "--max-wait", "60")  # fmt: skip
    with (
        running_cluster(arguments.bundle, *options, replicas=1) as cluster,
        ClientPool(arguments.bundle, cluster.address, arguments.clients) as pool,
    ):
        watch = Watch(cluster)
        found = timed_round(pool, jobs, wanted)
        back = until(lambda: watch.looks[-1].replicas == 1, within_s=LULL_S)
        time.sleep(10)
        used = sum(cluster.samples("splitpoint_kv_blocks_used").values())
        watch.stop()
    if arguments.plot is not None:
        draw(watch.looks, jobs, arguments.plot)
    report: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "machine": machine(),
        "answers": len(jobs),
        "wrong": found.wrong,
        "reconnects": found.reconnects,
        "seconds": found.seconds,
        "replicas": changes(watch.looks),
        "back_to_one": back,
        "kv_blocks_used_afterwards": used,
    }
    print(json.dumps(report))
    return 1 if found.wrong or not back else 0


if __name__ == "__main__":
    sys.exit(main())
