"""What `grid.py` runs in processes of its own: building, and measuring one cell. JSON last.

    python -m benchmarks.planning.grid_work answers BUNDLE ADDRESS REPEATS DRAFT LIMIT CHUNK \
        PREFILL LOG
    python -m benchmarks.planning.grid_work front FOLDER POSITIONS ROWS
    python -m benchmarks.planning.grid_work back SIZES BITS SESSIONS CACHED
    python -m benchmarks.planning.grid_work clients ADDRESS PLAN SESSIONS STEPS SPLIT
    python -m benchmarks.planning.grid_work build MODEL FOLDER NAMES
    python -m benchmarks.planning.grid_work seeded FOLDER BITS TOKENS SIZES

A measuring process imports what a device imports, because its peak of memory is one of the results.
So this module imports nothing else at the top.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

LONGEST_ANSWER: Final = 8  # tokens after the longest prompt, for the peak of memory
TEXT: Final = (
    "The town lies on both banks of a river that is too shallow for ships. Its mills once ground "
    "the corn of three valleys; two of them still turn on Sundays, for visitors. A market is held "
    "in the square before the church on every second Thursday, and people come from as far as the "
    "coast to sell cheese, rope, tools and apples. The school has eleven teachers. In winter the "
    "road over the pass is closed for six weeks, and letters arrive by rail. "
)


def answers(
    bundle: str,
    address: str,
    repeats: str,
    draft: str,
    limit: str,
    chunk: str,
    prefill: str,
    log: str,
) -> dict[str, Any]:
    """Medians over some answers after one that is thrown away, then the longest sequence.

    limit: bytes of the process; 0: none. chunk, prefill: as the cell has them. Seconds, bytes.
    `rounds`: of every number of rows in the answers' frames, how many frames and tokens, and
    whether they left ahead of an answer. Appended to `log`: what `--measure` writes. Where the
    front does not fit, there is `refused` alone.
    """
    from benchmarks.planning.grid_cells import ANSWER, PROMPT
    from benchmarks.planning.quiet_machine import give_way_to_messages
    from edge.client import EdgeClient
    from edge.errors import MemoryLimitError
    from edge.generation.completion import CompletionRequest
    from edge.generation.report import breakdown
    from hwprofiles.peak_memory import peak_memory_bytes

    options = {"memory_limit_bytes": int(limit) or None, "prefill_chunk": int(chunk)}
    try:
        client = EdgeClient(bundle, address or None, **options)  # type: ignore[arg-type]
    except MemoryLimitError as error:
        return {"refused": str(error)}
    give_way_to_messages()
    with client:
        longest = client.plan.max_tokens - LONGEST_ANSWER
        ids = client.tokenizer.encode(TEXT * (1 + 12 * longest // len(TEXT)))
        request = CompletionRequest(
            max_new_tokens=ANSWER, draft=draft, prefill=prefill, ignore_eos=True
        )
        done = []
        for index in range(int(repeats) + 1):
            run = client.start_ids(ids[index * 7 : index * 7 + PROMPT], request)
            for _ in run:
                pass
            done.append(run.completion)
        last = replace(request, max_new_tokens=LONGEST_ANSWER)
        run = client.start_ids(ids[:longest], last)
        for _ in run:
            pass
    kept = done[1:]
    peak = peak_memory_bytes()
    _log_generations(Path(log), client, [*kept, run.completion])
    rounds: dict[tuple[int, bool], list[int]] = {}
    for one in kept:
        for step in one.steps:
            if step.phase == "decode" and step.num_new_tokens:
                frames = rounds.setdefault((step.num_rows, step.ahead), [0, 0])
                frames[0] += 1
                frames[1] += step.num_new_tokens
    parts = [breakdown(one.steps, "decode") for one in kept]
    chunks = [breakdown(one.steps, "prefill") for one in kept]
    gaps = [(one.token_times_s[-1] - one.token_times_s[0]) / (ANSWER - 1) for one in kept]
    return {
        "ttft_s": [one.ttft_s for one in kept],
        "tbt_s": gaps if draft != "off" else [one.tbt_quantile_s(0.5) for one in kept],
        "parts_s": {name: statistics.median(part[name] for part in parts) for name in parts[0]},
        "chunk_parts_s": {
            name: statistics.median(part[name] for part in chunks) for name in chunks[0]
        },
        "rounds": sorted([rows, *counts, ahead] for (rows, ahead), counts in rounds.items()),
        "peak_memory_bytes": peak,
    }


def _log_generations(log: Path, client: Any, completions: Sequence[Any]) -> None:
    """Append what `--measure` would. The process has had its peak of memory by then."""
    from splitpoint.recording import GenerationRecorder

    recorder = GenerationRecorder(log, "bench")
    recorder.watch(client)
    for completion in completions:
        recorder(completion)


def front(folder: str, positions: str, rows: str) -> dict[str, Any]:
    """Seconds of one row at each position and of a prompt's rows, then the peak with a full cache.

    The process does what a device's does: the same imports, chunks of the plan's size."""
    import numpy as np

    import edge.client  # noqa: F401 - what an edge process has loaded besides
    from edge.device.front import FrontEngine
    from hwprofiles.peak_memory import peak_memory_bytes
    from optimizer.artifacts.plan import load_plan

    plan = load_plan(Path(folder) / "plan.yaml")
    engine = FrontEngine.load(Path(folder), plan=plan)[0]
    vocabulary = plan.model.geometry.vocab_size
    drawn = np.random.default_rng(0).random(plan.max_tokens)
    tokens = (vocabulary**drawn).astype(np.int64) - 1  # frequent ones are small, as in text
    found: dict[str, Any] = {"decode_s": {}}

    def timed(count: int, at: int, repeats: int) -> float:
        taken = []
        for _ in range(repeats):
            engine.rollback(at)
            before_s = time.perf_counter()
            engine.forward(tokens[:count])
            taken.append(time.perf_counter() - before_s)
        return statistics.median(taken[1:])

    found["prompt_s"] = timed(int(rows), 0, 4)
    engine.reset()
    for at in json.loads(positions):
        _fill(engine, tokens, at, plan.prefill_chunk)
        found["decode_s"][str(at)] = timed(1, at, 16)
    _fill(engine, tokens, plan.max_tokens - 1, plan.prefill_chunk)
    engine.forward(tokens[:1])
    return {**found, "peak_memory_bytes": peak_memory_bytes()}


def back(sizes: str, bits: str, sessions: str, cached: str) -> dict[str, Any]:
    """Seconds of a step of one row for each of so many sessions, by their number. sizes: of the
    model, as of `write_seeded_front`."""
    from cloud.engine.profiled_kernels import TorchKernels
    from hwprofiles.profiler.measured_backends import SessionLoad, StackShape

    model = json.loads(sizes)
    width, heads = model["hidden_size"], model["num_attention_heads"]
    shape = StackShape(
        width=width,
        inner=model["intermediate_size"],
        num_heads=heads,
        num_kv_heads=model["num_key_value_heads"],
        head_dim=width // heads,
        vocab_size=model["vocab_size"],
    )
    stack = TorchKernels().stack(
        shape, num_layers=model["num_hidden_layers"], weight_bits=int(bits)
    )
    found: dict[str, Any] = {"step_s": {}}
    for count in json.loads(sessions):
        step = stack.step([SessionLoad(1, int(cached))] * count)
        taken = []
        for _ in range(12):
            before_s = time.perf_counter()
            step()
            taken.append(time.perf_counter() - before_s)
        found["step_s"][str(count)] = statistics.median(taken[2:])
    return found


def _fill(engine: Any, tokens: Any, upto: int, chunk: int) -> None:
    """Fill the cache, so that it really holds so many tokens."""
    while engine.num_tokens < upto:
        start = engine.num_tokens
        engine.forward(tokens[start : min(start + chunk, upto)])


def clients(address: str, plan_file: str, sessions: str, steps: str, split: str) -> dict[str, Any]:
    """Sessions decode at once; what the server says of each step: seconds and sessions in it.

    `rounds_s`: the median round trip that a client saw."""
    import numpy as np

    from codec.ladder import Ladder
    from edge.net.grpc_transport import GrpcTransport
    from optimizer.artifacts.plan import load_plan
    from protos.messages import Frame, Open, Opened, Result

    plan = load_plan(Path(plan_file))
    ladder = Ladder.lossless(plan.model.geometry.hidden_size)
    found: list[tuple[float, int, int, float]] = []
    rounds: list[float] = []
    ready = threading.Barrier(int(sessions))

    def one(index: int) -> None:
        rng = np.random.default_rng(index)
        transport = GrpcTransport(address)
        request = Open(
            session_id=f"c{index}", model_sha256=plan.model.sha256, split=int(split),
            hidden_size=ladder.hidden_size, codec_tables_sha256=ladder.tables_sha256,
            max_tokens=256,
        )  # fmt: skip
        stream = transport.open(request, 30.0)
        if not isinstance(stream.receive(30.0).message, Opened):
            raise RuntimeError("the server refused a session")
        position = 0
        for step in range(int(steps) + 1):
            count = 1 if step else 64
            if step == 1:
                ready.wait(60)
            ids = rng.integers(0, plan.model.geometry.vocab_size, count)
            rows = rng.standard_normal((count, ladder.hidden_size)).astype(np.float32)
            hidden = ladder.encode("lossless", rows, ids)
            began_s = time.perf_counter()
            stream.send(
                Frame(
                    sequence=step,
                    first_position=position,
                    token_ids=tuple(ids.tolist()),
                    hidden=hidden,
                )
            )
            message = stream.receive(60.0).message
            if not isinstance(message, Result):
                raise RuntimeError(f"no result: {message}")
            position += count
            if step > 3:
                times = message.timings
                batch = times.batch_sessions
                found.append((times.compute_s, batch, message.num_tokens - 1, times.sample_s))
                rounds.append(time.perf_counter() - began_s)
        stream.close()
        transport.close()

    threads = [threading.Thread(target=one, args=(index,)) for index in range(int(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"steps": found, "round_s": statistics.median(rounds)}


def build(model: str, folder: str, names: str) -> dict[str, Any]:
    """Edge bundles, and the cloud's if it is missing, which serves all of them.

    names: JSON of [folder, split, front bits, KV bits]."""
    from benchmarks.planning.grid_cells import (
        BACK_BITS,
        FRONT_TOKENS,
        MAX_TOKENS,
        SERVER_SPLIT,
        reference,
    )
    from optimizer.artifacts.bundle import PLAN_NAME, Role, write_manifest
    from optimizer.artifacts.plan import Partition, Plan
    from optimizer.export.bundle_builder import build_bundle
    from optimizer.export.sources.model_source import open_source

    source = open_source(Path(model))
    for name, split, front_bits, kv_bits in (*json.loads(names), ("cloud", SERVER_SPLIT, 4, 8)):
        out = Path(folder) / name
        if out.is_dir():
            continue
        print(f"building {name}", file=sys.stderr, flush=True)
        plan = Plan(
            model=reference(Path(model)),
            partition=Partition(split=split, front_bits=front_bits, back_bits=BACK_BITS),
            back_start=0,
            kv_bits=kv_bits,
            level="lossless",
            max_tokens=FRONT_TOKENS,  # the angles of so many positions are in the front
            prefill_chunk=32,
        )
        side: tuple[Role, ...] = ("cloud",) if name == "cloud" else ("edge",)
        build_bundle(source, plan, out, progress=lambda stage: None, sides=side)
        shorter = replace(plan, max_tokens=MAX_TOKENS)
        (out / PLAN_NAME).write_text(shorter.to_yaml(), encoding="utf-8")
        write_manifest(out)
    return {}


def seeded(folder: str, bits: str, tokens: str, sizes: str) -> dict[str, Any]:
    """A front of all layers of a bigger model. sizes: JSON for `write_seeded_front`."""
    from benchmarks.edge.seeded_front import write_seeded_front

    write_seeded_front(
        Path(folder), bits=int(bits), blocks="small", max_tokens=int(tokens), **json.loads(sizes)
    )
    return {}


WORK: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "answers": answers,
    "front": front,
    "back": back,
    "clients": clients,
    "build": build,
    "seeded": seeded,
}

if __name__ == "__main__":
    print(json.dumps(WORK[sys.argv[1]](*sys.argv[2:])))
