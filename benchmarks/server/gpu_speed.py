"""How near is a step on CUDA to the memory's speed? The shape of an 8 B model, random weights.

24 of 32 layers and the head, as a server has them whose devices run the first eight. Beside the
whole step we time its matrix products and attention alone, recorded in a graph of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from cloud.attention.paged import PagedStep
from cloud.attention.transformers_interface import ATTENTION_NAME
from cloud.engine.back_weights import BackModel
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.drawing import Drawing
from cloud.engine.gpu_engine import GpuEngine
from cloud.engine.gpu_layer import product
from cloud.engine.weight_only_linear import WeightOnlyLinear, to_fp8, to_int8
from cloud.gpu.paged_rows import PagedRows
from cloud.kv.pool import KvLease, KvPool
from decoding.params import SamplingParams

FIRST_LAYER: Final = 8
HISTORY: Final = 1024
KINDS: Final[Mapping[str, Sequence[int]]] = {
    "bf16": (1, 8, 64, 128, 256),
    "int8": (1, 16, 64),
    "fp8": (1, 64),
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
# Bytes a second by the data sheets: the bound that the goals name is that of an H100.
DATA_SHEET: Final = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.039e12, "L4": 0.3e12}


def measure_speed(
    kinds: Mapping[str, Sequence[int]], repeats: int, flops_per_s: float
) -> dict[str, Any]:
    """Every kind of weights, by batch. Prints a table."""
    found: dict[str, Any] = {}
    for kind, batches in kinds.items():
        print(f"--- {kind}", flush=True)
        found[kind] = _measure_kind(kind, batches, repeats, flops_per_s)
    return found


def _measure_kind(
    kind: str, batches: Sequence[int], repeats: int, flops_per_s: float
) -> dict[str, Any]:
    name = torch.cuda.get_device_name()
    rate = next((v for k, v in DATA_SHEET.items() if k in name), None)
    weight_kind, _, kv_kind = kind.partition(", KV ")
    kv_dtype = torch.float8_e4m3fn if kv_kind == "fp8" else None
    engine = GpuEngine(random_model(weight_kind), kv_dtype=kv_dtype)
    weights = engine.model.num_bytes
    shape = engine.kv_shape
    per_session = shape.num_bytes(split=FIRST_LAYER, max_tokens=HISTORY + 512)
    pool = KvPool(shape, limit_bytes=max(16, *batches) * per_session, device="cuda")
    for part in pool.arena.split(1 << 20):
        part.copy_(torch.randn(part.shape, device="cuda"))
    found: dict[str, Any] = {"weights_bytes": weights, "data_sheet_bytes_per_s": rate}
    found["prefill"] = _prefill(engine, pool, flops_per_s)
    print("sessions  bound ms  products+attention    step      host ms  p99/p50  tokens/s")
    for count in batches:
        found[f"decode {count}"] = row = _decode(engine, pool, count, repeats, rate)
        print(
            f"{count:8d} {1e3 * row['bound_s']:9.3f} {1e3 * row['core_s']:9.3f} "
            f"({row['core_s'] / row['bound_s']:.2f}x) {1e3 * row['graph_s']:9.3f} "
            f"({row['graph_s'] / row['core_s']:.2f}x) {1e3 * row['host_s']:7.3f} "
            f"{row['p99_s'] / row['p50_s']:7.2f} {row['tokens_per_s']:10.0f}",
            flush=True,
        )
    return found


def random_model(kind: str = "bf16") -> BackModel:
    """The back with random weights, made on the device. kind: bf16, or 8-bit codes: int8, fp8."""
    with torch.device("meta"):
        whole: Any = AutoModelForCausalLM.from_config(
            CONFIG, attn_implementation=ATTENTION_NAME, dtype=torch.bfloat16
        )
    whole.eval()
    decoder = whole.get_decoder()
    layers = tuple(_filled(layer, kind) for layer in decoder.layers[FIRST_LAYER:])
    return BackModel(
        config=whole.config,
        first_layer=FIRST_LAYER,
        layers=layers,
        norm=_filled(decoder.norm, kind),
        head=_filled(nn.ModuleDict({"head": whole.lm_head}), kind)["head"],
        rotary=type(decoder.rotary_emb)(whole.config).to("cuda"),
        logits_divisor=None,
        final_softcap=None,
        embedding=None,
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
    )


def _filled(module: Any, kind: str) -> Any:
    module.to_empty(device="cuda")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        if "norm" in name or parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    if kind != "bf16":
        convert = to_int8 if kind == "int8" else to_fp8
        for name, child in list(module.named_modules()):
            if isinstance(child, nn.Linear):
                parent, _, attribute = name.rpartition(".")
                codes = WeightOnlyLinear(*convert(child.weight.detach()))
                setattr(module.get_submodule(parent), attribute, codes)
    return module


def _decode(
    engine: GpuEngine, pool: KvPool, count: int, repeats: int, rate: float | None
) -> dict[str, Any]:
    leases = [_lease(pool, HISTORY + 512) for _ in range(count)]
    try:
        engine.warm_up(pool.arena, split=FIRST_LAYER, num_rows=1, max_tokens=HISTORY + repeats + 8)
        rows = [torch.randn(1, CONFIG.hidden_size) for _ in leases]
        greedy = SamplingParams()
        walls, hosts = [], []
        for index in range(repeats + 5):
            batch = [
                BatchEntry(
                    lease=lease,
                    rows=row,
                    num_logits=1,
                    drawing=Drawing(params=greedy, position=lease.length + 1),
                )
                for lease, row in zip(leases, rows, strict=True)
            ]
            torch.cuda.synchronize()
            begin_s = time.perf_counter()
            launched = engine.launch(batch)
            launch_s = time.perf_counter() - begin_s
            launched.result()
            walls.append(time.perf_counter() - begin_s)
            hosts.append(launch_s)
            if index < 5:
                walls.clear()
                hosts.clear()
        layout = engine._layout(batch)
        assert layout is not None
        recording = engine._recording(layout.key)
        assert recording is not None
        graph_s = timed(recording[0].replay, repeats)
        core_s = timed(_core(engine, leases, pool), repeats)
        kv = count * engine.kv_shape.num_bytes(split=FIRST_LAYER, max_tokens=HISTORY)
        bound_s = (engine.model.num_bytes + kv) / (rate or 1.0)
        wall_s = float(np.median(walls))
        return {
            "bound_s": bound_s,
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
    finally:
        for lease in leases:
            lease.close()


def _core(engine: GpuEngine, leases: Sequence[KvLease], pool: KvPool) -> Callable[[], object]:
    """Matrix products and attention alone, as a graph."""
    count = len(leases)
    device = "cuda"
    meta = torch.tensor(
        [
            [engine._tables.slot(lease) for lease in leases],
            [HISTORY - 1] * count,
            [FIRST_LAYER] * count,
        ],
        dtype=torch.int32,
        device=device,
    )
    tables = engine._tables
    rows = PagedRows(pool.arena, tables.base, tables.stride, meta[0], meta[1], meta[2])
    step = PagedStep(rows, rows, None, HISTORY)
    dtype = torch.bfloat16
    hidden = torch.randn(count, CONFIG.hidden_size, device=device, dtype=dtype)
    query = torch.randn(count, 32, 128, device=device, dtype=dtype)
    inner = torch.randn(count, CONFIG.intermediate_size, device=device, dtype=dtype)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        for layer in engine._stack._layers:
            assert layer is not None
            qkv, out, gate_up, down = layer.products
            product(qkv, hidden)
            product(out, step.attend(layer.index, query, layer.traits).view(count, -1))
            product(gate_up, hidden)
            product(down, inner)
        logits = product(engine.model.head, hidden)
        return logits, logits

    with torch.inference_mode():
        return engine._record_launches(run).replay


def _prefill(engine: GpuEngine, pool: KvPool, flops_per_s: float) -> dict[str, Any]:
    """8 prompts of 2,048 tokens in one step."""
    tokens, prompts = 2048, 8
    leases = [_lease(pool, tokens, length=0) for _ in range(prompts)]
    rows = [torch.randn(tokens, CONFIG.hidden_size) for _ in leases]
    taken = []
    for _ in range(4):
        batch = [
            BatchEntry(lease=lease, rows=part, num_logits=1)
            for lease, part in zip(leases, rows, strict=True)
        ]
        torch.cuda.synchronize()
        begin_s = time.perf_counter()
        engine.forward(batch)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin_s)
        for lease in leases:
            lease.rollback(0)
    for lease in leases:
        lease.close()
    width, inner, keys = CONFIG.hidden_size, CONFIG.intermediate_size, 1024
    matrices = (2 * width * (width + keys) + 3 * width * inner) * len(engine.model.layers)
    attention = 4 * tokens * tokens / 2 * 4096 * prompts * len(engine.model.layers)
    flops = 2.0 * matrices * tokens * prompts + attention
    best_s = float(np.median(taken[1:]))
    share = flops / best_s / flops_per_s
    print(f"prefill of 8 x 2,048 tokens: {best_s:.3f} s, {100 * share:.0f} % of the product rate")
    return {"seconds": best_s, "all_s": taken, "flops": flops, "share_of_product_rate": share}


def _lease(pool: KvPool, max_tokens: int, *, length: int = HISTORY) -> KvLease:
    lease = pool.lease(split=FIRST_LAYER, max_tokens=max_tokens)
    lease.length = length
    return lease


def timed(call: Callable[[], object], repeats: int) -> float:
    """Median seconds on the device."""
    for _ in range(3):
        call()
    pairs = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return float(np.median([begin.elapsed_time(end) for begin, end in pairs])) / 1e3
