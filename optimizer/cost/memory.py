"""Peak bytes of the edge process, part by part.

    peak = runtime + weights + embedding + codec + KV + max(workspace, head leftover)

Source: B_kv is arXiv:2511.04002's; the rest is ours, from how ONNX Runtime loads a front.
Weights stay memory-mapped files, but kernels re-pack their matrices into memory of their own, so a
weight costs more than its bits: at 4 bits (codes 1/2 + scales, block sums and the file's scales of
4/32 each) times the allocator's rounding. The factors were measured with onnxruntime 1.32 on
x86-64 (difference between fronts of 3, 10 and 20 layers; `benchmarks/planning/predict_edge.py`
checks them anew). The embedding is read in place, a page at a time.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from codec.levels.registry import kind_of, rotation_bytes
from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import Plan
from optimizer.cost.weights import (
    FP32_BYTES,
    embedding_bytes,
    layer_matrices,
    layer_vector_bytes,
)

# Resident bytes a weight, measured. 16 bits are widened to 32 at load.
RESIDENT_BYTES_PER_WEIGHT = {4: 0.951, 8: 1.43, 16: 4.041, 32: 4.041}
# A kernel that maps its file a page at a time maps up to 16 neighbours with it (fault-around).
FAULT_BYTES = 64 << 10
# Live activations a row, in floats: 3 I + 4 D + qkv; the arena keeps about twice that, because
# chunks of several sizes leave gaps and it grows by powers of two.
ARENA_FACTOR = 2.1
# The tokenizer's tables, by entry of the vocabulary: measured with tokenizers 0.23 on SmolLM2's
# 49,152 (byte-level BPE).
TOKENIZER_BYTES_PER_TOKEN = 600.0
# Packing a vocabulary-sized head: bytes a weight that are freed again only after loading, and
# bytes that stay with the allocator, where later steps reuse them.
HEAD_TRANSIENT_BYTES_PER_WEIGHT = {4: 0.2, 8: 0.72, 16: 4.0, 32: 4.0}
HEAD_LEFTOVER_BYTES_PER_WEIGHT = {4: 0.38, 8: 0.38, 16: 0.0, 32: 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeMemory:
    """Peak bytes of one edge process, by part. `load_peak_bytes` is the peak while loading."""

    runtime_bytes: float
    weight_bytes: float
    embedding_bytes: float
    kv_bytes: float
    workspace_bytes: float
    head_leftover_bytes: float
    load_peak_bytes: float
    codec_bytes: float = 0.0

    @property
    def total_bytes(self) -> float:
        """The high-water mark: of running at the longest sequence, or of loading."""
        steady = self.runtime_bytes + self.weight_bytes + self.embedding_bytes + self.kv_bytes
        steady += self.codec_bytes
        return max(
            steady + max(self.workspace_bytes, self.head_leftover_bytes), self.load_peak_bytes
        )

    @property
    def above_base_bytes(self) -> float:
        """What the model adds to a process with nothing loaded."""
        return self.total_bytes - self.runtime_bytes


def workspace_bytes(geometry: ModelGeometry, num_rows: int) -> float:
    """Activations of one forward pass of `num_rows` rows, as the arena holds them."""
    packed = (geometry.num_heads + 2 * geometry.num_kv_heads) * geometry.head_dim
    floats = 3 * geometry.intermediate_size + 4 * geometry.hidden_size + packed
    return ARENA_FACTOR * FP32_BYTES * floats * num_rows


def touched_bytes(table_bytes: float, num_tokens: float) -> float:
    """Bytes of a mapped table after `num_tokens` evenly drawn look-ups, each of which maps the
    64 KiB around it: S (1 - exp(-n 64 KiB / S)), balls into boxes."""
    return table_bytes * -math.expm1(-num_tokens * FAULT_BYTES / table_bytes)


def edge_memory(device: DeviceProfile, plan: Plan) -> EdgeMemory:
    """Peak memory of the edge process of `plan`, at its longest sequence, on `device`: the device's
    empty process, tokenizer and codec tables are its runtime."""
    geometry = plan.model.geometry
    runtime = edge_runtime_bytes(device, geometry, whole=plan.edge_is_whole)
    return edge_memory_over(runtime, plan)


def edge_runtime_bytes(
    device: DeviceProfile, geometry: ModelGeometry, *, whole: bool = False
) -> float:
    """What the process takes before it loads the front; a `whole` edge needs no codec."""
    runtime = device.memory.runtime_base_bytes.value
    runtime += TOKENIZER_BYTES_PER_TOKEN * geometry.vocab_size
    return runtime if whole else runtime + rotation_bytes(geometry.hidden_size)


def codec_bytes(geometry: ModelGeometry, level: str, num_tokens: float) -> float:
    """Pages of the level's mapped tables that `num_tokens` tokens touch."""
    table = kind_of(level).prediction_bytes(geometry.vocab_size, geometry.hidden_size)
    return touched_bytes(table, num_tokens) if table else 0.0


def edge_memory_over(runtime_bytes: float, plan: Plan) -> EdgeMemory:
    """The same for a process that takes `runtime_bytes` before it loads the front.

    Of the embedding, the part that `max_tokens` tokens drawn evenly from the vocabulary touch
    counts; text repeats its tokens and touches less.
    """
    geometry, split = plan.model.geometry, plan.partition.split
    bits = plan.partition.front_bits
    resident = RESIDENT_BYTES_PER_WEIGHT[bits]
    per_layer = sum(matrix.num_weights for matrix in layer_matrices(geometry))
    layers = Counter(plan.layer_bits)
    weights: float = split * layer_vector_bytes(geometry) + sum(
        count * per_layer * RESIDENT_BYTES_PER_WEIGHT[layer_bits]
        for layer_bits, count in layers.items()
    )
    head_weights = geometry.vocab_size * geometry.hidden_size if plan.edge_is_whole else 0
    weights += head_weights * resident
    leftover = head_weights * HEAD_LEFTOVER_BYTES_PER_WEIGHT[bits]
    transient = head_weights * HEAD_TRANSIENT_BYTES_PER_WEIGHT[bits]
    return EdgeMemory(
        runtime_bytes=runtime_bytes,
        weight_bytes=weights,
        embedding_bytes=touched_bytes(embedding_bytes(geometry, bits), plan.max_tokens),
        kv_bytes=plan.front_kv_bytes(),
        workspace_bytes=workspace_bytes(geometry, plan.prefill_chunk),
        head_leftover_bytes=leftover,
        load_peak_bytes=runtime_bytes + weights + leftover + transient,
        codec_bytes=0.0
        if plan.edge_is_whole
        else codec_bytes(geometry, plan.level, plan.max_tokens),
    )
