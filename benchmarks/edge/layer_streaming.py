"""A front larger than its memory limit: what a pass takes over reading its bytes, and the peak.

    python benchmarks/edge/layer_streaming.py --folder DIR [--layers 12] [--rounds 12]

A seeded 4-bit front with the layers of Qwen2.5-1.5B (47 million weights each) and a small head is
written to DIR, a file a layer. DIR needs 1.3 GB. The limit is half of what the whole front takes,
and the engine chooses how many layers stay, as `run --memory-limit` does. Each case is a process of
its own:

- whole: all layers stay. Its rows are the expected ones.
- streamed: as many stay as fit. The page cache forgets every layer after use, so that every pass
  reads storage. In turn with four decode steps, the same bytes of the same files are read alone, in
  pieces of 4 MiB, from a forgotten page cache. `over_reading` is the median over rounds: the time
  of the last three steps over three times that. Other programs that use the disk or the processor
  meet both.
- prompts: a prompt of 240 tokens in chunks of 16 and of 120 over a decode step.

`peak_over_limit`: the process's high-water mark over the limit. JSON last; exit 1 where rows
differ, the peak is above the limit, or `over_reading` is above 1.2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.edge.facts import machine, summary
from edge.device.front import FrontEngine
from edge.device.memory_limit import fitting, needed_memory, runtime_bytes
from edge.device.packed_copies import FOLDER_VARIABLE
from hwprofiles.heap import return_freed_blocks
from hwprofiles.peak_memory import peak_memory_bytes
from optimizer.artifacts.plan import Plan, load_plan
from optimizer.cost.streaming import streamed_bytes, streamed_places

SIZES: Final = {
    "hidden_size": 1536, "intermediate_size": 8960, "vocab_size": 4096,
    "num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128,
}  # fmt: skip
MOST_OVER_READING: Final = 1.2
PROMPT_TOKENS: Final = 240
CHUNKS: Final = (16, 120)
PIECE_BYTES: Final = 4 << 20
SETTLED_S: Final = 0.5  # until the next pass's first layers are read ahead


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", choices=("whole", "streamed"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    front = arguments.folder / f"layers-{arguments.layers}"
    os.environ.setdefault(FOLDER_VARIABLE, str(arguments.folder / "copies"))
    if arguments.case:
        print(json.dumps(measure(front, arguments)))
        return 0
    write(front, arguments.layers)
    whole, streamed = (in_process(arguments, case) for case in ("whole", "streamed"))
    report = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "whole_over_limit": whole["needed_bytes"] / streamed["limit_bytes"],
        "same_rows": whole["rows"] == streamed["rows"],
        "whole_step_s": whole["step_s"],
        **streamed,
    }
    print(json.dumps(report))
    held = report["same_rows"] and report["peak_over_limit"] <= 1
    return 0 if held and report["over_reading"]["median"] <= MOST_OVER_READING else 1


def write(front: Path, layers: int) -> None:
    """Write the front in a process of its own, where it is missing."""
    if not (front / "plan.yaml").is_file():
        code = (
            "from pathlib import Path; from benchmarks.edge.seeded_front import *; "
            f"write_seeded_front(Path({str(front)!r}), bits=4, blocks='small', streamed_layers=1, "
            f"prefill_chunk={max(CHUNKS)}, num_hidden_layers={layers}, **{SIZES!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


def in_process(arguments: argparse.Namespace, case: str) -> dict[str, Any]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--folder", str(arguments.folder), "--case", case]
    for name in ("layers", "rounds", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(found.stdout)
    return figures


def measure(front: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case in this process."""
    import edge.client  # noqa: F401 - what an edge process has loaded besides

    return_freed_blocks()
    plan = load_plan(front / "plan.yaml")
    runtime = runtime_bytes()
    needed = needed_memory(replace(plan, streamed_layers=0), runtime, 1).total_bytes
    limit = int(needed / 2)
    count = 0
    if arguments.case == "streamed":
        chosen = fitting(plan, limit_bytes=limit, runtime_bytes=runtime)
        assert chosen.chunk_tokens == plan.prefill_chunk
        count = chosen.streamed_layers
    begin = time.perf_counter()
    (engine,) = FrontEngine.load(
        front,
        plan=plan,
        threads=arguments.threads,
        low_memory=True,
        streamed_layers=count,
        forget=True,
    )
    loading_s = time.perf_counter() - begin
    rows = [engine.forward(np.arange(1, 17))]
    rows += [engine.forward(np.array([token])) for token in range(20, 24)]
    figures = {
        "needed_bytes": needed,
        "limit_bytes": limit,
        "loading_s": loading_s,
        "rows": hashlib.sha256(np.concatenate(rows).tobytes()).hexdigest(),
        "step_s": summary([decode_s(engine) for _ in range(arguments.rounds)]),
    }
    if count:
        figures |= streaming_figures(engine, front, plan, count, arguments.rounds)
        figures["peak_over_limit"] = peak_memory_bytes() / limit
    return figures


def streaming_figures(
    engine: FrontEngine, front: Path, plan: Plan, count: int, rounds: int
) -> dict[str, Any]:
    """Steps in turn with reading their bytes alone, then prompts."""
    names = [f"front-{layer}." for layer in streamed_places(plan, count)]
    copies = Path(os.environ[FOLDER_VARIABLE]) / "packed"
    paths = [
        path for name in names for path in sorted(copies.glob(f"*/{name}*.onnx.data"))
    ]  # fmt: skip
    read_bytes = engine.streamed_bytes // count
    ratios, reads = [], []
    for _ in range(rounds):
        time.sleep(SETTLED_S)
        read_s = reading_s(paths, read_bytes)
        steps = [decode_s(engine) for _ in range(4)]
        ratios.append(sum(steps[1:]) / 3 / read_s)
        reads.append(engine.streamed_bytes / read_s)
    step_s = statistics.median(decode_s(engine) for _ in range(rounds))
    prompts = {str(chunk): prompt_s(engine, chunk) / step_s for chunk in CHUNKS}
    planned = streamed_bytes(replace(plan, streamed_layers=count))
    return {
        "streamed_layers": count,
        "streamed_bytes": engine.streamed_bytes,
        "streamed_over_planned": engine.streamed_bytes / planned,
        "read_bytes_per_s": summary(reads),
        "over_reading": summary(ratios),
        "prompt_over_step": prompts,
    }


def decode_s(engine: FrontEngine) -> float:
    """Seconds of one decode step."""
    if engine.num_tokens == engine.capacity:
        engine.rollback(16)
    begin = time.perf_counter()
    engine.forward(np.array([7]))
    return time.perf_counter() - begin


def prompt_s(engine: FrontEngine, chunk: int) -> float:
    """Seconds of a prompt in chunks."""
    engine.reset()
    begin = time.perf_counter()
    for start in range(0, PROMPT_TOKENS, chunk):
        engine.forward(np.arange(start, start + chunk))
    return time.perf_counter() - begin


def reading_s(paths: list[Path], num_bytes: int) -> float:
    """Seconds of reading so many bytes of each file, which the page cache has forgotten."""
    piece = memoryview(bytearray(PIECE_BYTES))
    seconds = 0.0
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        for start in range(0, num_bytes, PIECE_BYTES):
            os.preadv(number, [piece[: min(PIECE_BYTES, num_bytes - start)]], start)
        seconds += time.perf_counter() - begin
        os.close(number)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
