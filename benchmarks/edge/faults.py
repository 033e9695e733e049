"""Everything that can happen to a link and a server during a generation: the tokens stay the same.

    python benchmarks/edge/faults.py --bundle BUNDLE [--tokens 150] [--only NAME ...]

Serves BUNDLE in processes of their own, behind the emulated link, and disturbs one generation after
another: the link silent for 1, 5 and 20 s (nothing is closed), the server killed and started again,
the server gone and another one at another address, 30 faults at random. Greedy and sampled. Each
answer's tokens are compared with the undisturbed run's. JSON last; exit 1 when one differs.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.edge.facts import machine
from benchmarks.server.to_kill import ServerToKill
from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from edge.generation.report import Completion
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.shape import LinkShape
from optimizer.policy.retry import RetryPolicy

PROMPT = "Tell me a long story about a fox who learns to sail a boat across the northern sea."
SHAPE = LinkShape.fixed(rtt_s=0.01, up_bytes_per_s=2.5e6, down_bytes_per_s=2.5e6)
RETRY_POLICY = RetryPolicy(connect_s=60, step_s=30, recover_s=120)


class Bench:
    """Two servers at most, one link, and what happens at which token."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.server = ServerToKill(bundle)
        self.second: ServerToKill | None = None

    def restart(self) -> None:
        self.server = self.server.again()

    def close(self) -> None:
        self.server.kill()
        if self.second is not None:
            self.second.kill()


@contextmanager
def linked(bench: Bench, *others: str) -> Iterator[tuple[EmulatedLink, EdgeClient]]:
    with (
        EmulatedLink(target=("127.0.0.1", bench.server.port), shape=SHAPE) as link,
        EdgeClient(
            bench.bundle, [f"127.0.0.1:{link.address[1]}", *others], retry_policy=RETRY_POLICY
        ) as client,
    ):
        yield link, client


def generate(
    client: EdgeClient, request: CompletionRequest, at_token: Callable[[int], None]
) -> Completion:
    run = client.start([{"role": "user", "content": PROMPT}], request)
    for index, _ in enumerate(run):
        at_token(index)
    return run.completion


def silence(seconds: float) -> Callable[[Bench, CompletionRequest], Completion]:
    def disturbed(bench: Bench, request: CompletionRequest) -> Completion:
        with linked(bench) as (link, client):

            def at_token(index: int) -> None:
                if index == 20:
                    link.pause()
                    threading.Timer(seconds, link.resume).start()

            return generate(client, request, at_token)

    return disturbed


def killed(bench: Bench, request: CompletionRequest) -> Completion:
    with linked(bench) as (_, client):
        return generate(client, request, lambda index: bench.restart() if index == 20 else None)


def moved(bench: Bench, request: CompletionRequest) -> Completion:
    bench.second = ServerToKill(bench.bundle)
    with linked(bench, bench.second.address) as (link, client):

        def at_token(index: int) -> None:
            if index == 20:
                bench.server.kill()
                link.drop_connections()

        completion = generate(client, request, at_token)
    bench.second.kill()
    bench.second = None
    bench.restart()
    return completion


def thirty(bench: Bench, request: CompletionRequest) -> Completion:
    rng = random.Random(30)
    moments = sorted(rng.sample(range(1, (request.max_new_tokens or 0) - 1), 30))
    with linked(bench) as (link, client):

        def at_token(index: int) -> None:
            if index not in moments:
                return
            kind = rng.random()
            if kind < 0.6:
                link.drop_connections()
            elif kind < 0.9:
                link.pause()
                threading.Timer(0.5, link.resume).start()
            else:
                bench.restart()

        return generate(client, request, at_token)


FAULTS: dict[str, Callable[[Bench, CompletionRequest], Completion]] = {
    "link silent 1 s": silence(1.0),
    "link silent 5 s": silence(5.0),
    "link silent 20 s": silence(20.0),
    "server killed and restarted": killed,
    "server moved to another address": moved,
    "30 random faults": thirty,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--draft", default="auto")
    parser.add_argument("--only", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    arguments = parser.parse_args()
    requests = {
        "greedy": SamplingParams(),
        "sampled": SamplingParams(temperature=0.8, top_p=0.95, seed=7),
    }
    rows: list[dict[str, Any]] = []
    bench = Bench(arguments.bundle)
    try:
        for mode, sampling in requests.items():
            request = CompletionRequest(
                max_new_tokens=arguments.tokens,
                sampling=sampling,
                draft=arguments.draft,
                ignore_eos=True,
            )
            with linked(bench) as (_, client):
                expected = generate(client, request, lambda index: None).token_ids
            for name in arguments.only:
                started_s = time.monotonic()
                found = FAULTS[name](bench, request)
                rows.append(
                    {
                        "fault": name,
                        "mode": mode,
                        "identical": found.token_ids == expected,
                        "tokens": len(found.token_ids),
                        "finish_reason": found.finish_reason,
                        "reconnects": found.reconnects,
                        "longest_gap_s": max(
                            b - a
                            for a, b in zip(
                                found.token_times_s, found.token_times_s[1:], strict=False
                            )
                        ),
                        "took_s": time.monotonic() - started_s,
                    }
                )
                print(rows[-1], file=sys.stderr)
    finally:
        bench.close()
    print(
        json.dumps({"command": " ".join(["python", *sys.argv]), "machine": machine(), "runs": rows})
    )
    return 0 if all(row["identical"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
