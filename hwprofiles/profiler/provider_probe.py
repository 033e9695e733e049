"""Which parts of a front a provider runs itself, asked of ONNX Runtime with tiny graphs."""

from __future__ import annotations

from typing import Final, Literal

from hwprofiles.errors import UnknownKernelError
from hwprofiles.profiler.kernel_graphs import attention_stack, lookup, matmul_chain
from hwprofiles.profiler.kernel_runs import KernelSettings, open_kernels
from hwprofiles.providers.table import ExecutionProvider

PartRunner = Literal["provider", "cpu", "nobody"]

KV_BITS: Final = (8, 16, 32)
WEIGHT_BITS: Final = (4, 8)


def parts_run(provider: ExecutionProvider) -> dict[str, PartRunner]:
    """The parts of a front by name, and who runs each with this provider. "nobody": a part that
    this ONNX Runtime is too old for. Raises ProviderError for a provider that does not start."""
    graphs = {
        f"{bits}-bit products": matmul_chain(
            width=64, inner=64, num_pairs=1, weight_bits=bits, compute="int8"
        )
        for bits in WEIGHT_BITS
    }
    graphs |= {
        f"attention over a {bits}-bit cache": attention_stack(
            num_heads=2, num_kv_heads=1, head_dim=32, num_layers=1, kv_bits=bits
        )
        for bits in KV_BITS
    }
    graphs["the embedding"] = lookup(width=64, num_rows=16, weight_bits=8)
    return {part: _runner(graph, provider) for part, graph in graphs.items()}


def parts_text(parts: dict[str, PartRunner], runner: PartRunner) -> str:
    """The parts of one runner, for people; empty where there are none."""
    return ", ".join(part for part, who in parts.items() if who == runner)


def _runner(graph: bytes, provider: ExecutionProvider) -> PartRunner:
    try:
        placement = open_kernels(graph, KernelSettings(1, provider)).placement
    except UnknownKernelError:
        return "nobody"
    return "provider" if placement.is_known and placement.num_on_cpu == 0 else "cpu"
