"""Replications of a scenario in parallel processes, each with its own seed."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Final

from hwprofiles.machine_limits import usable_cpus
from optimizer.simulate.record import Record
from optimizer.simulate.setup import Setup
from optimizer.simulate.simulation import simulate

Progress = Callable[[float], None]

REFRESH_S: Final = 0.2


def replicate(
    setups: Sequence[Setup],
    *,
    replications: int = 1,
    processes: int | None = None,
    progress: Progress = lambda share: None,
) -> list[list[Record]]:
    """`replications` records of each setup, in order.

    processes: None means one for each usable CPU; the result does not depend on it. A single job
    runs in this process. `progress` is told the share that is done.
    """
    jobs = [(setup, number) for setup in setups for number in range(replications)]
    processes = min(processes or usable_cpus(), len(jobs))
    if processes == 1:
        records = []
        for index, (setup, number) in enumerate(jobs):
            done = index / len(jobs)
            records.append(
                simulate(
                    setup,
                    replication=number,
                    progress=lambda share, done=done: progress(done + share / len(jobs)),  # type: ignore[misc]
                )
            )
    else:
        records = _in_processes(jobs, processes, progress)
    return [records[i : i + replications] for i in range(0, len(records), replications)]


def _in_processes(
    jobs: Sequence[tuple[Setup, int]], processes: int, progress: Progress
) -> list[Record]:
    # Spawned, not forked: a forked child would inherit the locks of threads that it does not have.
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, mp_context=context) as pool:
        shares = manager.dict()
        futures: list[Future[Record]] = [
            pool.submit(_run, setup, number, index, shares)
            for index, (setup, number) in enumerate(jobs)
        ]
        try:
            pending = set(futures)
            while pending:
                _, pending = wait(pending, timeout=REFRESH_S, return_when=FIRST_COMPLETED)
                progress(sum(shares.values()) / len(jobs))
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run(setup: Setup, number: int, index: int, shares: MutableMapping[int, float]) -> Record:
    told_s = 0.0

    def tell(share: float) -> None:
        nonlocal told_s
        if share == 1.0 or time.monotonic() - told_s > REFRESH_S:
            told_s = time.monotonic()
            shares[index] = share

    return simulate(setup, replication=number, progress=tell)
