"""Run the probe graphs in ONNX Runtime and time them; the only file here that imports it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from hwprofiles.errors import ProviderError, UnknownKernelError
from hwprofiles.profiler.kernel_graphs import (
    DecoderLayers,
    attention_stack,
    decoder_stack,
    half_product,
    lookup,
    matmul_chain,
    step_skeleton,
)
from hwprofiles.profiler.onnx_writer import FLOAT, GraphWriter
from hwprofiles.profiler.timing import Timing, measure
from hwprofiles.profiles.device import Compute
from hwprofiles.providers.sessions import ATTENTION, ProviderSession, open_session
from hwprofiles.providers.table import CPU, PROVIDERS, ExecutionProvider


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """How kernels run: on how many threads, and on which provider."""

    num_threads: int
    provider: ExecutionProvider = CPU


def versions() -> dict[str, str]:
    """Versions of the libraries whose kernels are measured."""
    return {"onnxruntime": ort.__version__, "numpy": np.__version__}


def touch_kernels(provider: str = CPU.name) -> None:
    """Run each kind of kernel once on tiny tensors, so that its code is in memory."""
    settings = KernelSettings(2, PROVIDERS[provider])
    kinds: tuple[tuple[int, Compute], ...] = ((4, "int8"), (8, "int8"), (32, "fp32"))
    for bits, compute in kinds:
        time_matmul(
            width=64, inner=64, num_pairs=1, num_rows=(1, 2), weight_bits=bits,
            compute=compute, settings=settings, budget_s=0.0,
        )  # fmt: skip
    time_attention(
        num_heads=2, num_kv_heads=1, head_dim=32, num_layers=1, kv_bits=32,
        cases=((1, 4), (4, 8)), settings=settings, budget_s=0.0,
    )  # fmt: skip


def open_kernels(model: bytes, settings: KernelSettings) -> ProviderSession:
    """A session with the settings of the edge's front engine: idle threads do not spin, so waking
    them is part of what a kernel costs. The CPU runs what the provider cannot, as on the edge.

    Raises ProviderError, and UnknownKernelError where neither knows a kernel of the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return open_session(
            model, options, settings.provider, threads=settings.num_threads, may_run_none=True
        )
    except ProviderError:
        raise
    except Exception as error:  # ONNX Runtime raises many kinds, none of them exported
        raise UnknownKernelError(f"onnxruntime {ort.__version__} refuses: {error}") from error


def run_half_product(
    rows: NDArray[np.float16], matrix: NDArray[np.float16], settings: KernelSettings
) -> NDArray[np.float32]:
    """Rows [T, K] times a matrix [K, N], asked for in 16 bits. Raises as `open_kernels`."""
    graph = GraphWriter()
    graph.input("x", FLOAT, ["rows", matrix.shape[0]])
    half_product(graph, "x", "y", matrix)
    graph.output("y", FLOAT, ["rows", matrix.shape[1]])
    session = open_kernels(graph.model(), settings).session
    product: NDArray[np.float32] = session.run(["y"], {"x": rows.astype(np.float32)})[0]
    return product


def time_matmul(
    *,
    width: int,
    inner: int,
    num_pairs: int,
    num_rows: tuple[int, ...],
    weight_bits: int,
    compute: Compute,
    settings: KernelSettings,
    budget_s: float,
) -> list[Timing]:
    """One matrix chain, timed at each number of rows."""
    model = matmul_chain(
        width=width, inner=inner, num_pairs=num_pairs, weight_bits=weight_bits, compute=compute
    )
    session = open_kernels(model, settings).session
    rng = np.random.default_rng(1)
    timings = []
    for rows in num_rows:
        x = rng.standard_normal((rows, width)).astype(np.float32)
        timings.append(measure(_bound(session, {"x": x}), budget_s=budget_s))
    return timings


def time_attention(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_layers: int,
    kv_bits: int,
    cases: tuple[tuple[int, int], ...],
    settings: KernelSettings,
    budget_s: float,
) -> list[Timing]:
    """One stack of attention layers, timed for each (new rows, tokens with the new ones)."""
    model = attention_stack(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        num_layers=num_layers,
        kv_bits=kv_bits,
    )
    opened = open_kernels(model, settings)
    kind = {8: np.int8, 16: np.float16, 32: np.float32}[kv_bits]
    outer = np.float16 if kv_bits == 16 else np.float32
    capacity = max(total for _, total in cases)
    caches = {
        f"{part}_{layer}": _cache(
            np.ones((1, num_kv_heads, capacity, head_dim), dtype=kind), opened, settings
        )
        for layer in range(num_layers)
        for part in ("key", "value")
    }
    rng = np.random.default_rng(1)
    packed = (num_heads + 2 * num_kv_heads) * head_dim
    timings = []
    for rows, total in cases:
        feeds: dict[str, NDArray[np.generic]] = {
            "qkv": rng.standard_normal((1, rows, packed)).astype(outer),
            "past_length": np.array([total - 1], dtype=np.int32),
            "total_length": np.array(total, dtype=np.int32),
        }
        timings.append(measure(_bound(opened.session, feeds, caches), budget_s=budget_s))
    return timings


