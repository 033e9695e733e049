"""Compare predicted with measured front time and peak memory on this machine; JSON last.

Builds the fronts it needs (splits x bits x KV bits) into `--fronts` once. Times: a
run adds one round to `--rounds-file`: a profiling pass, then every case once (the median of its
repeats); the table shows medians over the rounds so far. Passes and rounds alternate because a
shared machine drifts by a fifth over minutes, and a prediction cannot know of that. Predictions
use nothing but the profile. Memory: a fresh process for each point, its high-water mark.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge.device.front import FrontEngine
from hwprofiles.profiler.front_profiler import profile_device
from hwprofiles.profiler.parts import median_of
from hwprofiles.profiler.system_facts import process_base_bytes
from hwprofiles.profiles.catalog import device_to_yaml, load_device
from hwprofiles.profiles.device import DeviceProfile, Figure
from hwprofiles.schema.strict_yaml import parse_strict
from optimizer.artifacts.plan import ModelRef, Partition, Plan, load_plan
from optimizer.cost.edge import front_step
from optimizer.cost.front_kernels import blocks_for
from optimizer.cost.memory import edge_memory_over

SPLITS, BITS, KV_BITS = (3, 10, 20, 30), (4, 8, 32), (32, 8)
POSITIONS, PROMPTS = (16, 512, 2000), (32, 128, 512)
MAX_TOKENS, CHUNK = 2048, 128
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--fronts", type=Path, default=Path("build/predict_edge"))
    parser.add_argument("--rounds-file", type=Path, default=Path("build/predict_edge/rounds.json"))
    parser.add_argument("--only", choices=("time", "memory"), default=None)
    parser.add_argument("--real-time", action="store_true", help="SCHED_FIFO: needs root")
    parser.add_argument("--one-memory-point", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_memory_point:
        print(peak_bytes(arguments.one_memory_point))
        return
    plans = build_fronts(arguments.model, arguments.fronts)
    result: dict[str, Any] = {"benchmark": "predict_edge"}
    if arguments.only != "memory":
        if arguments.real_time:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
        rows = time_rows(plans, arguments.rounds_file)
        result["time"], result["time_summary"] = rows, print_times(rows)
    if arguments.only != "time":
        points = memory_rows(plans)
        result["memory"], result["memory_summary"] = points, print_memory(points)
    print(json.dumps(result))


def build_fronts(model: Path, folder: Path) -> dict[Path, Plan]:
    """The grid's fronts, built where they are missing."""
    source = None
    plans = {}
    for split in SPLITS:
        for bits in BITS:
            for kv_bits in KV_BITS:
                edge_dir = folder / f"s{split}_b{bits}_k{kv_bits}"
                if not (edge_dir / "plan.yaml").is_file():
                    from optimizer.export.front.front_graph import export_front
                    from optimizer.export.sources.model_source import open_source

                    source = source or open_source(model)
                    edge_dir.mkdir(parents=True, exist_ok=True)
                    plan = Plan(
                        model=ModelRef(
                            id=source.id, sha256=source.sha256, geometry=source.geometry
                        ),
                        partition=Partition(split=split, front_bits=bits, back_bits=32),
                        back_start=split,
                        kv_bits=kv_bits,
                        level="lossless",
                        max_tokens=MAX_TOKENS,
                        prefill_chunk=CHUNK,
                        weight_blocks=blocks_for(bits),
                    )
                    export_front(source, plan, edge_dir)
                    (edge_dir / "plan.yaml").write_text(plan.to_yaml())
                    print(f"built {edge_dir}", file=sys.stderr)
                plans[edge_dir] = load_plan(edge_dir / "plan.yaml")
    return plans


def time_rows(plans: dict[Path, Plan], rounds_file: Path) -> list[dict[str, Any]]:
    """Measured and predicted seconds of every case with a 32-bit cache, one more round added."""
    rounds = json.loads(rounds_file.read_text()) if rounds_file.is_file() else []
    profile = profile_device(name="this-machine", quick=True)
    rounds.append({"profile": device_to_yaml(profile), "cases": time_round(plans)})
    rounds_file.write_text(json.dumps(rounds))
    profiles = [parse_strict(item["profile"], DeviceProfile, source="round") for item in rounds]
    device = merge_profiles(profiles)
    rounds_file.with_suffix(".profile.yaml").write_text(device_to_yaml(device))
    out = []
    for name, rows, position in (tuple(case[:3]) for case in rounds[0]["cases"]):
        plan = plans[next(path for path in plans if path.name == name)]
        step = front_step(
            device,
            plan.model.geometry,
            split=plan.partition.split,
            weight_bits=plan.partition.front_bits,
            kv_bits=plan.kv_bits,
            num_rows=rows,
            position=position,
        )
        seconds = [
            case[3]
            for item in rounds
            for case in item["cases"]
            if case[:3] == [name, rows, position]
        ]
        out.append(
            {
                "split": plan.partition.split,
                "bits": plan.partition.front_bits,
                "rows": rows,
                "position": position,
                "measured_s": statistics.median(seconds),
                "predicted_s": step.total_s,
                "rounds": len(seconds),
            }
        )
    return out


def merge_profiles(profiles: list[DeviceProfile]) -> DeviceProfile:
    """The median of the rates; the rest from the last."""
    return dataclasses.replace(
        profiles[-1],
        kernels=median_of([profile.kernels for profile in profiles]),
        attention=median_of([profile.attention for profile in profiles]),
        overheads=median_of([profile.overheads for profile in profiles]),
    )


