"""How near is a step on CUDA to the memory's speed? The shape of an 8 B model, random weights.

24 of 32 layers and the head, as a server has them whose devices run the first eight. Beside the
whole step we time its matrix products and attention alone, recorded in a graph of their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from transformers import LlamaConfig

from benchmarks.server.gpu_machine import CudaMachine
from benchmarks.server.gpu_random_model import random_model
from cloud.attention.paged import PagedStep
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.drawing import Drawing
from cloud.engine.gpu_engine import GpuEngine
from cloud.engine.gpu_layer import product
from cloud.engine.step_graphs import MIN_TOKENS
from cloud.gpu.paged_rows import PagedRows
from cloud.kv.pool import KvLease, KvPool
from decoding.params import SamplingParams

KINDS: Final[Mapping[str, Sequence[int]]] = {
    "bf16": (1, 8, 64, 128, 256),
    "int8": (1, 16, 64),
    "fp8": (1, 64),
    "int4": (1, 64),
    "bf16, KV fp8": (64, 256),
}
CONFIG: Final = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=8192,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    tie_word_embeddings=False,
)
DRY_CONFIG: Final = LlamaConfig(
    vocab_size=48,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=8192,
    tie_word_embeddings=False,
)
# Bytes a second by the data sheets, by a word of the device's name; the goals name an H100's.
DATA_SHEET: Final = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.039e12, "L4": 0.3e12}
ROOM: Final = 16  # sessions' worth of KV memory at least: the prompts of the prefill fit
SPARE_BYTES: Final = 3 << 30  # for a prefill's rows, graphs and the products' workspaces


class SpeedScale(NamedTuple):
    """config: the model. first_layer: where sessions enter. history: tokens of each, after
    `warm_up` and `repeats` steps. prompts, prompt_tokens: of the prefill."""

    config: LlamaConfig
    first_layer: int
    history: int
    prompts: int
    prompt_tokens: int
    repeats: int
    warm_up: int

    @property
    def session_tokens(self) -> int:
        """Room of a session."""
        return self.history + self.history // 2


FULL_SPEED: Final = SpeedScale(
    CONFIG, first_layer=8, history=1024, prompts=8, prompt_tokens=2048, repeats=60, warm_up=5
)
DRY_SPEED: Final = SpeedScale(
    DRY_CONFIG, first_layer=1, history=24, prompts=2, prompt_tokens=5, repeats=1, warm_up=1
)


class Rates(NamedTuple):
    """What the device reached in this run, None where it is not known: bytes a second of a copy,
    and floating-point operations a second of a large product."""

    copy: float | None
    flops: float | None


def measure_kind(
    machine: CudaMachine, scale: SpeedScale, kind: str, batches: Sequence[int], rates: Rates
) -> dict[str, Any]:
    """One kind of weights, by batch. Prints a table. Batches that do not fit are left out."""
    if machine.is_dry:
        batches = [min(count, 1 + index) for index, count in enumerate(batches)]
    print(f"--- {kind}", flush=True)
    weight_kind, _, kv_kind = kind.partition(", KV ")
    if "fp8" in (weight_kind, kv_kind) and not machine.has_fp8:
        print("this device has no float8")
        return {}
    machine.free_bytes()
    model = random_model(machine, scale.config, scale.first_layer, weight_kind)
    kv_dtype = torch.float8_e4m3fn if kv_kind == "fp8" else None
    engine = GpuEngine(model, recorder=machine.recorder, kv_dtype=kv_dtype)
    shape = engine.kv_shape
    each = shape.num_bytes(split=scale.first_layer, max_tokens=scale.session_tokens)
    most = (machine.free_bytes() - SPARE_BYTES * (not machine.is_dry)) // each
    fitting = [count for count in batches if count <= most]
    if len(fitting) < len(batches):
        print(f"left out: {sorted({*batches} - {*fitting})} sessions, for which memory lacks")
    room = min(most, max(ROOM, *fitting, 0)) * each
    pool = KvPool(shape, limit_bytes=room, device=machine.device)
    for part in pool.arena.split(1 << 16):
        part.copy_(torch.randn(part.shape, device=machine.device))
    bench = _Bench(machine, scale, engine, pool, rates)
    found: dict[str, Any] = {
        "weights_bytes": engine.model.num_bytes,
        "bound_bytes_per_s": bench.rate,
        "prefill": bench.prefill(),
    }
    print("sessions  bound ms  products+attention    step      host ms  p99/p50  tokens/s")
    for count in fitting:
        found[f"decode {count}"] = row = bench.decode(count)
        print(
            f"{count:8d} {1e3 * row['bound_s']:9.3f} {1e3 * row['core_s']:9.3f} "
            f"({row['core_s'] / row['bound_s']:.2f}x) {1e3 * row['graph_s']:9.3f} "
            f"({row['graph_s'] / row['core_s']:.2f}x) {1e3 * row['host_s']:7.3f} "
            f"{row['p99_s'] / row['p50_s']:7.2f} {row['tokens_per_s']:10.0f}",
            flush=True,
        )
    return found


class _Bench:
    """One engine, timed. rate: bytes a second of the bound: the data sheet's, else a copy's."""

    def __init__(
        self,
        machine: CudaMachine,
        scale: SpeedScale,
        engine: GpuEngine,
        pool: KvPool,
        rates: Rates,
    ) -> None:
        self._machine, self._scale, self._engine, self._pool = machine, scale, engine, pool
        self._flops = rates.flops
        words = machine.name.replace("-", " ").split()
        self.rate = next((v for k, v in DATA_SHEET.items() if k in words), rates.copy)

    def decode(self, count: int) -> dict[str, Any]:
        """Steps of `count` sessions, one row each."""
        scale, machine = self._scale, self._machine
        steps = scale.warm_up + scale.repeats
        leases = [self._lease(scale.session_tokens, scale.history - steps) for _ in range(count)]
        try:
            self._engine.warm_up(
                self._pool.arena, split=scale.first_layer, num_rows=1, max_tokens=scale.history
            )
            walls, hosts = self._steps(leases)
            layout = self._engine._layout(self._batch(leases, shift=-1))
            recording = None if layout is None else self._engine._recording(layout.key)
            if recording is None:
                raise RuntimeError(f"a step of {count} sessions has no graph")
            graph_s = machine.timed(recording[0].replay, scale.repeats)
            core_s = machine.timed(self._core(leases), scale.repeats)
        finally:
            for lease in leases:
                lease.close()
        shape = self._engine.kv_shape
        kv = count * shape.num_bytes(split=scale.first_layer, max_tokens=scale.history)
        wall_s = float(np.median(walls))
        return {
            "bound_s": (self._engine.model.num_bytes + kv) / (self.rate or math.nan),
            "kv_bytes": kv,
            "core_s": core_s,
            "graph_s": graph_s,
            "step_s": wall_s,
            "host_s": wall_s - graph_s,
            "launch_s": float(np.median(hosts)),
            "p50_s": wall_s,
            "p99_s": float(np.quantile(walls, 0.99)),
            "tokens_per_s": count / wall_s,
        }

    def _steps(self, leases: Sequence[KvLease]) -> tuple[list[float], list[float]]:
        """Seconds of each step, and of its launch alone."""
        walls, hosts = [], []
        for _ in range(self._scale.warm_up + self._scale.repeats):
            batch = self._batch(leases)
            self._machine.finish()
            begin_s = time.perf_counter()
            launched = self._engine.launch(batch)
            hosts.append(time.perf_counter() - begin_s)
            launched.result()
            walls.append(time.perf_counter() - begin_s)
        return walls[self._scale.warm_up :], hosts[self._scale.warm_up :]

    def _batch(self, leases: Sequence[KvLease], *, shift: int = 0) -> list[BatchEntry]:
        greedy = SamplingParams()
        for lease in leases:
            lease.length += shift
        return [
            BatchEntry(
                lease=lease,
                rows=torch.randn(1, self._scale.config.hidden_size),
                num_logits=1,
                drawing=Drawing(params=greedy, position=lease.length + 1),
            )
            for lease in leases
        ]

    def _core(self, leases: Sequence[KvLease]) -> Callable[[], object]:
        """Matrix products and attention alone, as a graph."""
        engine, scale = self._engine, self._scale
        config, tables = scale.config, engine._tables
        count, device = len(leases), self._machine.device
        meta = torch.tensor(
            [
                [tables.slot(lease) for lease in leases],
                [scale.history - 1] * count,
                [scale.first_layer] * count,
            ],
            dtype=torch.int32,
            device=device,
        )
        arena = self._pool.arena
        rows = PagedRows(arena, tables.base, tables.stride, meta[0], meta[1], meta[2])
        step = PagedStep(rows, rows, None, max(scale.history, MIN_TOKENS))
        half = self._machine.half

        def rows_of(*shape: int | None) -> torch.Tensor:
            return torch.randn((count, *(n or 0 for n in shape)), device=device, dtype=half)

        hidden = rows_of(config.hidden_size)
        query = rows_of(config.num_attention_heads, config.head_dim)
        inner = rows_of(config.intermediate_size)

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            for layer in engine._stack._layers:
                if layer is None:
                    raise RuntimeError("a layer of the common shape runs in torch")
                qkv, out, gate_up, down = layer.products
                product(qkv, hidden)
                product(out, step.attend(layer.index, query, layer.traits).view(count, -1))
                product(gate_up, hidden)
                product(down, inner)
            logits = product(engine.model.head, hidden)
            return logits, logits

        with torch.inference_mode():
            return engine._record_launches(run).replay

    def prefill(self) -> dict[str, Any]:
        """All prompts in one step."""
        scale, config = self._scale, self._scale.config
        tokens, prompts = scale.prompt_tokens, scale.prompts
        leases = [self._lease(tokens, 0) for _ in range(prompts)]
        rows = [torch.randn(tokens, config.hidden_size) for _ in leases]
        taken = []
        for _ in range(2 if self._machine.is_dry else 4):
            batch = [
                BatchEntry(lease=lease, rows=part, num_logits=1)
                for lease, part in zip(leases, rows, strict=True)
            ]
            self._machine.finish()
            begin_s = time.perf_counter()
            self._engine.forward(batch)
            self._machine.finish()
            taken.append(time.perf_counter() - begin_s)
            for lease in leases:
                lease.rollback(0)
        for lease in leases:
            lease.close()
        layers = len(self._engine.model.layers)
        width, inner = config.hidden_size, config.intermediate_size
        heads, keys = (
            (count or 0) * (config.head_dim or 0)
            for count in (config.num_attention_heads, config.num_key_value_heads)
        )
        matrices = (2 * width * (heads + keys) + 3 * width * inner) * layers
        attention = 4 * tokens * tokens / 2 * heads * prompts * layers
        flops = 2.0 * matrices * tokens * prompts + attention
        seconds = float(np.median(taken[1:]))
        found: dict[str, Any] = {"seconds": seconds, "all_s": taken, "flops": flops}
        if self._flops:
            found["share_of_product_rate"] = flops / seconds / self._flops
        share = 100 * found.get("share_of_product_rate", math.nan)
        print(
            f"prefill of {prompts} x {tokens}: {seconds:.3f} s, {share:.0f} % of the product rate"
        )
        return found

    def _lease(self, max_tokens: int, length: int) -> KvLease:
        lease = self._pool.lease(split=self._scale.first_layer, max_tokens=max_tokens)
        lease.length = length
        return lease
