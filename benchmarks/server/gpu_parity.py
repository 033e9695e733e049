"""Is the engine on CUDA right? Small models with random weights beside the CPU's engine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.device_sampler import DrawnRow, draw
from cloud.engine.drawing import Drawing, Drawn
from cloud.engine.gpu_engine import GpuEngine
from cloud.engine.launches import launch
from cloud.engine.weight_only_linear import WeightOnlyLinear, to_fp8, to_int8
from cloud.gpu.one_row import one_row_linear
from cloud.kv.pool import KvPool
from decoding.params import SamplingParams
from decoding.sampler import sample, uniform

WIDTH: Final = 256
LAYERS: Final = 4
STEPS: Final = 12
SHAPE: Final = {
    "vocab_size": 1000,
    "hidden_size": WIDTH,
    "intermediate_size": 512,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
FAMILIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {}),
    "qwen2": ("Qwen2Config", {}),
    "mistral, window 48": ("MistralConfig", {"sliding_window": 48}),
    "gemma2": ("Gemma2Config", {"sliding_window": 48}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 48}),
    "phi3": ("Phi3Config", {"pad_token_id": 0}),
    "gpt-oss": ("GptOssConfig", {"num_local_experts": 4, "sliding_window": 48}),
}
BASIC_FAMILY: Final = "llama"
MAX_FP8_KV_ERROR: Final = 0.1  # 8-bit keys and values: 3 bits of mantissa
MAX_ERROR: Final = 2e-4  # float32, relative


def check_parity(*, only_basics: bool = False) -> dict[str, Any]:
    """Every comparison's name: True where it holds, or a figure. only_basics: one family."""
    found: dict[str, Any] = {}
    for name, (config, extra) in FAMILIES.items():
        if only_basics and name != BASIC_FAMILY:
            continue
        torch.manual_seed(0)
        kind = getattr(transformers, config)
        try:
            model = AutoModelForCausalLM.from_config(kind(**SHAPE, **extra))
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                found |= _family(name, Path(folder))
        except Exception as error:
            found[name] = False
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    found |= _draws()
    found |= _products()
    return found


def _family(name: str, folder: Path) -> dict[str, Any]:
    cpu = BackEngine(load_back(folder, first_layer=0))
    gpu = GpuEngine(load_back(folder, first_layer=0, device="cuda", dtype=torch.float32))
    worst, same = 0.0, True
    for split in range(LAYERS):
        want_logits, want_ids = _generate(cpu, [split])
        got_logits, got_ids = _generate(gpu, [split])
        worst = max(worst, _error(got_logits, want_logits))
        same &= got_ids == want_ids
    splits = [0, 3, 1, 2, 0, 1]
    together_logits, together_ids = _generate(gpu, splits)
    want_logits, want_ids = _generate(cpu, splits)
    worst = max(worst, _error(together_logits, want_logits))
    same &= together_ids == want_ids
    drawn = _generate(gpu, splits, drawing=True)[1]
    half = GpuEngine(load_back(folder, first_layer=0, device="cuda", dtype=torch.bfloat16))
    bits = _same_bits(half)
    short = GpuEngine(
        load_back(folder, first_layer=0, device="cuda", dtype=torch.bfloat16),
        kv_dtype=torch.float8_e4m3fn,
    )
    first = len(splits)  # the prefill's: later ones follow tokens that may differ
    kv_error = _error(_generate(short, splits)[0][:first], want_logits[:first])
    print(
        f"{name}: {gpu.num_gpu_layers} of {LAYERS} layers in kernels, {gpu.num_graphs} graphs, "
        f"error {worst:.1e}, tokens equal {same}, drawn on the device equal "
        f"{drawn == together_ids}, same bits in a bucket {bits}",
        flush=True,
    )
    return {
        f"{name}: logits": worst < MAX_ERROR,
        f"{name}: tokens": same,
        f"{name}: drawn": drawn == together_ids,
        f"{name}: bits in a bucket": bits,
        f"{name}: 8-bit keys and values": kv_error < MAX_FP8_KV_ERROR,
        f"{name}: error with 8-bit keys and values": kv_error,
        f"{name}: error": worst,
        f"{name}: layers in kernels": gpu.num_gpu_layers,
        f"{name}: graphs": gpu.num_graphs,
    }


