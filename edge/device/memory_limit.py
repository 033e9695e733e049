"""Will the front fit? Asked before anything is loaded, with the plan's own formula.

What the process takes already is measured: by then the interpreter, the libraries, the tokenizer
and the codec's tables are loaded. The rest is computed by `optimizer.cost.memory`. When the front
does not fit, the error says part by part what it would need, and names the nearest plan that fits.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from codec.levels.lossless import LOSSLESS
from codec.levels.registry import kind_of
from codec.session_rows import held_bytes
from edge.device.mapped_pages import release_read_only_pages
from edge.errors import MemoryLimitError
from hwprofiles.heap import trim_heap
from optimizer.artifacts.manifest import PLAN_NAME
from optimizer.artifacts.plan import FRONT_BITS, KV_BITS, Plan, load_plan
from optimizer.cost.memory import (
    RUNNING_CODE_BYTES,
    EdgeMemory,
    codec_bytes,
    edge_memory_over,
    table_rows,
    touched_bytes,
)
from optimizer.cost.streaming import streamed_bytes
from optimizer.cost.weights import embedding_bytes
from optimizer.errors import PlanError

# Pages of the libraries' code and their threads' stacks that a session touches and that starting
# had not touched. Measured, onnxruntime 1.32 and grpcio 1.85 on x86-64 Linux.
FIRST_RUN_BYTES: Final = 14 << 20
STEP_BYTES: Final = 1200  # of one step's frame, trace and token, beside its payload
MIN_TOKENS: Final = 128
CHUNKS: Final = (128, 64, 32, 16)


def runtime_bytes() -> float:
    """What this process will take without a front: resident now, and what a run adds."""
    gc.collect()
    trim_heap()
    added = RUNNING_CODE_BYTES if release_read_only_pages() else FIRST_RUN_BYTES
    return float(psutil.Process().memory_info().rss + added)


class MemoryLimit(NamedTuple):
    """process_bytes: what this process may take; None: as much as there is.

    other_bytes: what a fallback and a draft model will take of it. halves: the front's 16-bit
    weights will not be widened.
    """

    process_bytes: int | None
    other_bytes: float = 0.0
    halves: bool = False

    @property
    def front_bytes(self) -> int | None:
        """What the process may take while the other models are not loaded."""
        if self.process_bytes is None:
            return None
        return max(int(self.process_bytes - self.other_bytes), 0)


def other_models_bytes(roots: Iterable[Path | str | None], *, sequences: int) -> float:
    """What a fallback and a draft model will take beside the front, with so many caches each.

    roots: the folders of their bundles; None for one that is not there. Only their plans are read:
    whoever opens such a bundle checks it, and says what is wrong with it.
    """
    plans = [Path(root) / PLAN_NAME for root in roots if root is not None]
    return sum(
        needed_memory(load_plan(path), 0.0, sequences).total_bytes
        for path in plans
        if path.is_file()
    )


class Fitting(NamedTuple):
    """What a device can choose without another bundle, and without changing a token.

    chunk_tokens: the most prompt tokens of a frame. streamed_layers: those that every pass reads
    from storage.
    """

    chunk_tokens: int
    streamed_layers: int = 0


def fitting(
    plan: Plan,
    *,
    limit_bytes: int,
    runtime_bytes: float,
    sequences: int = 1,
    other_bytes: float = 0.0,
    halves: bool = False,
) -> Fitting:
    """The fewest streamed layers with which `plan` and `sequences` caches fit; then the largest
    prefill chunk, at most the plan's.

    Only a front whose plan streams layers can do so: it is cut at every layer. other_bytes: see
    `other_models_bytes`. halves: see `edge_memory_over`. A smaller chunk needs no other bundle and
    changes no token, only the time to the first one. MemoryLimitError when not even the smallest
    fits.
    """
    runtime_bytes += other_bytes
    most = plan.most_streamed_layers if plan.streamed_layers else 0
    candidates = [Fitting(plan.prefill_chunk, count) for count in range(most + 1)]
    candidates += [Fitting(chunk, most) for chunk in _chunks(plan)[1:]]
    for candidate in candidates:
        smaller = replace(
            plan,
            prefill_chunk=candidate.chunk_tokens,
            streamed_layers=candidate.streamed_layers,
        )
        if needed_memory(smaller, runtime_bytes, sequences, halves).total_bytes <= limit_bytes:
            return candidate
    plan = replace(plan, streamed_layers=most)
    needed = needed_memory(plan, runtime_bytes, sequences, halves)
    advice = _advice(plan, limit_bytes, runtime_bytes, sequences, halves)
    raise MemoryLimitError(
        f"needs {_mib(needed.total_bytes)} of the {_mib(limit_bytes)} allowed "
        f"({_parts(needed, other_bytes)}); {advice}"
    )


def allowed(plan: Plan, given: int | None, limit: MemoryLimit, *, sequences: int) -> Fitting:
    """What fits with prompt tokens of a frame as given, else as planned, or fewer where the memory
    is not enough. MemoryLimitError where no number is small enough."""
    chunk = given or plan.prefill_chunk
    if limit.process_bytes is None:
        return Fitting(chunk, plan.streamed_layers)
    return fitting(
        replace(plan, prefill_chunk=chunk),
        limit_bytes=limit.process_bytes,
        runtime_bytes=runtime_bytes(),
        sequences=sequences,
        other_bytes=limit.other_bytes,
        halves=limit.halves,
    )


def check_loaded(limit_bytes: int, plan: Plan, *, provider: str, sequences: int) -> None:
    """MemoryLimitError when this process, its front loaded, will take more than the limit.

    The formula knows what the CPU's kernels take; of other providers nobody does before. What all
    providers take alike is not touched yet: full caches, work space, tables and the session.
    """
    needed = needed_memory(plan, 0.0, sequences)
    later = needed.kv_bytes + needed.workspace_bytes + needed.embedding_bytes + needed.codec_bytes
    taken = psutil.Process().memory_info().rss
    if taken + later > limit_bytes:
        raise MemoryLimitError(
            f"takes {_mib(taken)} with the front loaded by {provider}, and {_mib(later)} more with "
            f"full caches, of the {_mib(limit_bytes)} allowed; allow more, or --provider cpu"
        )


def _chunks(plan: Plan) -> tuple[int, ...]:
    return (plan.prefill_chunk, *(chunk for chunk in CHUNKS if chunk < plan.prefill_chunk))


def needed_memory(
    plan: Plan, runtime_bytes: float, sequences: int, halves: bool = False
) -> EdgeMemory:
    """The formula for a low-memory front, with as many caches and working sets as `sequences`."""
    needed = edge_memory_over(runtime_bytes, plan, halves=halves)
    # A front under a limit gives the embedding's and the codec's pages back every so many rows. The
    # file of one that computes in 16 bits stays mapped: its weights are read there.
    geometry = plan.model.geometry
    table = embedding_bytes(geometry, plan.partition.front_bits)
    rows = float(table_rows(plan.max_tokens, plan.prefill_chunk, limited=True))
    return replace(
        needed,
        embedding_bytes=touched_bytes(table, plan.max_tokens if halves else rows),
        codec_bytes=0.0 if plan.edge_is_whole else codec_bytes(geometry, plan.level, rows),
        kv_bytes=needed.kv_bytes * sequences,
        workspace_bytes=(needed.workspace_bytes + session_bytes(plan)) * sequences,
    )


def session_bytes(plan: Plan) -> float:
    """The journal of sent frames, the trace of every step, and the rows that frames may refer to,
    at the longest sequence.

    A row takes the bits of the dearest level of the plan's kind of codec.
    """
    kind, width = kind_of(plan.level), plan.model.geometry.hidden_size
    row_bytes = kind.most_bits_per_element * width / 8
    holds = not plan.edge_is_whole and kind is not LOSSLESS
    held = held_bytes(plan.max_tokens, width) if holds else 0
    return plan.max_tokens * (row_bytes + STEP_BYTES) + held


def nearest_plan(
    plan: Plan,
    *,
    limit_bytes: int,
    runtime_bytes: float,
    sequences: int = 1,
    halves: bool = False,
) -> Plan | None:
    """The plan that fits and differs least from `plan`; None when none does.

    Least: the fewest settings changed; then the most layers, the most tokens, the most bits kept
    and the largest chunk, in this order.
    """
    return max(
        (
            candidate
            for candidate in _smaller_plans(plan)
            if needed_memory(candidate, runtime_bytes, sequences, halves).total_bytes <= limit_bytes
        ),
        key=lambda candidate: (
            -len(changes(plan, candidate)),
            candidate.partition.split,
            candidate.max_tokens,
            candidate.kv_bits,
            candidate.partition.front_bits,
            candidate.prefill_chunk,
        ),
        default=None,
    )


def changes(plan: Plan, other: Plan) -> tuple[str, ...]:
    """The flags of `splitpoint build` that turn `plan` into `other`."""
    old, new = (",".join(map(str, each.splits)) for each in (plan, other))
    pairs: tuple[tuple[str, object, object], ...] = (
        ("--splits" if plan.front_splits else "--split", old, new),
        ("--front-bits", plan.partition.front_bits, other.partition.front_bits),
        ("--kv-bits", plan.kv_bits, other.kv_bits),
        ("--max-tokens", plan.max_tokens, other.max_tokens),
        ("--prefill-chunk", plan.prefill_chunk, other.prefill_chunk),
    )
    return tuple(f"{flag} {new}" for flag, old, new in pairs if old != new)


def _smaller_plans(plan: Plan) -> Iterator[Plan]:
    tokens = [plan.max_tokens]
    while tokens[-1] // 2 >= MIN_TOKENS:
        tokens += [tokens[-1] * 3 // 4, tokens[-1] // 2]
    for split, front_bits, kv_bits, max_tokens, chunk in itertools.product(
        range(plan.partition.split, -1, -1),
        [bits for bits in FRONT_BITS if bits <= plan.partition.front_bits],
        [bits for bits in KV_BITS if bits <= plan.kv_bits],
        sorted(set(tokens)),
        _chunks(plan),
    ):
        if plan.front_layer_bits and front_bits > min(plan.front_layer_bits):
            continue
        layer_bits = plan.front_layer_bits[:split]
        cuts = (*(cut for cut in plan.front_splits if cut < split), split)
        uniform = front_bits != plan.partition.front_bits or front_bits not in layer_bits
        try:
            yield replace(
                plan,
                partition=replace(plan.partition, split=split, front_bits=front_bits),
                back_start=min(plan.back_start, split),
                kv_bits=kv_bits,
                max_tokens=max_tokens,
                prefill_chunk=chunk,
                front_layer_bits=() if uniform else layer_bits,
                front_splits=cuts if len(cuts) > 1 else (),
                streamed_layers=0,
            )
        except PlanError:
            continue


def _advice(
    plan: Plan, limit_bytes: int, runtime_bytes: float, sequences: int, halves: bool
) -> str:
    nearest = nearest_plan(
        plan,
        limit_bytes=limit_bytes,
        runtime_bytes=runtime_bytes,
        sequences=sequences,
        halves=halves,
    )
    if nearest is not None:
        total = needed_memory(nearest, runtime_bytes, sequences, halves).total_bytes
        flags = " ".join(changes(plan, nearest))
        advice = f"the nearest plan that fits is {flags}, with {_mib(total)}"
        return advice + _streaming_advice(plan, limit_bytes, runtime_bytes, sequences)
    smallest = min(
        _smaller_plans(plan),
        key=lambda each: needed_memory(each, runtime_bytes, sequences, halves).total_bytes,
    )
    total = needed_memory(smallest, runtime_bytes, sequences, halves).total_bytes
    return (
        f"no plan of this model fits: the smallest, {' '.join(changes(plan, smallest))}, "
        f"would need {_mib(total)}"
    )


def _streaming_advice(plan: Plan, limit_bytes: int, runtime_bytes: float, sequences: int) -> str:
    """What reading layers from storage in every pass would do; empty where it does not help."""
    if plan.streamed_layers or plan.front_splits:
        return ""
    for count in range(1, plan.most_streamed_layers + 1):
        chunk = min(_chunks(plan))  # the device takes smaller ones by itself
        streaming = replace(plan, streamed_layers=count, prefill_chunk=chunk)
        if needed_memory(streaming, runtime_bytes, sequences).total_bytes <= limit_bytes:
            return (
                f"; --stream-layers {count} fits too and changes nothing else, but every step then "
                f"reads {_mib(streamed_bytes(streaming))} from storage"
            )
    return ""


def _parts(needed: EdgeMemory, other_bytes: float) -> str:
    parts = {
        "runtime": needed.runtime_bytes - other_bytes,
        "other models": other_bytes,
        "weights": needed.weight_bytes,
        "embedding": needed.embedding_bytes,
        "codec": needed.codec_bytes,
        "KV cache": needed.kv_bytes,
        "workspace": needed.workspace_bytes,
    }
    steady = sum(parts.values())
    if needed.load_peak_bytes > steady:
        parts["while loading"] = needed.load_peak_bytes - steady
    shown = {name: size for name, size in parts.items() if size or name != "other models"}
    return ", ".join(f"{name} {_mib(size)}" for name, size in shown.items())


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
