"""One decode step of the server's engine, part by part, beside the matrix work alone.

    python benchmarks/server/step.py BUNDLE [--split 10] [--sessions 1,8,32] [--history 100]
                                     [--beside N]

Sessions of random rows with `--history` tokens in their caches. `matrix` runs the same linear
layers on as many rows, one after the other, with nothing in between; `bound_ms` is the bytes of
their weights over the rate of reading a large tensor in the same run. With `--beside N` the same
is measured again beside N processes that do nothing but count, in turn with N of them asleep.
Prints a table on stderr and one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.kernel import library as native
from cloud.kv.pool import KvPool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--split", type=int, default=10)
    parser.add_argument("--sessions", default="1,8,32")
    parser.add_argument("--history", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--beside", type=int, default=0, help="competing processes")
    arguments = parser.parse_args()
    engine = BackEngine(load_back(arguments.bundle / "cloud", first_layer=arguments.split))
    counts = [int(text) for text in arguments.sessions.split(",")]
    parts = {count: Steps(engine, arguments.split, count, arguments.history) for count in counts}
    read = read_rate()
    samples = run(parts, arguments.repeats)
    result = summary(samples)
    beside: dict[str, Any] = {}
    if arguments.beside:
        with Competitors(arguments.beside) as competitors:
            alone, contended = run_beside(parts, arguments.repeats, competitors)
        beside = {"processes": arguments.beside, "nice": 0, "ms": summary(contended)}
        for count in counts:
            ratio = median_step(contended[count]) / median_step(alone[count])
            beside["ms"][str(count)]["step_over_alone"] = round(ratio, 2)
    kernel = native.load()
    weights = sum(linear_bytes(linear) for linear in linears_of(engine))
    report = {
        "command": " ".join(sys.argv),
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine()},
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "native": engine.is_native,
        "kernel": kernel.name if kernel and engine.is_native else None,
        "weight_bytes": weights,
        "read_bytes_per_s": round(read),
        "bound_ms": round(1e3 * weights / read, 2),
        "ms": result,
        "beside": beside or None,
    }
    json.dump(report, sys.stderr, indent=1)
    print(file=sys.stderr)
    print(json.dumps(report))
    return 0


Samples: TypeAlias = dict[int, list[dict[str, float]]]


def run(parts: dict[int, Steps], repeats: int, warm_up: int = 5) -> Samples:
    """`repeats` measurements of each, in turn: a noisy moment hits them all."""
    samples: Samples = {count: [] for count in parts}
    for repeat in range(repeats + warm_up):
        for count, steps in parts.items():
            sample = steps.measure()
            if repeat >= warm_up:
                samples[count].append(sample)
    return samples


def run_beside(
    parts: dict[int, Steps], repeats: int, competitors: Competitors
) -> tuple[Samples, Samples]:
    """Alone and beside the competitors, in turns of a second or so each."""
    alone: Samples = {count: [] for count in parts}
    beside: Samples = {count: [] for count in parts}
    for _ in range(4):
        for kept, others in ((alone, False), (beside, True)):
            competitors.run(others)
            for count, taken in run(parts, max(1, repeats // 4)).items():
                kept[count] += taken
    return alone, beside


def summary(samples: Samples) -> dict[str, dict[str, Any]]:
    """Median and minimum in ms of each part, and the step over the matrix work."""
    result: dict[str, dict[str, Any]] = {}
    for count, taken in samples.items():
        values: dict[str, Any] = {
            name: {
                "median": round(1e3 * statistics.median(s[name] for s in taken), 2),
                "p95": round(1e3 * sorted(s[name] for s in taken)[int(0.95 * len(taken))], 2),
                "min": round(1e3 * min(s[name] for s in taken), 2),
            }
            for name in taken[0]
        }
        values["step_over_matrix"] = {
            kind: round(values["step"][kind] / values["matrix"][kind], 3)
            for kind in ("median", "min")
        }
        result[str(count)] = values
    return result


def median_step(taken: list[dict[str, float]]) -> float:
    return statistics.median(sample["step"] for sample in taken)


class Competitors:
    """Processes that count, at the same priority; stopped but for where they are asked to run."""

    def __init__(self, count: int) -> None:
        code = "while True: sum(range(10000))"
        self._processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
        self.run(False)

    def run(self, running: bool) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGCONT if running else signal.SIGSTOP)
        time.sleep(0.2)

    def __enter__(self) -> Competitors:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


class Steps:
    """`count` sessions that take one step, again and again at the same position."""

    def __init__(self, engine: BackEngine, split: int, count: int, history: int) -> None:
        self._engine = engine
        self._history = history
        limit = count * engine.kv_shape.num_bytes(split=split, max_tokens=history + 1)
        pool = KvPool(engine.kv_shape, limit_bytes=limit)
        self._leases = [pool.lease(split=split, max_tokens=history + 1) for _ in range(count)]
        for lease in self._leases:
            rows = torch.randn(history, engine.hidden_size)
            engine.forward([BatchEntry(lease=lease, rows=rows, num_logits=0)])
        self._rows = torch.randn(count, engine.hidden_size)
        self._inputs = {
            linear: torch.randn(count, num_inputs(linear)) for linear in linears_of(engine)
        }

    def measure(self) -> dict[str, float]:
        """Seconds of one step and of its parts, then of the matrix work alone."""
        batch = [
            BatchEntry(lease=lease, rows=self._rows[i : i + 1], num_logits=1)
            for i, lease in enumerate(self._leases)
        ]
        spent = {"layers": 0.0, "norm_and_head": 0.0}
        engine: Any = self._engine
        method = "_run_native" if engine.is_native else "_run_layers"
        with (
            timed(engine, method, spent, "layers"),
            timed(engine, "_logits", spent, "norm_and_head"),
        ):
            begun_s = time.perf_counter()
            self._engine.forward(batch)
            step_s = time.perf_counter() - begun_s
        for lease in self._leases:
            lease.rollback(self._history)
        with torch.inference_mode():
            begun_s = time.perf_counter()
            for linear, rows in self._inputs.items():
                linear(rows)
            matrix_s = time.perf_counter() - begun_s
        return {
            "step": step_s,
            **spent,
            "preparation": step_s - sum(spent.values()),
            "matrix": matrix_s,
        }


class timed:  # noqa: N801 - reads as a statement
    """Add the time spent in a method to `spent[name]`."""

    def __init__(self, owner: Any, method: str, spent: dict[str, float], name: str) -> None:
        self._owner, self._method, self._spent, self._name = owner, method, spent, name

    def __enter__(self) -> None:
        inner: Callable[..., Any] = getattr(self._owner, self._method)

        def wrapper(*given: Any) -> Any:
            begun_s = time.perf_counter()
            try:
                return inner(*given)
            finally:
                self._spent[self._name] += time.perf_counter() - begun_s

        setattr(self._owner, self._method, wrapper)

    def __exit__(self, *_: object) -> None:
        delattr(self._owner, self._method)


def linears_of(engine: BackEngine) -> list[Any]:
    """The products of a step, joined as they run, and the head."""
    layers: list[Any] = [layer for layer in engine._fused if layer is not None]
    return [linear for layer in layers for linear in layer.linears] + [engine.model.head]


def num_inputs(linear: Any) -> int:
    return int(linear.weight.shape[1] if hasattr(linear, "weight") else linear.in_features)


def linear_bytes(linear: Any) -> int:
    packed = getattr(linear, "packed", None)
    if packed is not None:
        return int(packed.num_bytes)
    weight = linear.codes if hasattr(linear, "codes") else linear.weight
    return int(weight.numel() * weight.element_size())


def read_rate(num_bytes: int = 400 << 20) -> float:
    """Bytes a second at which a large tensor is read, best of five."""
    source = torch.ones(num_bytes // 4)
    best = 0.0
    for _ in range(5):
        begun_s = time.perf_counter()
        source.sum()
        best = max(best, num_bytes / (time.perf_counter() - begun_s))
    return best


if __name__ == "__main__":
    sys.exit(main())
