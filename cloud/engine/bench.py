"""How fast the server's engine is on this machine: one decode step of several sessions at once.

Rows are random: the time of a step does not depend on their values. The network, the codec and
sampling are not in it; `splitpoint bench decode` has them. `benchmarks/server/load.py` of the
repository measures a whole server under load.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.kernel import library as native
from cloud.kv.pool import KvLease, KvPool

WARM_UP_STEPS: Final = 3


def run_server_bench(
    cloud_dir: Path,
    *,
    first_layer: int,
    sessions: Sequence[int],
    history: int = 128,
    repeats: int = 30,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Median and 90th percentile of a step that decodes one token for each of n sessions.

    Every session enters at `first_layer` and has `history` tokens in its cache. progress
    is told (what comes next, runs done, runs in all). Raises WeightsError, StartError.
    """
    engine = BackEngine(load_back(cloud_dir, first_layer=first_layer))
    kernel = native.load() if engine.is_native else None
    results = []
    for done, count in enumerate(sessions):
        progress(f"{count} sessions a step", done, len(sessions))
        taken = _steps_s(engine, count, history, repeats)
        median = float(np.median(taken))
        results.append(
            {
                "sessions": count,
                "step_s": median,
                "step_p90_s": float(np.quantile(taken, 0.9)),
                "tokens_per_s": count / median,
            }
        )
    return {
        "first_layer": first_layer,
        "num_layers": engine.num_layers,
        "history": history,
        "compiled_kernel": None if kernel is None else kernel.name,
        "measured": True,
        "results": results,
    }


def _steps_s(engine: BackEngine, count: int, history: int, repeats: int) -> list[float]:
    split, tokens = engine.first_layer, history + 1
    limit = count * engine.kv_shape.num_bytes(split=split, max_tokens=tokens)
    pool = KvPool(engine.kv_shape, limit_bytes=limit)
    leases: list[KvLease] = []
    try:
        for _ in range(count):
            leases.append(pool.lease(split=split, max_tokens=tokens))
            rows = torch.randn(history, engine.hidden_size)
            engine.forward([BatchEntry(lease=leases[-1], rows=rows, num_logits=0)])
        batch = [
            BatchEntry(lease=lease, rows=torch.randn(1, engine.hidden_size), num_logits=1)
            for lease in leases
        ]
        taken = []
        for index in range(repeats + WARM_UP_STEPS):
            begin_s = time.perf_counter()
            engine.forward(batch)
            if index >= WARM_UP_STEPS:
                taken.append(time.perf_counter() - begin_s)
            for lease in leases:
                lease.rollback(history)
        return taken
    finally:
        for lease in leases:
            lease.close()
