"""Is the engine on CUDA right? Small models with random weights beside the CPU's engine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.server.gpu_machine import CudaMachine
from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.device_sampler import DrawnRow, draw
from cloud.engine.drawing import Drawing, Drawn
from cloud.engine.gpu_engine import GpuEngine
from cloud.engine.int4_linear import Int4Linear, from_int4, to_int4
from cloud.engine.launches import launch
from cloud.engine.weight_only_linear import WeightOnlyLinear, to_fp8, to_int8
from cloud.gpu.one_row import one_row_linear
from cloud.kv.pool import KvPool
from decoding.params import SamplingParams
from decoding.sampler import sample, uniform


class ParityScale(NamedTuple):
    """shape: fields of a configuration that all families share. steps: tokens of an answer.
    prompt: tokens of the shortest. window: of the families that have one."""

    shape: dict[str, Any]
    steps: int
    prompt: int
    window: int

    @property
    def width(self) -> int:
        """D, the width of the residual stream."""
        return int(self.shape["hidden_size"])

    @property
    def layers(self) -> int:
        """How many decoder layers."""
        return int(self.shape["num_hidden_layers"])


FULL_PARITY: Final = ParityScale(
    {
        "vocab_size": 1000,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    steps=12,
    prompt=60,
    window=48,
)
DRY_PARITY: Final = ParityScale(
    {
        **FULL_PARITY.shape,
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    steps=2,
    prompt=5,
    window=4,
)
FAMILIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {}),
    "qwen2": ("Qwen2Config", {}),
    "mistral": ("MistralConfig", {}),
    "gemma2": ("Gemma2Config", {}),
    "gemma3": ("Gemma3TextConfig", {}),
    "phi3": ("Phi3Config", {"pad_token_id": 0}),
    "gpt-oss": ("GptOssConfig", {"num_local_experts": 4}),
}
BASIC_FAMILY: Final = "llama"
WITH_WINDOW: Final = ("mistral", "gemma2", "gemma3", "gpt-oss")
MAX_PRODUCT_ERROR: Final = 5e-3  # bfloat16
MAX_FP8_KV_ERROR: Final = 0.1  # 8-bit keys and values: 3 bits of mantissa
MAX_ERROR: Final = 2e-4  # float32, relative


def check_family(machine: CudaMachine, scale: ParityScale, name: str) -> dict[str, Any]:
    """Every comparison's name: True where it holds, or a figure."""
    config, extra = FAMILIES[name]
    if name in WITH_WINDOW:
        extra = {**extra, "sliding_window": scale.window}
    torch.manual_seed(0)
    kind = getattr(transformers, config)
    model = AutoModelForCausalLM.from_config(kind(**scale.shape, **extra))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return _Family(machine, scale, Path(folder)).compare(name)


