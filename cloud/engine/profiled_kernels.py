"""The server's kernels as the profiler measures them
(`hwprofiles.profiler.measured_backends.BackKernels`).

Everything here runs the engine's own code, so a profile follows whatever the engine does. Matrices
are the layers that `load_back` makes; on CUDA they run as in a decode step, recorded in a graph.
Stacks are engines with random weights, loaded from a folder like a bundle's. Their steps are a
server's: on CUDA a graph, with tokens drawn there. On CUDA a synchronization follows every call.
This file has never run there.
"""

from __future__ import annotations

import functools
import math
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import safetensors
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig

from cloud.attention.paged import has_triton
from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import compute_dtype, load_back
from cloud.engine.base_code import base_code
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.drawing import Drawing
from cloud.engine.engines import make_engine
from cloud.engine.graph_recorder import CudaRecorder, Recorder
from cloud.engine.int8_linear import Int8Linear, int8_linear, runs_int8
from cloud.engine.launches import launch
from cloud.engine.threads import use_threads
from cloud.kv.pool import KvLease, KvPool
from decoding.params import SamplingParams
from decoding.sampler import verify
from hwprofiles.profiler.measured_backends import Call, SessionLoad, StackShape
from hwprofiles.profiles.engines import Engine

PAGE_SLACK: Final = 64  # tokens more than a session needs: pools may round up