def _generate(
    engine: BackEngine, splits: Sequence[int], *, drawing: bool = False
) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Greedy decoding of one session a split, all in one batch; rows stand for token ids."""
    generator = torch.Generator().manual_seed(7)
    table = torch.randn(SHAPE["vocab_size"], WIDTH, generator=generator)
    shape = engine.kv_shape
    room = sum(shape.num_bytes(split=split, max_tokens=160) for split in splits)
    pool = KvPool(shape, limit_bytes=room, device=engine.model.device)
    leases = [pool.lease(split=split, max_tokens=160) for split in splits]
    greedy = SamplingParams()
    entries = [
        BatchEntry(
            lease=lease,
            rows=torch.randn(60 + 11 * index, WIDTH, generator=generator),
            num_logits=1,
        )
        for index, lease in enumerate(leases)
    ]
    ids: list[list[int]] = [[] for _ in splits]
    logits: list[torch.Tensor] = []
    for _ in range(STEPS):
        for index, answer in enumerate(launch(engine, entries).result()):
            if isinstance(answer, Drawn):
                ids[index].append(answer.token_ids[0])
            else:
                logits.append(torch.from_numpy(np.array(answer[-1])))
                ids[index].append(int(answer[-1].argmax()))
        entries = [
            BatchEntry(
                lease=lease,
                rows=table[ids[index][-1]][None],
                num_logits=1,
                drawing=Drawing(params=greedy, position=lease.length + 1) if drawing else None,
            )
            for index, lease in enumerate(leases)
        ]
    for lease in leases:
        lease.close()
    return logits, ids


def _same_bits(engine: GpuEngine) -> bool:
    """Whether a row has the same logits alone and among others, where the bucket is the same."""
    shape = engine.kv_shape
    pool = KvPool(shape, limit_bytes=8 * shape.num_bytes(split=0, max_tokens=96), device="cuda")
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randn(80, WIDTH, generator=generator) for _ in range(7)]
    step = torch.randn(7, 1, WIDTH, generator=generator)
    leases = [pool.lease(split=index % LAYERS, max_tokens=96) for index in range(7)]
    for lease, filling in zip(leases, rows, strict=True):
        engine.forward([BatchEntry(lease=lease, rows=filling, num_logits=0)])

    def logits(which: Sequence[int]) -> Any:
        batch = [BatchEntry(lease=leases[i], rows=step[i], num_logits=1) for i in which]
        answers = launch(engine, batch).result()
        for index in which:
            leases[index].rollback(80)
        return answers

    # Both steps begin at layer 0 and have 5 to 8 rows: one bucket.
    alone, among = logits([0, 4, 1, 2, 3]), logits([6, 4, 3, 5, 0, 2, 1])
    return bool((alone[1] == among[1]).all() and (alone[0] == among[4]).all())


def _error(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, want, strict=True) if len(got))


def _draws() -> dict[str, Any]:
    """Uniform numbers bit-equal, tokens equal, over filters of every kind."""
    from cloud.gpu.random_numbers import uniforms

    random = np.random.default_rng(0)
    seeds = random.integers(0, 1 << 63, 1000, dtype=np.uint64) * 2 + 1
    places = random.integers(0, 1 << 20, 1000)
    got = uniforms(
        torch.from_numpy(seeds.view(np.int64)).cuda(), torch.from_numpy(places).cuda()
    ).tolist()
    bits = got == [uniform(int(s), int(p)) for s, p in zip(seeds, places, strict=True)]
    logits = torch.from_numpy((random.standard_normal((64, 5000)) * 3).astype(np.float32))
    kinds = [
        SamplingParams(
            temperature=(0.7, 1.0, 1.5, 0.2)[i % 4],
            top_p=(1.0, 0.9, 0.5)[i % 3],
            top_k=(0, 0, 5, 40, 1000)[i % 5],
            min_p=(0.0, 0.1)[i % 2],
            seed=i * (1 << 57),
        )
        for i in range(64)
    ]
    rows = [DrawnRow(i, params, i * 3) for i, params in enumerate(kinds)]
    on_device = draw(logits.cuda(), rows).tolist()
    here = [sample(logits[i].numpy(), p, position=i * 3).token_id for i, p in enumerate(kinds)]
    print(f"uniform numbers bit-equal {bits}, drawn tokens equal {on_device == here}", flush=True)
    return {"uniform bits": bits, "drawn tokens": on_device == here}


def _products() -> dict[str, Any]:
    """One row, and 8-bit weights, beside float64."""
    found: dict[str, Any] = {}
    for outputs, inputs in ((6144, 4096), (1000, 300)):
        weight = torch.randn(outputs, inputs, device="cuda") / inputs**0.5
        rows = torch.randn(300, inputs, device="cuda", dtype=torch.bfloat16)
        for kind, codes, scale in (
            ("bf16", weight.bfloat16(), None),
            ("int8", *to_int8(weight)),
            ("fp8", *to_fp8(weight)),
        ):
            whole = codes.double() * (1.0 if scale is None else scale.double()[:, None])
            worst = 0.0
            for count in (1, 3, 64, 300):
                want = rows[:count].double() @ whole.t()
                got = []
                if count == 1:
                    got.append(one_row_linear(rows[:1], codes, scale=scale))
                if scale is not None:
                    got.append(WeightOnlyLinear(codes, scale)(rows[:count]))
                for one in got:
                    worst = max(worst, float((one.double() - want).norm() / want.norm()))
            found[f"{kind} product {outputs} x {inputs}"] = worst < 5e-3
            print(f"{kind} product {outputs} x {inputs}: error {worst:.1e}", flush=True)
    return found