class _Family:
    """Engines over one model, on the CPU and on the device."""

    def __init__(self, machine: CudaMachine, scale: ParityScale, folder: Path) -> None:
        self._machine, self._scale, self._folder = machine, scale, folder

    def compare(self, name: str) -> dict[str, Any]:
        """See `check_family`."""
        cpu = BackEngine(load_back(self._folder, first_layer=0))
        gpu = self._engine(torch.float32)
        layers = self._scale.layers
        worst, same = 0.0, True
        for split in range(layers):
            want_logits, want_ids = self._generate(cpu, [split])
            got_logits, got_ids = self._generate(gpu, [split])
            worst = max(worst, _error(got_logits, want_logits))
            same &= got_ids == want_ids
        splits = [split % layers for split in (0, 3, 1, 2, 0, 1)]
        together_logits, together_ids = self._generate(gpu, splits)
        want_logits, want_ids = self._generate(cpu, splits)
        worst = max(worst, _error(together_logits, want_logits))
        same &= together_ids == want_ids
        drawn = self._generate(gpu, splits, drawing=True)[1]
        bits = self._same_bits(self._engine(self._machine.half))
        print(
            f"{name}: {gpu.num_gpu_layers} of {layers} layers in kernels, {gpu.num_graphs} graphs, "
            f"error {worst:.1e}, tokens equal {same}, drawn on the device equal "
            f"{drawn == together_ids}, same bits in a bucket {bits}",
            flush=True,
        )
        return {
            f"{name}: logits": worst < MAX_ERROR,
            f"{name}: tokens": same,
            f"{name}: drawn": drawn == together_ids,
            f"{name}: bits in a bucket": bits,
            f"{name}: error": worst,
            f"{name}: layers in kernels": gpu.num_gpu_layers,
            f"{name}: graphs": gpu.num_graphs,
            **self._with_short_keys(name, want_logits),
        }

    def _with_short_keys(self, name: str, want: Sequence[Tensor]) -> dict[str, Any]:
        """8-bit keys and values, where the device has such numbers."""
        if not self._machine.has_fp8:
            return {}
        splits = [split % self._scale.layers for split in (0, 3, 1, 2, 0, 1)]
        short = self._engine(self._machine.half, torch.float8_e4m3fn)
        first = len(splits)  # the prefill's: later ones follow tokens that may differ
        error = _error(self._generate(short, splits)[0][:first], want[:first])
        return {
            f"{name}: 8-bit keys and values": error < MAX_FP8_KV_ERROR,
            f"{name}: error with 8-bit keys and values": error,
        }

    def _engine(self, dtype: torch.dtype, kv_dtype: torch.dtype | None = None) -> GpuEngine:
        model = load_back(self._folder, first_layer=0, device=self._machine.device, dtype=dtype)
        return GpuEngine(model, recorder=self._machine.recorder, kv_dtype=kv_dtype)

    def _generate(
        self, engine: BackEngine, splits: Sequence[int], *, drawing: bool = False
    ) -> tuple[list[Tensor], list[list[int]]]:
        """Greedy decoding of one session a split, all in one batch; rows stand for token ids."""
        generator = torch.Generator().manual_seed(7)
        width = self._scale.width
        table = torch.randn(self._scale.shape["vocab_size"], width, generator=generator)
        shape = engine.kv_shape
        room = sum(shape.num_bytes(split=split, max_tokens=160) for split in splits)
        pool = KvPool(shape, limit_bytes=room, device=engine.model.device)
        leases = [pool.lease(split=split, max_tokens=160) for split in splits]
        greedy = SamplingParams()
        entries = [
            BatchEntry(
                lease=lease,
                rows=torch.randn(
                    self._scale.prompt + self._scale.prompt // 5 * index, width, generator=generator
                ),
                num_logits=1,
            )
            for index, lease in enumerate(leases)
        ]
        ids: list[list[int]] = [[] for _ in splits]
        logits: list[Tensor] = []
        for _ in range(self._scale.steps):
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

    def _same_bits(self, engine: GpuEngine) -> bool:
        """Whether a row has the same logits alone and among others, in one bucket."""
        shape, scale = engine.kv_shape, self._scale
        room = 8 * shape.num_bytes(split=0, max_tokens=96)
        pool = KvPool(shape, limit_bytes=room, device=self._machine.device)
        generator = torch.Generator().manual_seed(3)
        filled = scale.prompt + scale.prompt // 3
        rows = [torch.randn(filled, scale.width, generator=generator) for _ in range(7)]
        step = torch.randn(7, 1, scale.width, generator=generator)
        leases = [pool.lease(split=index % scale.layers, max_tokens=96) for index in range(7)]
        for lease, filling in zip(leases, rows, strict=True):
            engine.forward([BatchEntry(lease=lease, rows=filling, num_logits=0)])

        def logits(which: Sequence[int]) -> Any:
            batch = [BatchEntry(lease=leases[i], rows=step[i], num_logits=1) for i in which]
            answers = launch(engine, batch).result()
            for index in which:
                leases[index].rollback(filled)
            return answers

        # Both steps begin at layer 0 and have 5 to 8 rows: one bucket.
        alone, among = logits([0, 4, 1, 2, 3]), logits([6, 4, 3, 5, 0, 2, 1])
        return bool((alone[1] == among[1]).all() and (alone[0] == among[4]).all())


