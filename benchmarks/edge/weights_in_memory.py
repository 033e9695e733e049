"""Bytes of a front's weights in memory, and tokens a second, with small and large blocks.

    python benchmarks/edge/weights_in_memory.py --folder DIR [--bits 4] [--steps 40]

A seeded front of Qwen2.5-1.5B's shape, all layers and the head, is written to DIR twice: in blocks
of 32 weights, as earlier versions wrote every front, and in large blocks. Beside each lies a narrow
one: as many layers, heads and nodes, and hardly any weights. DIR needs 3 GB.

- memory: a process of its own for each. `bytes` is what its anonymous memory and the front's mapped
  file grow by until it has run eight steps, over the weights: whatever the kernels pack, keep or
  map, and session, cache, work space and embedding too. `weights` is what the whole front takes
  more than the narrow one, over the weights that it has more: cache and session fall out.
  "before" is the front of small blocks whose file pages stay.
- peak: the process's high-water mark, over the weights, the empty process taken off.
- steps: both fronts in one process, steps in turn: medians of time, and of all threads' processor
  time, which other work on the machine lengthens less.

JSON last; exit 1 where a weight takes more than `MOST` says, or a step of large blocks is slower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final
from unittest.mock import patch

import numpy as np

from benchmarks.edge.facts import machine
from benchmarks.edge.front_memory import memory_of
from edge.device.front import FrontEngine
from edge.device.mapped_pages import MappedFiles
from hwprofiles.peak_memory import peak_memory_bytes
from optimizer.artifacts.plan import load_plan
from optimizer.cost.memory import edge_memory_over
from optimizer.cost.weights import num_front_weights

MOST: Final = {4: 0.62, 8: 1.1}  # bytes a weight
RELEASE: Final = MappedFiles.release
# The shape of Qwen2.5-1.5B: 1.31 billion weights in layers, 0.23 in the head.
HEADS: Final = {
    "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128,
}  # fmt: skip
SHAPES: Final = {
    "whole": {"hidden_size": 1536, "intermediate_size": 8960, "vocab_size": 151_936, **HEADS},
    "narrow": {"hidden_size": 192, "intermediate_size": 256, "vocab_size": 512, **HEADS},
}
OVER_WEIGHTS: Final = ("loaded", "bytes", "of_file", "peak", "planned", "planned_peak", "stored")
SLOWER: Final = 1.05  # what noise may make of a ratio of medians
CASES: Final = (("before", "small"), ("small", "small"), ("large", "large"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=4, choices=sorted(MOST))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep-pages", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, keep_pages=arguments.keep_pages)))
        return 0
    memory = {}
    for case, blocks in CASES:
        whole, narrow = (
            measured(written(arguments.folder, arguments.bits, blocks, shape), case)
            for shape in SHAPES
        )
        grown = whole["bytes"] - narrow["bytes"]
        memory[case] = {
            "weights": grown / (whole["num_weights"] - narrow["num_weights"]),
            **{name: whole[name] / whole["num_weights"] for name in OVER_WEIGHTS},
        }
        print(f"{case}: {memory[case]}", file=sys.stderr, flush=True)
    folders = [
        written(arguments.folder, arguments.bits, blocks, "whole") for blocks in ("small", "large")
    ]
    times = step_times(folders, arguments.steps)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "bytes_a_weight": memory,
        "step": {"small": times[0], "large": times[1]},
        "large_over_small": {name: times[1][name] / times[0][name] for name in times[0]},
    }
    print(json.dumps(report))
    fits = memory["large"]["weights"] <= MOST[arguments.bits]
    slower = times[1]["processor_s"] > SLOWER * times[0]["processor_s"]
    return 0 if fits and not slower else 1


def written(folder: Path, bits: int, blocks: str, shape: str) -> Path:
    """The front's folder; a missing front is written, in a process of its own."""
    target = folder / f"{bits}-{blocks}-{shape}"
    if not (target / "plan.yaml").is_file():
        code = (
            "from pathlib import Path; from benchmarks.edge.seeded_front import *; "
            f"write_seeded_front(Path({str(target)!r}), bits={bits}, blocks={blocks!r}, "
            f"max_tokens=64, **{SHAPES[shape]})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
    return target


def measured(front: Path, case: str) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--folder", str(front.parent), "--one", str(front)]
    command += ["--keep-pages"] if case == "before" else []
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(found.stdout)
    return figures


def measure(folder: Path, *, keep_pages: bool) -> dict[str, float]:
    """Bytes of one front in this process. keep_pages: as earlier versions did."""
    import edge.client  # noqa: F401 - what an edge process has loaded besides

    plan = load_plan(folder / "plan.yaml")
    data = folder / "front.onnx.data"
    peak, before = peak_memory_bytes(), memory_of(data)
    with patch.object(MappedFiles, "release", (lambda self: None) if keep_pages else RELEASE):
        (engine,) = FrontEngine.load(folder, plan=plan)
    loaded = memory_of(data)
    for token in range(8):
        engine.forward(np.array([token], dtype=np.int64))
    after = memory_of(data)
    planned = edge_memory_over(0.0, plan)
    return {
        "loaded": loaded.anonymous + loaded.file - before.anonymous,
        "bytes": after.anonymous + after.file - before.anonymous,
        "of_file": after.file,
        "peak": peak_memory_bytes() - peak,
        "planned": planned.weight_bytes,
        "planned_peak": planned.total_bytes,
        "stored": data.stat().st_size,
        "num_weights": num_front_weights(plan.model.geometry, plan.partition.split),
    }


def step_times(folders: list[Path], steps: int) -> list[dict[str, float]]:
    """Median seconds of a decode step of each front, and of processor time; steps in turn."""
    engines = [
        FrontEngine.load(folder, plan=load_plan(folder / "plan.yaml"))[0] for folder in folders
    ]
    taken: list[list[tuple[float, float]]] = [[] for _ in engines]
    for step in range(steps + 4):
        for engine, seconds in zip(engines, taken, strict=True):
            if engine.num_tokens == engine.capacity:
                engine.reset()
            begin, cpu = time.perf_counter(), time.process_time()
            engine.forward(np.array([step % 100], dtype=np.int64))
            seconds.append((time.perf_counter() - begin, time.process_time() - cpu))
    columns = [zip(*seconds[4:], strict=True) for seconds in taken]
    return [
        dict(zip(("time_s", "processor_s"), map(statistics.median, column), strict=True))
        for column in columns
    ]


if __name__ == "__main__":
    sys.exit(main())
