"""Peak bytes of the edge process, part by part.

    peak = max(runtime + weights + embedding + codec + KV + workspace, loading)

Source: B_kv is arXiv:2511.04002's; the rest is ours, from how ONNX Runtime loads a front.
The kernels pack each matrix of the mapped file into memory of their own, and the file's pages are
given back. So weights are in memory once, and a scale and a sum of each block with them
(`front_kernels.py`). While a front is loaded, the file's scales stay mapped, and so does the matrix
that is being packed. The embedding is read in place, a page at a time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from codec.levels.registry import kind_of, rotation_bytes
from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.rates import Floats, Quantity
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import Plan
from optimizer.cost.front_kernels import block_size, front_kernel, halves_on
from optimizer.cost.streaming import HELD_LAYERS, packed_layer_bytes, streamed_places
from optimizer.cost.weights import (
    FP32_BYTES,
    PackedMatrix,
    embedding_bytes,
    head_matrix,
    layer_vector_bytes,
    packed_layer,
)

# A kernel that maps its file a page at a time maps up to 16 neighbours with it (fault-around).
FAULT_BYTES: Final = 64 << 10
# Live activations a row, in floats: 3 I + 4 D + qkv; the arena keeps about twice that, because
# chunks of several sizes leave gaps and it grows by powers of two.
ARENA_FACTOR: Final = 2.1
# The tokenizer's tables, by entry of the vocabulary: measured with tokenizers 0.23 on SmolLM2's
# 49,152 (byte-level BPE).
TOKENIZER_BYTES_PER_TOKEN: Final = 600.0
# A streamed layer: its open session, and of its packed bytes what packing it takes beside the two
# layers that count anyway. Measured with onnxruntime 1.32 on x86-64.
OPEN_LAYER_BYTES: Final = 0.3e6
LOADING_FACTOR: Final = 1.0
# Under a limit a process gives pages of files back before it loads the front, and then touches this
# much of the libraries' code again: measured with onnxruntime 1.32 and grpcio 1.85 on x86-64 Linux.
RUNNING_CODE_BYTES: Final = 30 << 20
TRIMMED_BYTES: Final = 4 << 20  # of its heap that starting had used, given back as well
RELEASE_ROWS: Final = 8  # it gives the tables' pages back after so many rows
# Text repeats its tokens, and frequent ones lie together: n tokens map as many pages as a n^b that
# are drawn evenly. Measured with SmolLM2's tokenizer on 50,000 tokens of English documentation, for
# 128 to 8,192 tokens; rounded up, so that it errs by a tenth of the pages on the safe side.
TEXT_FACTOR: Final = 3.0
TEXT_EXPONENT: Final = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeMemory:
    """Peak bytes of one edge process, by part. `load_peak_bytes` is the peak while loading."""

    runtime_bytes: float
    weight_bytes: float
    embedding_bytes: float
    kv_bytes: float
    workspace_bytes: float
    load_peak_bytes: float
    codec_bytes: float = 0.0
    draft_bytes: float = 0.0

    @property
    def total_bytes(self) -> float:
        """The high-water mark: see `peak_bytes`."""
        return float(peak_bytes(**{item.name: getattr(self, item.name) for item in fields(self)}))


def peak_bytes(
    *,
    runtime_bytes: Quantity,
    weight_bytes: Quantity,
    embedding_bytes: Quantity,
    kv_bytes: Quantity,
    workspace_bytes: Quantity,
    load_peak_bytes: Quantity,
    codec_bytes: Quantity = 0.0,
    draft_bytes: Quantity = 0.0,
) -> Floats:
    """The high-water mark of a process, or of many (arrays): of running at the longest sequence, or
    of loading the front. A drafter is loaded before either."""
    steady = runtime_bytes + weight_bytes + kv_bytes + embedding_bytes + codec_bytes
    return np.asarray(np.maximum(steady + workspace_bytes, load_peak_bytes) + draft_bytes)


def workspace_bytes(geometry: ModelGeometry, num_rows: int) -> float:
    """Activations of one forward pass of `num_rows` rows, as the arena holds them."""
    packed = (geometry.num_heads + 2 * geometry.num_kv_heads) * geometry.head_dim
    floats = 3 * geometry.intermediate_size + 4 * geometry.hidden_size + packed
    return ARENA_FACTOR * FP32_BYTES * floats * num_rows


def pages_touched(table_bytes: Quantity, num_tokens: Quantity) -> Floats:
    """Bytes of mapped tables after the look-ups of `num_tokens` tokens of text, each of which maps
    the 64 KiB around it: S (1 - exp(-m 64 KiB / S)), balls into boxes, with m of `TEXT_FACTOR`."""
    size = np.maximum(table_bytes, 1.0)
    tokens = np.asarray(num_tokens, dtype=np.float64)
    drawn = np.minimum(tokens, TEXT_FACTOR * tokens**TEXT_EXPONENT)
    return np.asarray(table_bytes * -np.expm1(-drawn * FAULT_BYTES / size))


def touched_bytes(table_bytes: float, num_tokens: float) -> float:
    """`pages_touched` of one table."""
    return float(pages_touched(table_bytes, num_tokens))


def edge_memory(device: DeviceProfile, plan: Plan) -> EdgeMemory:
    """Peak memory of the edge process of `plan`, at its longest sequence, on `device`: the device's
    empty process, tokenizer and codec tables are its runtime."""
    geometry = plan.model.geometry
    runtime = edge_runtime_bytes(
        device, geometry, whole=plan.edge_is_whole, limited=is_limited(plan)
    )
    start = edge_runtime_bytes(device, geometry, whole=plan.edge_is_whole)
    is_wide = plan.exact_front or plan.streamed_layers > 0
    halves = halves_on(device, geometry, exact=is_wide)
    return edge_memory_over(runtime, plan, start_bytes=start, halves=halves)


def is_limited(plan: Plan) -> bool:
    """Whether the process that runs the plan has a limit, and so gives pages back."""
    return plan.limits is not None and plan.limits.edge_memory_bytes is not None


def edge_runtime_bytes(
    device: DeviceProfile, geometry: ModelGeometry, *, whole: bool = False, limited: bool = False
) -> float:
    """What the process takes before it loads the front; a `whole` edge needs no codec.

    limited: under a limit, where the profile knows how much of the process is pages of files.
    """
    memory = device.memory
    runtime = memory.runtime_base_bytes.value
    if limited and memory.base_file_bytes is not None:
        runtime -= max(memory.base_file_bytes.value - RUNNING_CODE_BYTES, 0.0) + TRIMMED_BYTES
    runtime += TOKENIZER_BYTES_PER_TOKEN * geometry.vocab_size
    return runtime if whole else runtime + rotation_bytes(geometry.hidden_size)


def table_rows(max_tokens: Quantity, chunk: Quantity, *, limited: bool) -> Quantity:
    """Look-ups whose pages are in memory at once: of all tokens, or since pages were given back."""
    return np.minimum(max_tokens, RELEASE_ROWS + np.asarray(chunk)) if limited else max_tokens


def codec_bytes(geometry: ModelGeometry, level: str, num_tokens: float) -> float:
    """Pages of the level's mapped tables that `num_tokens` tokens touch."""
    table = kind_of(level).prediction_bytes(geometry.vocab_size, geometry.hidden_size)
    return touched_bytes(table, num_tokens) if table else 0.0