def _error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, want, strict=True) if len(got))


def check_draws(machine: CudaMachine) -> dict[str, Any]:
    """Uniform numbers bit-equal, tokens equal, over filters of every kind."""
    from cloud.gpu.random_numbers import uniforms

    random = np.random.default_rng(0)
    seeds = random.integers(0, 1 << 63, 1000, dtype=np.uint64) * 2 + 1
    places = random.integers(0, 1 << 20, 1000)
    device = machine.device
    got = uniforms(
        torch.from_numpy(seeds.view(np.int64)).to(device), torch.from_numpy(places).to(device)
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
    on_device = draw(logits.to(device), rows).tolist()
    here = [sample(logits[i].numpy(), p, position=i * 3).token_id for i, p in enumerate(kinds)]
    print(f"uniform numbers bit-equal {bits}, drawn tokens equal {on_device == here}", flush=True)
    return {"uniform bits": bits, "drawn tokens": on_device == here}


def check_products(machine: CudaMachine) -> dict[str, Any]:
    """One row, and weights of few bits, beside float64. "bits": whether a row has the same in all
    batches of one tile; "all bits", which nobody promises, whether in batches of any size."""
    found: dict[str, Any] = {}
    device, half = machine.device, machine.half
    shapes = ((96, 64), (50, 70)) if machine.is_dry else ((6144, 4096), (1000, 300))
    for outputs, inputs in shapes:
        weight = torch.randn(outputs, inputs, device=device) / inputs**0.5
        rows = torch.randn(70 if machine.is_dry else 300, inputs, device=device, dtype=half)
        kinds = {"bf16": (weight.to(half), None), "int8": to_int8(weight)}
        if machine.has_fp8:
            kinds["fp8"] = to_fp8(weight)
        for kind, (codes, scale) in kinds.items():
            name = f"{kind} product {outputs} x {inputs}"
            worst = _product_error(rows, codes, scale)
            found[name] = worst < MAX_PRODUCT_ERROR
            if scale is not None:
                found |= _product_bits(name, rows, WeightOnlyLinear(codes, scale))
            print(f"{name}: error {worst:.1e}", flush=True)
        found |= _check_int4(f"int4 product {outputs} x {inputs}", rows, weight)
    return found


def _check_int4(name: str, rows: Tensor, weight: Tensor) -> dict[str, Any]:
    linear = Int4Linear(*to_int4(weight), width=weight.shape[1])
    whole = from_int4(linear.codes, linear.scale, linear.low, weight.shape[1]).double()
    worst = 0.0
    for count in (1, 3, 64, len(rows)):
        want = rows[:count].double() @ whole.t()
        worst = max(worst, float((linear(rows[:count]).double() - want).norm() / want.norm()))
    print(f"{name}: error {worst:.1e}", flush=True)
    return {name: worst < MAX_PRODUCT_ERROR, **_product_bits(name, rows, linear)}


def _product_error(rows: Tensor, codes: Tensor, scale: Tensor | None) -> float:
    whole = codes.double() * (1.0 if scale is None else scale.double()[:, None])
    worst = 0.0
    for count in (1, 3, 64, len(rows)):
        want = rows[:count].double() @ whole.t()
        got = []
        if count == 1:
            got.append(one_row_linear(rows[:1], codes, scale=scale))
        if scale is not None:
            got.append(WeightOnlyLinear(codes, scale)(rows[:count]))
        for one in got:
            worst = max(worst, float((one.double() - want).norm() / want.norm()))
    return worst


def _product_bits(name: str, rows: Tensor, linear: nn.Module) -> dict[str, Any]:
    small, middle, large = linear(rows[:9]), linear(rows[:20]), linear(rows)
    within = (
        torch.equal(small[:3], linear(rows[:3]))
        and torch.equal(middle[:17], linear(rows[:17]))
        and torch.equal(large[:65], linear(rows[:65]))
    )
    across = torch.equal(small, middle[:9]) and torch.equal(middle, large[:20])
    return {f"{name}: bits": within, f"{name}: all bits": "same" if across else "not the same"}