def time_lookup(
    *, width: int, num_rows: int, weight_bits: int, settings: KernelSettings, budget_s: float
) -> Timing:
    """The embedding's look-up of `num_rows` rows."""
    session = open_kernels(
        lookup(width=width, num_rows=1024, weight_bits=weight_bits), settings
    ).session
    ids = np.arange(num_rows, dtype=np.int64)[None, :]
    return measure(_bound(session, {"ids": ids}), budget_s=budget_s)


def time_decoder(
    layers: DecoderLayers,
    *,
    cases: tuple[tuple[int, int], ...],
    settings: KernelSettings,
    budget_s: float,
) -> list[Timing]:
    """Whole decoder layers, timed for each (new rows, tokens with the new ones)."""
    calls = decoder_calls(layers, cases=cases, settings=settings)
    return [measure(call, budget_s=budget_s) for call in calls]


def decoder_calls(
    layers: DecoderLayers, *, cases: tuple[tuple[int, int], ...], settings: KernelSettings
) -> list[Callable[[], None]]:
    """One stack of decoder layers, as a call for each (new rows, tokens with the new ones)."""
    opened = open_kernels(decoder_stack(layers), settings)
    shape = (1, layers.num_kv_heads, max(total for _, total in cases), layers.head_dim)
    caches = {
        f"{part}_{layer}": _cache(np.ones(shape, dtype=np.float32), opened, settings)
        for layer in range(layers.num_layers)
        for part in ("key", "value")
    }
    rng = np.random.default_rng(1)
    calls = []
    for rows, total in cases:
        feeds: dict[str, NDArray[np.generic]] = {
            "x": rng.standard_normal((1, rows, layers.width)).astype(np.float32),
            "past_length": np.array([total - 1], dtype=np.int32),
            "total_length": np.array(total, dtype=np.int32),
        }
        calls.append(_bound(opened.session, feeds, caches))
    return calls


def time_step(*, settings: KernelSettings, budget_s: float) -> Timing:
    """One `step_call`."""
    return measure(step_call(settings), budget_s=budget_s)


def step_call(settings: KernelSettings) -> Callable[[], None]:
    """One empty forward pass, inputs bound anew and everything checked as a decoding step does."""
    session = open_kernels(step_skeleton(), settings).session
    ids = np.ones((1, 1), dtype=np.int64)
    binding = session.io_binding()

    def call() -> None:
        if ids.min() < 0 or ids.max() >= 1024:  # the checks of the front's engine take as long
            raise ValueError("unknown token")
        binding.bind_cpu_input("ids", ids)
        binding.bind_cpu_input("past_length", np.array([511], dtype=np.int32))
        binding.bind_cpu_input("total_length", np.array(512, dtype=np.int32))
        rows = np.empty((1, 1, 512), dtype=np.float32)
        binding.bind_output("y", "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
        session.run_with_iobinding(binding)
        if not np.isfinite(rows).all():
            raise ValueError("broken rows")

    return call


def _cache(
    values: NDArray[np.generic], opened: ProviderSession, settings: KernelSettings
) -> ort.OrtValue:
    """Keys or values where the front keeps them: on the device of the node that appends to them."""
    is_left = opened.placement.leaves(ATTENTION)
    device = CPU.device if is_left else settings.provider.device
    return ort.OrtValue.ortvalue_from_numpy(values, device)


def _bound(
    session: ort.InferenceSession,
    feeds: Mapping[str, NDArray[np.generic]],
    caches: dict[str, ort.OrtValue] | None = None,
) -> Callable[[], None]:
    """A call of `session` with everything bound; past and present share one buffer."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    for name, cache in (caches or {}).items():
        binding.bind_ortvalue_input(f"past_{name}", cache)
        binding.bind_ortvalue_output(f"present_{name}", cache)
    bound = {f"present_{name}" for name in caches or {}}
    for output in session.get_outputs():
        if output.name not in bound:
            binding.bind_output(output.name)

    def call() -> None:
        session.run_with_iobinding(binding)

    return call
