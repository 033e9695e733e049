"""Write the front: the embedding and the first layers as one ONNX graph for the device.

The graph is ours, layer after layer from the model's tensors (`layer_writer`), out of blocks that
ONNX Runtime has fused kernels for (`blocks`). What a family's layers are made of is in
`optimizer.families`. Every layer is first tried on text in float32 and compared with transformers'
(`probe`); the graph is written afterwards, with the plan's bits (`float_front`).

Interface of `front.onnx`, L layers, G KV heads, N the cache's length:

    input_ids               int64 [1, T]
    seqlens_k               int32 [1]       tokens in the cache after this step, minus one
    total_sequence_length   int32 []        tokens in the cache after this step
    past_key_values.i.key   [1, G, N, size], .value alike; present.i.* share their memory. size: a
                            head's channels, padded with zeros (`head_layout`)
    position_ids            int64 [1, T]    with `Plan.max_positions`: each row's position, which
                            may be beyond its place in the cache. Keys are cached rotated.
    -> hidden_states        float32 [1, T, D], or `logits` float32 [1, 1, V] when split == L

Where the plan's split may move, or layers are streamed, the front is several graphs, one a segment
(`Plan.segment_ends`).
Those behind the first one take `rows`, float32 [1, T, D], in the place of `input_ids`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from optimizer.artifacts.bundle import FRONT_CHECK_NAME, front_names
from optimizer.artifacts.half_front import (
    HALF_ROWS_NAME,
    TRIED_ALONE,
    TRIED_TOGETHER,
    half_name,
    may_have_halves,
)
from optimizer.artifacts.plan import Plan
from optimizer.export.front.float_front import FloatFront, FrontBits
from optimizer.export.front.half_graph import in_halves
from optimizer.export.front.sample_text import SAMPLE_TEXT, sample_windows
from optimizer.export.sources.model_source import ModelSource
from optimizer.families import position_limit

INT8_COMPUTE: Final = 4  # MatMulNBits accuracy levels: activations as int8 ...
FP32_COMPUTE: Final = 1  # ... or in float32, where one row and many rows give the same
CHECKED_ROWS: Final = 32  # of a text that only shows whether the layers are right


def export_front(source: ModelSource, plan: Plan, edge_dir: Path) -> tuple[str, ...]:
    """Write the front's graphs and their weights for `plan` into `edge_dir`, which must exist.

    `front_check.json` beside it says how far each layer is from transformers', in float32. Weights
    below 16 bits are rounded in blocks (`plan.weight_blocks`), each layer's to its own bits
    (`plan.front_layer_bits`); the embedding gets 8. A front with 16-bit weights gets a second graph
    of each segment, which computes in 16 bits. Returns a line where it cannot. Raises BuildError
    for layers that do not give what transformers' give, and ModelError for weights that are not
    finite, or not any more with the plan's bits.
    """
    front = float_front(source, plan)
    begin = 0
    for name, end in zip(front_names(plan), plan.segment_ends, strict=True):
        front_at(front, plan, edge_dir / name, range(begin, end))
        begin = end
    if front.split:
        path = edge_dir / Path(FRONT_CHECK_NAME).name
        path.write_text(json.dumps(front.found.record(), indent=1) + "\n", encoding="utf-8")
    return _write_halves(front, plan, edge_dir)


def _write_halves(front: FloatFront, plan: Plan, edge_dir: Path) -> tuple[str, ...]:
    """Write the graphs for devices that compute in 16 bits, unless their products cannot be had."""
    if front.found.halves is None or front.half_rows is None:
        return ()
    if fault := front.found.halves.fault:
        return (f"this front is never computed in 16 bits: {fault}",)
    for name in front_names(plan):
        wide = onnx.load(edge_dir / name, load_external_data=False)
        onnx.save(in_halves(wide), edge_dir / half_name(name))
    front.half_rows.save(edge_dir / Path(HALF_ROWS_NAME).name)
    return ()


def float_front(source: ModelSource, plan: Plan, kept: Path | None = None) -> FloatFront:
    """The plan's front in float32, tried on text.

    kept: a folder for rounded matrices, where several fronts will be written. Raises as
    `FloatFront.probe`.
    """
    front = FloatFront(source, plan.partition.split, kept)
    if front.split:
        has_halves = may_have_halves(plan)
        needs_inputs = min(plan.layer_bits) <= 8 or plan.kv_bits == 8 or has_halves
        longest = position_limit(source.config)
        count = longest if needs_inputs else min(longest, CHECKED_ROWS)
        ids = np.array(source.load_tokenizer()(SAMPLE_TEXT)["input_ids"][:count], dtype=np.int64)
        tried = min(TRIED_TOGETHER + TRIED_ALONE, plan.max_tokens, len(ids))
        front.probe(ids, halves=tried if has_halves else 0)
        if plan.kv_bits == 8:
            front.measure_cache(sample_windows(source.load_tokenizer(), longest))
    return front


def fitting_blocks(source: ModelSource, plan: Plan) -> Plan:
    """`plan`, with small blocks where the checkpoint's own grid has them.

    A matrix on such a grid goes into the front as it is. The plan then counts its memory so, and
    what was predicted for large blocks is left out.
    """
    if plan.weight_blocks == "small" or not plan.partition.split:
        return plan
    front = FloatFront(source, plan.partition.split)
    if front.keeps_small_blocks(plan.layer_bits):
        return replace(plan, weight_blocks="small", predicted=None, binding=())
    return plan


def front_at(front: FloatFront, plan: Plan, path: Path, layers: range | None = None) -> None:
    """Write the front with the plan's bits to `path`, its weights beside it; or some `layers`."""
    bits = FrontBits(
        layers=plan.layer_bits,
        head=plan.partition.front_bits,
        cache=plan.kv_bits,
        accuracy_level=FP32_COMPUTE if plan.exact_front else INT8_COMPUTE,
        blocks=plan.weight_blocks,
    )
    longest = (
        plan.max_tokens if plan.streamed_layers or layers is None else plan.capacity(layers.stop)
    )
    front.write(path, bits, max_tokens=longest, layers=layers, max_positions=plan.max_positions)
