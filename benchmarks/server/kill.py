"""kill -9 during eight generations: eight real clients finish with the tokens they would have had.

    python benchmarks/server/kill.py BUNDLE [--clients 8] [--tokens 48] [--kills 2]

A server process, real edge clients (ONNX Runtime fronts) in threads. First undisturbed, then with
the server killed (SIGKILL) at a random moment of all generations and started again on its port.
Greedy and sampled clients alternate. JSON last; exit 1 when a token differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.server.to_kill import ServerToKill
from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from edge.generation.report import Completion
from optimizer.policy.retry import RetryPolicy

RETRY_POLICY = RetryPolicy(connect_s=120, step_s=120, recover_s=240)
TOPICS = ("a fox", "the sea", "a lighthouse", "bread", "winter", "a train", "music", "the moon")


def generate_all(clients: list[EdgeClient], tokens: int, progress: list[int]) -> list[Completion]:
    """All clients at once; `progress[i]` counts client i's tokens."""

    def one(index: int) -> Completion:
        sampling = SamplingParams(temperature=0.8 if index % 2 else 0.0, seed=index)
        request = CompletionRequest(max_new_tokens=tokens, sampling=sampling)
        prompt = f"Write a long story about {TOPICS[index % len(TOPICS)]}."
        run = clients[index].start([{"role": "user", "content": prompt}], request)
        for _ in run:
            progress[index] += 1
        return run.completion

    with ThreadPoolExecutor(len(clients)) as threads:
        return list(threads.map(one, range(len(clients))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--kills", type=int, default=2)
    arguments = parser.parse_args()
    rng = random.Random(7)
    server = ServerToKill(arguments.bundle, kv_memory="512MiB")
    clients = [
        EdgeClient(arguments.bundle, server.address, retry_policy=RETRY_POLICY)
        for _ in range(arguments.clients)
    ]
    undisturbed = generate_all(clients, arguments.tokens, [0] * len(clients))
    progress = [0] * len(clients)
    killed_at: list[list[int]] = []

    def killer() -> None:
        nonlocal server
        for kill in range(arguments.kills):
            share = rng.uniform(0.2, 0.8) / arguments.kills + kill / arguments.kills
            while min(progress) < share * arguments.tokens:
                time.sleep(0.01)
            killed_at.append(list(progress))
            server = server.again()

    thread = threading.Thread(target=killer)
    thread.start()
    disturbed = generate_all(clients, arguments.tokens, progress)
    thread.join()
    server.kill()
    same = [a.token_ids == b.token_ids for a, b in zip(undisturbed, disturbed, strict=True)]
    report = {
        "command": " ".join(sys.argv),
        "machine": {"cpus": os.cpu_count()},
        "clients": len(clients),
        "tokens_before_each_kill": killed_at,
        "reconnects": [completion.reconnects for completion in disturbed],
        "finish_reasons": [completion.finish_reason for completion in disturbed],
        "same_tokens": sum(same),
    }
    print(json.dumps(report, default=str))
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
