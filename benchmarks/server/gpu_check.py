"""The server's engine on a CUDA device: is it right, and how near is it to the memory's speed?

From a bare checkout with torch, transformers, grpcio and numpy, and nothing to download:

    python -m benchmarks.server.gpu_check [--dry-run]

It compares small models with the CPU's engine at every split, then measures the shape of an 8 B
model with random weights made on the device. What matters most comes first. A part that fails is
named and the others still run; after `--limit-s` no part begins. The last line is JSON.
`benchmarks/gpu_check.sh` runs it. With `--dry-run` it takes the same paths on a CPU, with tiny
shapes in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

if "--dry-run" in sys.argv:  # before anything imports Triton
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from benchmarks.server.gpu_goals import goals_of
from benchmarks.server.gpu_machine import CudaMachine, DryMachine
from benchmarks.server.gpu_parity import (
    BASIC_FAMILY,
    DRY_PARITY,
    FAMILIES,
    FULL_PARITY,
    check_draws,
    check_family,
    check_products,
)
from benchmarks.server.gpu_speed import DRY_SPEED, FULL_SPEED, KINDS, Rates, measure_kind
from cloud.gpu.switches import OVERLAP_VARIABLE

BASIC_KIND: Final = "bf16"
LAST_PART_S: Final = 50  # what began before the limit has so long to end


class Check:
    """The parts of the check, and what became of them.

    found: what goes into the JSON, as far as it is known. In it `failed` says why, by part, and
    `skipped` names the parts for which no time was left.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._machine = DryMachine() if args.dry_run else CudaMachine()
        self._begin_s = time.perf_counter()
        self._running = ""
        self._parity: dict[str, Any] = {}
        self._speed: dict[str, Any] = {}
        self._failed: dict[str, str] = {}
        self._skipped: list[str] = []
        self.found: dict[str, Any] = {
            "device": self._machine.name,
            "torch": str(torch.__version__),
            "parity": self._parity,
            "speed": self._speed,
            "skipped": self._skipped,
            "failed": self._failed,
        }

    def run(self) -> None:
        """Run all parts. What matters most comes first."""
        args, machine, found = self._args, self._machine, self.found
        print(f"{machine.name}, torch {torch.__version__}", flush=True)
        found["copy_bytes_per_s"] = self._part("copies", lambda: copy_rate(machine))
        found["bf16_flops_per_s"] = self._part("products", lambda: product_rate(machine))
        rates = Rates(copy=found["copy_bytes_per_s"], flops=found["bf16_flops_per_s"])
        if not args.skip_parity:
            self._compare(BASIC_FAMILY)
            self._compared("draws", lambda: check_draws(machine))
            self._compared("8-bit products", lambda: check_products(machine))
        if not args.skip_speed:
            self._measure(BASIC_KIND, rates)
            found["goals"] = self._part("goals", lambda: goals_of(self._speed[BASIC_KIND]))
        if args.only_basics:
            return
        for family in FAMILIES:
            if family != BASIC_FAMILY and not args.skip_parity:
                self._compare(family)
        for kind in KINDS:
            if kind != BASIC_KIND and not args.skip_speed:
                self._measure(kind, rates)
        found["overlap"] = self._part("kernels that overlap", self._overlap)

    def wrong(self) -> list[str]:
        """What does not hold, and what failed."""
        return [name for name, holds in self._parity.items() if holds is False] + [*self._failed]

    def give_up(self) -> None:
        """The part that runs does not end: print what is known, and end the process."""
        self._failed[self._running] = "it did not end"
        print(json.dumps(self.found), flush=True)
        os._exit(1)

    @property
    def _left_s(self) -> float:
        """Seconds in which a part may begin."""
        return float(self._args.limit_s) - (time.perf_counter() - self._begin_s)

    def _part(self, name: str, call: Callable[[], Any]) -> Any:
        """What `call` gives; None where it fails, or where no time is left."""
        if self._left_s <= 0:
            self._skipped.append(name)
            return None
        self._running = name
        try:
            return call()
        except Exception as error:  # the other parts still have something to say
            traceback.print_exc()
            line = (str(error).strip().splitlines() or [""])[0]
            self._failed[name] = f"{type(error).__name__}: {line[:200]}"
            return None

    def _compared(self, name: str, call: Callable[[], dict[str, Any]]) -> None:
        self._parity.update(self._part(name, call) or {})

    def _compare(self, family: str) -> None:
        scale = DRY_PARITY if self._args.dry_run else FULL_PARITY
        self._compared(family, lambda: check_family(self._machine, scale, family))

    def _measure(self, kind: str, rates: Rates) -> None:
        full = FULL_SPEED._replace(repeats=self._args.repeats)
        scale = DRY_SPEED if self._args.dry_run else full
        batches = KINDS[kind]
        if self._args.only_basics:
            batches = [count for count in batches if count in (1, 64)]
        self._speed[kind] = self._part(
            kind, lambda: measure_kind(self._machine, scale, kind, batches, rates)
        )

    def _overlap(self) -> Any:
        """The basics again in a process whose kernels overlap: what it found."""
        print("--- with kernels that overlap", flush=True)
        self._machine.free_bytes()  # the other process needs it
        options = ["--only-basics", *sys.argv[1:], "--limit-s", f"{self._left_s:.0f}"]
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.server.gpu_check", *options],
            env={**os.environ, OVERLAP_VARIABLE: "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        *lines, last = run.stdout.splitlines() or [""]
        print("\n".join(lines), flush=True)
        if not last.startswith("{"):
            raise RuntimeError(f"it ended with status {run.returncode} and found nothing")
        if run.returncode:
            self._failed["kernels that overlap"] = f"status {run.returncode}"
        return json.loads(last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip-parity", action="store_true")
    parser.add_argument("--skip-speed", action="store_true")
    parser.add_argument("--repeats", type=int, default=60, help="steps a figure, at most 500")
    parser.add_argument("--only-basics", action="store_true", help="one family, bf16 steps")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--limit-s", type=float, default=400, help="no part begins after it")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("gpu_check: torch finds no CUDA device here")
    begin_s = time.perf_counter()
    check = Check(args)
    watch = threading.Timer(args.limit_s + LAST_PART_S, check.give_up)
    watch.daemon = True
    watch.start()
    check.run()
    watch.cancel()
    check.found["seconds"] = round(time.perf_counter() - begin_s, 1)
    print(json.dumps(check.found))
    if wrong := check.wrong():
        sys.exit(f"gpu_check: failed: {', '.join(wrong)}")


def copy_rate(machine: CudaMachine) -> float:
    """Bytes read and written a second by a large copy."""
    count = 1 << (10 if machine.is_dry else 29)
    source = torch.randn(count, device=machine.device)
    target = torch.empty_like(source)
    rate = 2 * count * 4 / machine.timed(lambda: target.copy_(source), 11)
    print(f"copy {rate / 1e12:.2f} TB/s", flush=True)
    return rate


def product_rate(machine: CudaMachine) -> float:
    """Floating-point operations a second of a large product of random bfloat16 matrices."""
    size = 64 if machine.is_dry else 8192
    left, right = (
        torch.randn(size, size, device=machine.device, dtype=machine.half) for _ in range(2)
    )
    rate = 2 * size**3 / machine.timed(lambda: left @ right, 11)
    print(f"bf16 products {rate / 1e12:.0f} TFLOP/s", flush=True)
    return rate


if __name__ == "__main__":
    main()