def edge_memory_over(
    runtime_bytes: float, plan: Plan, *, start_bytes: float = 0.0, halves: bool = False
) -> EdgeMemory:
    """The same for a process that takes `runtime_bytes` before it loads the front.

    start_bytes: what it took before it gave pages back. halves: 16-bit weights are computed in 16
    bits, and not widened. Of the embedding and the codec's tables the pages count that text touches
    (`table_rows`); a front in 16 bits reads its weights in the file, and gives none of it back.
    """
    geometry = plan.model.geometry
    kernel = front_kernel(plan.partition.front_bits)
    weights, added = _front_bytes(plan, halves)
    limited, length, chunk = is_limited(plan), plan.max_tokens, plan.prefill_chunk
    rows = float(table_rows(length, chunk, limited=limited))
    gives_back = limited and not (halves and kernel.bits == 16)
    kept_rows = float(table_rows(length, chunk, limited=gives_back))
    return EdgeMemory(
        runtime_bytes=runtime_bytes,
        weight_bytes=weights,
        embedding_bytes=touched_bytes(embedding_bytes(geometry, kernel.bits), kept_rows),
        kv_bytes=plan.front_kv_bytes(),
        workspace_bytes=workspace_bytes(geometry, plan.prefill_chunk),
        load_peak_bytes=max(runtime_bytes + weights + added, start_bytes),
        codec_bytes=0.0 if plan.edge_is_whole else codec_bytes(geometry, plan.level, rows),
    )


def _positions_bytes(plan: Plan) -> float:
    """Cosines and sines of `Plan.max_positions`, in each segment's graph: a value of the cache's
    width, at least 16 bits, for each channel of a head."""
    value_bytes = 2 if plan.kv_bits == 16 else FP32_BYTES
    row = plan.model.geometry.head_dim * value_bytes
    return float(len(plan.segment_ends) * plan.max_positions * row) if plan.partition.split else 0.0


def _front_bytes(plan: Plan, halves: bool) -> tuple[float, float]:
    """Bytes of the front's weights in memory, and what loading takes beside them.

    Loading adds the scales of the whole file, and the largest matrix that is packed. Of streamed
    layers the two largest count; loading one takes its file and its packed copy.
    """
    geometry = plan.model.geometry
    streamed = streamed_places(plan)
    staying = [bits for layer, bits in enumerate(plan.layer_bits) if layer not in streamed]
    held = [
        (front_kernel(bits, halves=halves), count, matrix)
        for bits, count in Counter(staying).items()
        for matrix in packed_layer(geometry, bits, plan.weight_blocks)
    ]
    if plan.edge_is_whole:
        bits, width = plan.partition.front_bits, geometry.hidden_size
        block = block_size(plan.weight_blocks, bits, is_down=False, inputs=width)
        head = PackedMatrix(head_matrix(geometry).num_weights, block)
        held.append((front_kernel(bits, halves=halves), 1, head))
    weights: float = len(staying) * layer_vector_bytes(geometry) + _positions_bytes(plan)
    scales = transient = 0.0
    for kernel, count, (num_weights, block) in held:
        weights += count * kernel.resident_bytes(num_weights, block)
        scales += count * kernel.scale_bytes(num_weights, block)
        transient = max(transient, num_weights * kernel.transient_bytes)
    if not streamed:
        return weights, scales + transient
    sizes = [
        packed_layer_bytes(geometry, plan.layer_bits[layer], plan.weight_blocks)
        for layer in streamed
    ]
    weights += sum(sorted(sizes)[-HELD_LAYERS:]) + len(streamed) * OPEN_LAYER_BYTES
    return weights, max(scales / max(len(staying), 1) + transient, LOADING_FACTOR * max(sizes))
