"""Compare predicted with measured step times of the server's engine on this machine; JSON last.

`BackEngine.forward` over the real model's back: batches of sessions by bits and position, prompts,
and batches of mixed splits. A server process is measured by `grid.py`.

Backs are built into `--backs` once. The profile is measured by the same command
(`hwprofiles.profiler.back_profiler`) right before, unless `--profile` names one; predictions use
nothing but it and the geometry. Medians of `--repeats`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.profiled_kernels import TorchKernels
from cloud.kv.pool import KvPool
from hwprofiles.profiler.back_profiler import profile_server
from hwprofiles.profiles.catalog import device_to_yaml, load_device
from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.bundle import write_manifest
from optimizer.artifacts.plan import ModelRef, Partition, Plan, load_plan
from optimizer.cost.cloud import SessionRows, back_kv_bits, back_step_s

SPLIT, BITS = 10, (8, 32)
BATCHES, POSITIONS, CHUNKS = (1, 2, 4, 8, 16, 32), (16, 512), (32, 128)
MIXED = {"splits 10, 20": (10, 20), "splits 10, 15, 20, 25": (10, 15, 20, 25)}
MAX_TOKENS = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--backs", type=Path, default=Path("build/predict_cloud"))
    parser.add_argument("--profile", help="a device profile instead of measuring one now")
    parser.add_argument("--quick", action="store_true", help="a quick profile")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--real-time", action="store_true", help="SCHED_FIFO: needs root")
    arguments = parser.parse_args()
    if arguments.real_time:  # first of all: threads inherit it when they are started
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    backs = build_backs(arguments.model, arguments.backs)
    if arguments.profile:
        device = load_device(arguments.profile)
    else:
        device = profile_server(TorchKernels("cpu"), name="this-machine", quick=arguments.quick)
        (arguments.backs / "profile.yaml").write_text(device_to_yaml(device))
    result: dict[str, Any] = {"benchmark": "predict_cloud", "warnings": device.warnings}
    rows = [row for bits in BITS for row in engine_rows(backs[bits], device, arguments.repeats)]
    result["engine"], result["engine_summary"] = rows, print_rows(rows)
    print(json.dumps(result))


def build_backs(model: Path, folder: Path) -> dict[int, Path]:
    """Bundles without an edge part, one for each precision, built where they are missing."""
    found = {}
    for bits in BITS:
        bundle = folder / f"back_{bits}"
        if not (bundle / "manifest.json").is_file():
            from optimizer.export.back import write_back
            from optimizer.export.sources.model_source import open_source

            source = open_source(model)
            (bundle / "cloud").mkdir(parents=True, exist_ok=True)
            plan = Plan(
                model=ModelRef(id=source.id, sha256=source.sha256, geometry=source.geometry),
                partition=Partition(split=SPLIT, front_bits=32, back_bits=bits),
                back_start=SPLIT,
                kv_bits=32,
                level="lossless",
                max_tokens=MAX_TOKENS,
                prefill_chunk=128,
            )
            write_back(source, plan, bundle / "cloud")
            (bundle / "plan.yaml").write_text(plan.to_yaml())
            write_manifest(bundle)
            print(f"built {bundle}", file=sys.stderr)
        found[bits] = bundle
    return found


def engine_rows(bundle: Path, device: DeviceProfile, repeats: int) -> Iterator[dict[str, Any]]:
    """Measured and predicted seconds of every case in one engine."""
    plan = load_plan(bundle / "plan.yaml")
    engine = BackEngine(load_back(bundle / "cloud", first_layer=SPLIT))
    pool = KvPool(engine.kv_shape, limit_bytes=2 << 30)
    cases: list[tuple[str, list[tuple[int, SessionRows]]]] = [
        (f"batch {count}, position {position}", [(SPLIT, SessionRows(1, position))] * count)
        for count in BATCHES
        for position in POSITIONS
    ]
    cases += [(f"prompt of {rows}", [(SPLIT, SessionRows(rows, 0))]) for rows in CHUNKS]
    cases += [
        (
            f"batch 8, {name}",
            [(s, SessionRows(1, 100)) for s in splits for _ in range(8 // len(splits))],
        )
        for name, splits in MIXED.items()
    ]
    cases.append(
        ("batch 4 and a prompt of 64",
         [(SPLIT, SessionRows(1, 100))] * 4 + [(SPLIT, SessionRows(64, 0))])
    )  # fmt: skip
    for name, sessions in cases:
        measured = _step_s(engine, pool, sessions, repeats)
        predicted = predict_step_s(device, plan, sessions)
        yield _row(plan, name, measured, predicted)


def predict_step_s(
    device: DeviceProfile, plan: Plan, sessions: Sequence[tuple[int, SessionRows]]
) -> float:
    """Sessions with the split at which they enter."""
    geometry = plan.model.geometry
    return back_step_s(
        device, geometry, num_layers=geometry.num_layers - SPLIT,
        back_bits=plan.partition.back_bits, kv_bits=back_kv_bits(device, plan.partition.back_bits),
        sessions=[load for _, load in sessions],
        skipped_layers=[split - SPLIT for split, _ in sessions],
    )  # fmt: skip


def _step_s(
    engine: BackEngine, pool: KvPool, sessions: Sequence[tuple[int, SessionRows]], repeats: int
) -> float:
    leases = [pool.lease(split=split, max_tokens=MAX_TOKENS) for split, _ in sessions]
    batch = []
    for lease, (_, load) in zip(leases, sessions, strict=True):
        while lease.length < load.position:
            count = min(256, load.position - lease.length)
            rows = torch.randn(count, engine.hidden_size)
            engine.forward([BatchEntry(lease=lease, rows=rows, num_logits=0)])
        rows = torch.randn(load.num_rows, engine.hidden_size)
        batch.append(BatchEntry(lease=lease, rows=rows, num_logits=1))
    times = []
    for _ in range(repeats + 1):
        began_s = time.perf_counter()
        _ = [part.cpu().numpy() for part in engine.forward(batch)]
        times.append(time.perf_counter() - began_s)
        for lease, (_, load) in zip(leases, sessions, strict=True):
            lease.rollback(load.position)
    for lease in leases:
        lease.close()
    return statistics.median(times[1:])


def _row(plan: Plan, name: str, measured_s: float, predicted_s: float) -> dict[str, Any]:
    bits = plan.partition.back_bits
    return {"bits": bits, "case": name, "measured_s": measured_s, "predicted_s": predicted_s}


def print_rows(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """A table by case and bits; the median and largest absolute error."""
    print("\nmeasured / predicted in ms (error)\n")
    print("| case | " + " | ".join(f"{bits} bits" for bits in BITS) + " |")
    print("| --- |" + " ---: |" * len(BITS))
    for index, row in enumerate(rows[: len(rows) // len(BITS)]):
        same = [rows[index + i * len(rows) // len(BITS)] for i in range(len(BITS))]
        cells = [
            f"{r['measured_s'] * 1e3:.4g} / {r['predicted_s'] * 1e3:.4g} "
            f"({r['predicted_s'] / r['measured_s'] - 1:+.0%})"
            for r in same
        ]
        print(f"| {row['case']} | {' | '.join(cells)} |")
    errors = [abs(row["predicted_s"] / row["measured_s"] - 1) for row in rows]
    middle, largest = statistics.median(errors), max(errors)
    print(f"\nmedian absolute error {middle:.1%}, largest {largest:.1%}\n")
    return {"median_abs_error": middle, "max_abs_error": largest}


if __name__ == "__main__":
    main()
