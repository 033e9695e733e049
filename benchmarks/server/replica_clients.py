"""Real edge clients for the benchmarks of several replicas: many at once, each with its own front.

A pool keeps its clients over several rounds of jobs, as devices stay while servers come and go. A
job is one generation that begins at a given moment, or as soon as a client is free.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from edge.generation.report import Completion
from optimizer.policy.retry import RetryPolicy

PATIENT = RetryPolicy(connect_s=300, step_s=120, recover_s=300)


@dataclass(frozen=True)
class Job:
    """One generation. at_s: when it begins, in seconds after the round's begin."""

    prompt: str
    request: CompletionRequest
    at_s: float = 0.0


@dataclass(frozen=True)
class Done:
    """What became of a job. late_s: how long it waited for a free client."""

    completion: Completion
    late_s: float


class ClientPool:
    """So many clients of one address. Use it as a context manager."""

    def __init__(self, bundle: Path, address: str, count: int, **options: Any) -> None:
        """options: of `EdgeClient`."""
        self.num_tokens = 0  # of the round that runs; a few may be missed while threads add
        self._clients = [
            EdgeClient(bundle, address, threads=1, retry_policy=PATIENT, **options)
            for _ in range(count)
        ]

    def run(self, jobs: Sequence[Job], *, in_turn: bool = False) -> list[Done]:
        """All jobs, in the order of their moments; what came of each. Raises what a client does.

        in_turn: every client has its own jobs, one of so many as there are clients. Otherwise a job
        goes to whoever is free.
        """
        self.num_tokens = 0
        begin_s = time.monotonic()
        in_order = sorted(enumerate(jobs), key=lambda one: one[1].at_s)
        anybody = iter(in_order)
        lock = threading.Lock()
        done: dict[int, Done] = {}

        def work(number: int) -> None:
            client = self._clients[number]
            own = iter(in_order[number :: len(self._clients)])
            while True:
                with lock:
                    index, job = next(own if in_turn else anybody, (-1, None))
                if job is None:
                    return
                early_s = begin_s + job.at_s - time.monotonic()
                if early_s > 0:
                    time.sleep(early_s)
                run = client.start(job.prompt, job.request)
                for _ in run:
                    self.num_tokens += 1
                done[index] = Done(run.completion, max(-early_s, 0.0) if job.at_s else 0.0)

        with ThreadPoolExecutor(len(self._clients)) as threads:
            list(threads.map(work, range(len(self._clients))))
        return [done[index] for index in range(len(jobs))]

    def wait_for_tokens(self, count: int) -> None:
        """Until the round that runs has so many tokens."""
        while self.num_tokens < count:
            time.sleep(0.02)

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def __enter__(self) -> ClientPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Round:
    """The answers of a round beside those of one undisturbed server."""

    wrong: int
    reconnects: int
    seconds: float

    @classmethod
    def of(cls, found: Sequence[Done], wanted: Sequence[Done], seconds: float) -> Round:
        pairs = zip(found, wanted, strict=True)
        return cls(
            wrong=sum(a.completion.token_ids != b.completion.token_ids for a, b in pairs),
            reconnects=sum(one.completion.reconnects for one in found),
            seconds=round(seconds, 1),
        )


def timed_round(
    pool: ClientPool, jobs: Sequence[Job], wanted: Sequence[Done], *, in_turn: bool = False
) -> Round:
    """Run a round and compare it."""
    begin_s = time.monotonic()
    found = pool.run(jobs, in_turn=in_turn)
    return Round.of(found, wanted, time.monotonic() - begin_s)


def until(is_so: Callable[[], bool], *, within_s: float) -> bool:
    """Wait for it; whether it came."""
    deadline_s = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.5)
    return True


def machine() -> dict[str, Any]:
    """How many processors, and how busy they are."""
    return {"cpus": os.cpu_count(), "load_average": os.getloadavg()[0]}