class TorchKernels:
    """See `hwprofiles.profiler.measured_backends.BackKernels`."""

    def __init__(self, device: str = "auto", *, recorder: Recorder | None = None) -> None:
        """device: "cpu", "cuda", or "auto" for CUDA if there. recorder: records the products of
        `matrices`; None: CUDA graphs where the server has them, and nothing elsewhere."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        on_cpu = self._device.type == "cpu"
        self.engine: Engine = "torch-cpu" if on_cpu else "torch-cuda"
        self.accelerator = None if on_cpu else torch.cuda.get_device_name(self._device)
        self.num_threads = use_threads()  # as many as a server on this machine
        # A CPU widens 16 bits to 32 at load.
        self.weight_bits: tuple[int, ...] = (8, 32) if on_cpu else (8, 16, 32)
        self.kv_bits = 32 if on_cpu else 16
        self.runs_int8 = runs_int8(self._device.type)
        if recorder is None and not on_cpu and has_triton():
            recorder = CudaRecorder(self._device)
        self._recorder = recorder

    def versions(self) -> dict[str, str]:
        """See BackKernels."""
        found = {"torch": str(torch.__version__), "transformers": transformers.__version__}
        return {**found, "safetensors": safetensors.__version__}

    def memory_bytes(self) -> tuple[int, int] | None:
        """See BackKernels."""
        if self._device.type == "cpu":
            return None
        free, total = torch.cuda.mem_get_info(self._device)
        return total, free

    def base_code(self) -> str:
        """See BackKernels."""
        return base_code(self._device.type)

    def copy(self, num_bytes: int) -> Call:
        """See BackKernels."""
        source = torch.ones(num_bytes // 4, device=self._device)
        target = torch.empty_like(source)
        return self._finished(lambda: target.copy_(source))

    def matrices(
        self, *, width: int, inner: int, num_pairs: int, weight_bits: int
    ) -> Callable[[int], Call]:
        """See BackKernels."""
        linears = [
            self._linear(inputs, outputs, weight_bits)
            for _ in range(num_pairs)
            for inputs, outputs in ((width, inner), (inner, width))
        ]
        dtype = self._dtype(weight_bits)

        def with_rows(num_rows: int) -> Call:
            rows = torch.randn(num_rows, width, dtype=dtype, device=self._device)

            if self._recorder is not None:
                return self._finished(_recorded(self._recorder, linears, rows))

            @torch.inference_mode()
            def run() -> object:
                hidden = rows
                for linear in linears:
                    hidden = linear(hidden)
                return hidden

            return self._finished(run)

        return with_rows

    def stack(self, shape: StackShape, *, num_layers: int, weight_bits: int) -> TorchStack:
        """See BackKernels."""
        with tempfile.TemporaryDirectory() as folder:
            write_random_back(
                Path(folder), shape, num_layers=num_layers, weight_bits=weight_bits,
                dtype=self._dtype(weight_bits),
            )  # fmt: skip
            model = load_back(Path(folder), first_layer=0, device=self._device)
        engine = make_engine(model)
        return TorchStack(engine, self._finished)

    def sample(self, vocab_size: int) -> Call:
        """See BackKernels. Greedy, as `Session.finish` does."""
        logits = np.random.default_rng(0).standard_normal((1, vocab_size)).astype(np.float32)
        greedy = SamplingParams(temperature=0.0)
        return lambda: (
            np.isfinite(logits).all(),
            verify(logits, (), greedy, position=1, seen=(1,)),
        )

    def _dtype(self, weight_bits: int) -> torch.dtype:
        return compute_dtype(self._device.type, has_float32_matrices=weight_bits == 32)

    def _linear(self, inputs: int, outputs: int, weight_bits: int) -> nn.Module:
        if weight_bits == 8:
            codes, scale = _int8_codes(inputs, outputs)
            layer = int8_linear(
                codes.to(self._device), scale.to(self._device), dtype=self._dtype(weight_bits)
            )
            if isinstance(layer, Int8Linear):
                layer.pack()
            return layer
        linear = nn.Linear(inputs, outputs, bias=False, device=self._device)
        nn.init.normal_(linear.weight, std=1 / math.sqrt(inputs))
        return linear.to(self._dtype(weight_bits)).requires_grad_(False)

    def _finished(self, call: Call) -> Call:
        """`call`, followed by a wait for the device."""
        if self._device.type == "cpu":
            return call

        @functools.wraps(call)
        def run() -> object:
            result = call()
            torch.cuda.synchronize(self._device)
            return result

        return run


class TorchStack:
    """See `hwprofiles.profiler.measured_backends.BackStack`."""

    def __init__(self, engine: BackEngine, finished: Callable[[Call], Call]) -> None:
        self._engine = engine
        self._finished = finished

    def step(self, sessions: Sequence[SessionLoad]) -> Call:
        """See BackStack."""
        engine, shape = self._engine, self._engine.kv_shape
        sizes = [position + rows + PAGE_SLACK for rows, position in sessions]
        limit = sum(shape.num_bytes(split=0, max_tokens=size) for size in sizes)
        pool = KvPool(shape, limit_bytes=limit, device=engine.model.device)
        pool.arena.uniform_(-1, 1)  # reading memory that nobody has written to costs nothing
        batch = []
        for (num_rows, position), size in zip(sessions, sizes, strict=True):
            lease = pool.lease(split=0, max_tokens=size - PAGE_SLACK)
            lease.length = position
            rows = torch.randn(num_rows, engine.hidden_size)
            greedy = Drawing(params=SamplingParams(), position=position + num_rows)
            batch.append(BatchEntry(lease=lease, rows=rows, num_logits=1, drawing=greedy))

        def run() -> object:
            answers = launch(engine, batch).result()
            for entry, load in zip(batch, sessions, strict=True):
                entry.lease.rollback(load.position)
            return answers

        # The engine knows sessions until they are closed: these end with their call.
        weakref.finalize(run, _close_all, [entry.lease for entry in batch])
        return self._finished(run)


@torch.inference_mode()
def _recorded(record: Recorder, linears: Sequence[nn.Module], rows: Tensor) -> Call:
    """The products one after the other, recorded as those of a decode step are."""
    from cloud.engine.gpu_layer import product  # Triton, which no CPU server needs

    def run() -> tuple[Tensor, Tensor]:
        hidden = rows
        for linear in linears:
            hidden = product(linear, hidden)
        return hidden, hidden

    return record(run).replay


def _close_all(leases: Sequence[KvLease]) -> None:
    for lease in leases:
        lease.close()


def write_random_back(
    folder: Path, shape: StackShape, *, num_layers: int, weight_bits: int, dtype: torch.dtype
) -> None:
    """A bundle's `cloud/` folder of a Llama of this shape: every matrix of random weights."""
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=1 << 14,
        tie_word_embeddings=False,
    )
    config.save_pretrained(folder)
    width, inner = shape.width, shape.inner
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    of_layer = {
        "self_attn.q_proj": (width, queries),
        "self_attn.k_proj": (width, keys),
        "self_attn.v_proj": (width, keys),
        "self_attn.o_proj": (queries, width),
        "mlp.gate_proj": (width, inner),
        "mlp.up_proj": (width, inner),
        "mlp.down_proj": (inner, width),
    }
    tensors = {"model.norm.weight": torch.ones(width, dtype=dtype)}
    matrices = {"lm_head": (width, shape.vocab_size)}
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        matrices |= {f"{prefix}.{name}": size for name, size in of_layer.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(width, dtype=dtype)
    for name, (inputs, outputs) in matrices.items():
        if weight_bits == 8:
            codes, scale = _int8_codes(inputs, outputs)
            tensors[f"{name}.weight.int8"] = codes
            tensors[f"{name}.weight.scale"] = scale
        else:
            weight = torch.randn(outputs, inputs) / math.sqrt(inputs)
            tensors[f"{name}.weight"] = weight.to(dtype)
    save_file(tensors, folder / "back-00001.safetensors")


def _int8_codes(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Zero-mean codes [out, in], and scales [out] that keep activations near 1 along a chain."""
    codes = torch.from_numpy(np.resize(_drawn_codes(), (outputs, inputs)))
    return codes, torch.full((outputs,), math.sqrt(3 / inputs) / 127)


@functools.cache
def _drawn_codes() -> npt.NDArray[np.int8]:
    """A prime number of codes, so that repeating them fills no matrix with equal rows: drawing all
    of a matrix takes as long as timing it."""
    return np.random.default_rng(0).integers(-127, 128, 65_521, dtype=np.int8)