def time_round(plans: dict[Path, Plan]) -> list[list[object]]:
    """Front, rows, position and measured seconds of every case with a 32-bit cache."""
    chosen = {path: plan for path, plan in plans.items() if plan.kv_bits == 32}
    cases = [(1, position) for position in POSITIONS] + [(rows, 0) for rows in PROMPTS]
    out = []
    for path, plan in chosen.items():
        engine = FrontEngine.load(path, plan=plan)[0]
        tokens = np.arange(5, 5 + MAX_TOKENS, dtype=np.int64)
        for rows, position in cases:
            engine.reset()
            while engine.num_tokens < position:  # the cache really holds these tokens
                engine.forward(tokens[engine.num_tokens : min(position, engine.num_tokens + 512)])
            times = []
            for _ in range(10 if rows == 1 else 4):
                engine.rollback(position)
                before = time.perf_counter()
                engine.forward(tokens[:rows])
                times.append(time.perf_counter() - before)
            out.append([path.name, rows, position, statistics.median(times[1:])])
    return out


def print_times(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Tables of decode and prefill; the median and largest absolute errors."""
    summary = {}
    for name, chosen in (
        ("decode", [row for row in rows if row["rows"] == 1]),
        ("prefill", [row for row in rows if row["rows"] != 1]),
    ):
        print(f"\n{name}: measured / predicted in ms (error)\n")
        columns = POSITIONS if name == "decode" else PROMPTS
        key = "position" if name == "decode" else "rows"
        print(f"| split | bits | {' | '.join(f'{key} {c}' for c in columns)} |")
        print("| ---: | ---: |" + " ---: |" * len(columns))
        for split in SPLITS:
            for bits in BITS:
                cells = [
                    _cell(row, "measured_s", "predicted_s", 1e3)
                    for c in columns
                    for row in chosen
                    if (row["split"], row["bits"], row[key]) == (split, bits, c)
                ]
                print(f"| {split} | {bits} | {' | '.join(cells)} |")
        errors = [abs(row["predicted_s"] / row["measured_s"] - 1) for row in chosen]
        summary[f"{name}_median_abs_error"] = statistics.median(errors)
        summary[f"{name}_max_abs_error"] = max(errors)
        print(f"\n{name}: median absolute error {statistics.median(errors):.1%}, ", end="")
        print(f"largest {max(errors):.1%}")
    return summary


def memory_rows(plans: dict[Path, Plan]) -> list[dict[str, Any]]:
    """Measured and predicted peak bytes of every front, one fresh process each."""
    device = dataclasses.replace(
        load_device("local-epyc-2core"),
        memory=dataclasses.replace(
            load_device("local-epyc-2core").memory,
            runtime_base_bytes=Figure(value=float(process_base_bytes()), source="bench"),
        ),
    )
    out = []
    for path, plan in plans.items():
        command = [sys.executable, __file__, "--one-memory-point", str(path)]
        measured = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        predicted = edge_memory_over(device.memory.runtime_base_bytes.value, plan)
        print(path.name, measured, round(predicted.total_bytes), file=sys.stderr, flush=True)
        out.append(
            {
                "split": plan.partition.split,
                "bits": plan.partition.front_bits,
                "kv_bits": plan.kv_bits,
                "measured_bytes": measured,
                "predicted_bytes": predicted.total_bytes,
            }
        )
    return out


def peak_bytes(edge_dir: Path) -> int:
    """Load a front as the edge does, fill its cache to the last token, give VmHWM in bytes."""
    import edge.client  # noqa: F401 - what an edge process has loaded besides

    plan = load_plan(edge_dir / "plan.yaml")
    engine = FrontEngine.load(edge_dir, plan=plan)[0]
    tokens = np.random.default_rng(0).integers(0, plan.model.geometry.vocab_size, MAX_TOKENS)
    while engine.num_tokens < MAX_TOKENS - 1:
        start = engine.num_tokens
        engine.forward(tokens[start : min(start + CHUNK, MAX_TOKENS - 1)])
    engine.forward(tokens[:1])
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def print_memory(points: list[dict[str, Any]]) -> dict[str, float]:
    """A table of peak memory; the largest errors in either direction."""
    print("\npeak memory of the edge process: measured / predicted in MiB (error)\n")
    print("| split | bits | KV 32 | KV 8 |\n| ---: | ---: | ---: | ---: |")
    for split in SPLITS:
        for bits in BITS:
            cells = [
                _cell(point, "measured_bytes", "predicted_bytes", 1 / MIB)
                for kv_bits in KV_BITS
                for point in points
                if (point["split"], point["bits"], point["kv_bits"]) == (split, bits, kv_bits)
            ]
            print(f"| {split} | {bits} | {' | '.join(cells)} |")
    errors = [point["predicted_bytes"] / point["measured_bytes"] - 1 for point in points]
    print(f"\nmemory: errors from {min(errors):+.1%} to {max(errors):+.1%}")
    return {"memory_lowest_error": min(errors), "memory_highest_error": max(errors)}


def _cell(row: dict[str, Any], measured: str, predicted: str, scale: float) -> str:
    error = row[predicted] / row[measured] - 1
    return f"{row[measured] * scale:.4g} / {row[predicted] * scale:.4g} ({error:+.0%})"


if __name__ == "__main__":
    main()
