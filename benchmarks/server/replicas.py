"""Many real clients, several replicas behind one address: tokens, ends of replicas, and prefixes.

    python -m benchmarks.server.replicas BUNDLE [--replicas 4] [--clients 64] [--tokens 40]
    python -m benchmarks.server.replicas BUNDLE --prefix-rounds 4 [--replicas 4] [--clients 16]
    python -m benchmarks.server.replicas tiny ...

BUNDLE is a folder with both sides; `tiny`: a seeded model is built. First one server answers all
clients. Then the replicas do, undisturbed, with one of them killed (SIGKILL) in the middle, and
while an update replaces all of them. Every answer is compared, and all KV must be free afterwards.
With --prefix-rounds every client asks so many questions behind its own long beginning, and the rows
that the replicas have to compute are counted twice: where the address chooses a replica by the
prompt's first block, and where it knows nothing of it. Needs Ray (`make test-ray`).
JSON last; exit 1 when a token differs.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.server.replica_clients import (
    ClientPool,
    Done,
    Job,
    machine,
    timed_round,
    until,
)
from cloud.cluster.serving_thread import SHOW_EVERY_S
from decoding.params import SamplingParams
from edge.generation.completion import CompletionRequest
from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.sources.model_source import open_source
from tests.end_to_end.clusters import ClusterProcess, running_cluster
from tests.end_to_end.servers import running_server
from tests.tiny_models import make_tiny_model

PREFIX_CHUNK = 64  # always: only frames that are cut alike are found again
BEGINNING = (
    "You keep the records of station {number}. You answer in short sentences. You never guess. "
    "You say when you do not know. You name the day and the hour of each entry. "
)


def tiny_bundle(folder: Path) -> Path:
    """A seeded Llama split after two layers, in float32."""
    make_tiny_model("llama", folder / "model")
    source = open_source(folder / "model")
    plan = Plan(
        model=ModelRef(id=source.id, sha256=source.sha256, geometry=source.geometry),
        partition=Partition(split=2, front_bits=32, back_bits=32),
        back_start=0,
        kv_bits=32,
        level="lossless",
        max_tokens=256,
        prefill_chunk=16,
    )
    build_bundle(source, plan, folder / "bundle", progress=lambda stage: None)
    return folder / "bundle"


def stories(count: int, tokens: int) -> list[Job]:
    """Prompts of their own; every second client samples."""
    return [
        Job(
            f"the story number {index} is about a server",
            CompletionRequest(
                max_new_tokens=tokens,
                sampling=SamplingParams(temperature=0.9 * (index % 2), seed=index),
            ),
        )
        for index in range(count)
    ]


def at_rest(
    cluster: ClusterProcess, replicas: int, before: frozenset[str] = frozenset(), num_gone: int = 0
) -> Callable[[], bool]:
    """Whether so many of `before` are gone, all take sessions, and none holds a block."""

    def look() -> bool:
        used = cluster.samples("splitpoint_kv_blocks_used")
        serving = cluster.samples("splitpoint_replica_serving")
        is_whole = sum(serving.values()) == replicas == len(used) and not sum(used.values())
        return is_whole and len(before - set(serving)) == num_gone

    return look


def crowd(bundle: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens with nothing, a kill and an update in the middle."""
    jobs = stories(arguments.clients, arguments.tokens)
    wanted = by_one_server(bundle, jobs, arguments.clients)
    rounds: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "bundle"
        link.symlink_to(bundle.absolute())
        again = Path(folder) / "bundle-2"
        shutil.copytree(bundle, again)
        options = ("--kv-memory", "256MiB", "--drain", "1", "--max-sessions", "64")
        replicas = arguments.replicas
        with running_cluster(link, *options, replicas=replicas) as cluster:

            def kill() -> None:
                cluster.replica_processes()[0].send_signal(signal.SIGKILL)

            def update() -> None:
                link.unlink()
                link.symlink_to(again)
                cluster.update()

            with ClientPool(bundle, cluster.address, arguments.clients) as pool:
                for name, event, num_gone in (
                    ("nothing", None, 0), ("kill -9", kill, 1), ("update", update, replicas),
                ):  # fmt: skip
                    before = frozenset(cluster.samples("splitpoint_replica_serving"))
                    many = jobs * (arguments.update_rounds if event is update else 1)
                    meanwhile = threading.Thread(
                        target=_in_the_middle, args=(pool, 3 * len(jobs), event)
                    )
                    meanwhile.start()
                    found = timed_round(pool, many, wanted * (len(many) // len(jobs)))
                    meanwhile.join()
                    is_at_rest = until(at_rest(cluster, replicas, before, num_gone), within_s=300)
                    rounds[name] = asdict(found) | {
                        "answers": len(many),
                        "replicas_gone": num_gone,
                        "kv_free_afterwards": is_at_rest,
                    }
                    print(name, rounds[name], file=sys.stderr, flush=True)
    return {"rounds": rounds}


def by_one_server(bundle: Path, jobs: Sequence[Job], clients: int) -> list[Done]:
    """The answers of one undisturbed server."""
    with running_server(bundle) as server, ClientPool(bundle, server.address, clients) as pool:
        return pool.run(jobs)


def _in_the_middle(pool: ClientPool, tokens: int, event: Callable[[], None] | None) -> None:
    if event is not None:
        pool.wait_for_tokens(tokens)
        event()


def prefixes(bundle: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows that replicas computed for prompts with shared beginnings, with and without the hash."""
    request = CompletionRequest(max_new_tokens=2)
    count = arguments.clients
    jobs = [
        Job(BEGINNING.format(number=index % count) * 8 + f"Who is {index}?", request)
        for index in range(arguments.clients * arguments.prefix_rounds)
    ]
    wanted = by_one_server(bundle, jobs, arguments.clients)
    prompt_rows = sum(one.completion.num_prompt_tokens for one in wanted)
    answer_rows = sum(len(one.completion.token_ids) - 1 for one in wanted)
    report: dict[str, Any] = {"answers": len(jobs), "prompt_tokens": prompt_rows}

    for name in ("by the first block", "by chance"):
        with ExitStack() as stack:
            if name == "by chance":
                stack.enter_context(patch("edge.generation.connector.prefix_name", _by_chance))
            options = ("--kv-memory", "256MiB", "--max-sessions", "64")
            cluster = stack.enter_context(
                running_cluster(bundle, *options, replicas=arguments.replicas)
            )
            pool = stack.enter_context(
                ClientPool(
                    bundle,
                    cluster.address,
                    arguments.clients,
                    prefill_chunk=PREFIX_CHUNK,
                )
            )
            found = timed_round(pool, jobs, wanted, in_turn=True)
            until(at_rest(cluster, arguments.replicas), within_s=60)
            time.sleep(2 * SHOW_EVERY_S)  # until every replica has shown its last rows
            rows = sum(cluster.samples("splitpoint_rows_total").values())
            reused = 1 - (rows - answer_rows) / prompt_rows
            report[name] = asdict(found) | {"rows": rows, "reused": round(reused, 3)}
        print(name, report[name], file=sys.stderr, flush=True)
    return report


def _by_chance(*_: object) -> str:
    return secrets.token_hex(16)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--update-rounds", type=int, default=4)
    parser.add_argument("--prefix-rounds", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle
        if str(bundle) == "tiny":
            bundle = tiny_bundle(Path(folder))
        report = (prefixes if arguments.prefix_rounds else crowd)(bundle, arguments)
    print(json.dumps({"command": " ".join(sys.argv), "machine": machine()} | report))
    rounds = report.get("rounds", report).values()
    return 1 if any(one["wrong"] for one in rounds if isinstance(one, dict)) else 0


if __name__ == "__main__":
    sys.exit(main())
