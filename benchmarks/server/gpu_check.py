"""The server's engine on a CUDA device: is it right, and how near is it to the memory's speed?

From a bare checkout with torch, transformers, grpcio and numpy, and nothing to download:

    python -m benchmarks.server.gpu_check

It compares small models with the CPU's engine at every split, then measures the shape of an 8 B
model with random weights made on the device. The last line is JSON. `benchmarks/gpu_check.sh` runs
it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.server.gpu_parity import check_parity
from benchmarks.server.gpu_speed import KINDS, measure_speed
from cloud.gpu.switches import OVERLAP_VARIABLE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip-parity", action="store_true")
    parser.add_argument("--skip-speed", action="store_true")
    parser.add_argument("--repeats", type=int, default=30, help="steps a figure")
    parser.add_argument("--only-basics", action="store_true", help="one family, bf16 steps")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_check: torch finds no CUDA device here")
    begin_s = time.perf_counter()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "copy_bytes_per_s": copy_rate(),
        "bf16_flops_per_s": product_rate(),
    }
    print(f"{found['device']}, torch {found['torch']}", flush=True)
    print(
        f"copy {found['copy_bytes_per_s'] / 1e12:.2f} TB/s, "
        f"bf16 {found['bf16_flops_per_s'] / 1e12:.0f} TFLOP/s",
        flush=True,
    )
    if not args.skip_parity:
        found["parity"] = check_parity(only_basics=args.only_basics)
    if not args.skip_speed:
        kinds = {"bf16": (1, 64)} if args.only_basics else KINDS
        found["speed"] = measure_speed(kinds, args.repeats, found["bf16_flops_per_s"])
    if not args.only_basics:
        found["overlap"] = _with_overlap(sys.argv[1:])
    found["seconds"] = round(time.perf_counter() - begin_s, 1)
    failed = [name for name, holds in found.get("parity", {}).items() if holds is False]
    if "overlap" in found and found["overlap"] is None:
        failed.append("kernels that overlap")
    print(json.dumps(found))
    if failed:
        sys.exit(f"gpu_check: failed: {', '.join(failed)}")


def _with_overlap(arguments: list[str]) -> Any:
    """The basics again in a process whose kernels overlap: what it found, None where it failed."""
    print("--- with kernels that overlap", flush=True)
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.server.gpu_check", "--only-basics", *arguments],
        env={**os.environ, OVERLAP_VARIABLE: "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    *lines, last = run.stdout.splitlines() or [""]
    print("\n".join(lines), flush=True)
    return json.loads(last) if run.returncode == 0 and last.startswith("{") else None


def copy_rate() -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _median_s(lambda: target.copy_(source))


def product_rate() -> float:
    """Floating-point operations a second of a large product of random bfloat16 matrices."""
    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _median_s(lambda: left @ right)


def _median_s(call: Callable[[], object]) -> float:
    for _ in range(3):
        call()
    taken = []
    for _ in range(11):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1e3)
    return sorted(taken)[len(taken) // 2]


if __name__ == "__main__":
    main()
