"""Export the front: the embedding and the first layers as one ONNX graph for the device.

onnxruntime-genai's model builder makes the graph in float32 (`exporter`). It gets a small
checkpoint with only the tensors of the front, so it never sees the whole model. Three things of
the graph are then changed (`graph_edits`, `float_front`):

- The last normalization becomes the plain sum that it normalizes: the back continues from the
  residual stream.
- The attention mask becomes the two numbers that the attention kernel makes of it, which saves a
  subgraph in every step.
- The matrices get the plan's bits.

Interface of `front.onnx`, L layers, G KV heads, N the cache's length:

    input_ids               int64 [1, T]
    seqlens_k               int32 [1]       tokens in the cache after this step, minus one
    total_sequence_length   int32 []        tokens in the cache after this step
    past_key_values.i.key   [1, G, N, head_dim], .value alike; present.i.* share their memory
    -> hidden_states        float32 [1, T, D], or `logits` float32 [1, 1, V] when split == L
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, numpy_helper
from safetensors.torch import load_file

from optimizer.artifacts.bundle import FRONT_NAME
from optimizer.artifacts.plan import Plan
from optimizer.errors import ModelError
from optimizer.export.front.embedding import embedding_graph, shrink_weights
from optimizer.export.front.exporter import export_graph, stage_checkpoint
from optimizer.export.front.float_front import FloatFront, input_importance
from optimizer.export.front.graph_edits import (
    expose_residual_stream,
    halve_cache,
    replace_attention_mask,
    set_attention_windows,
)
from optimizer.export.front.kv_scales import SAMPLE_TEXT
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.sources.tensor_names import EMBEDDING_NAME
from optimizer.families import front_family

INT8_COMPUTE: Final = 4  # MatMulNBits accuracy levels: activations as int8 ...
FP32_COMPUTE: Final = 1  # ... or in float32, where one row and many rows give the same


def export_front(source: ModelSource, plan: Plan, edge_dir: Path) -> None:
    """Write `front.onnx` and its weights for `plan` into `edge_dir`, which must exist.

    Raises BuildError when the exporter fails, and ModelError for weights that are not finite, or
    not any more with the plan's bits. Weights below 16 bits are rounded in blocks of 32, each
    layer's to its own bits (`plan.front_layer_bits`); the embedding gets 8. The exporter works
    beside `edge_dir`, on the disk that the front goes to.
    """
    with tempfile.TemporaryDirectory(prefix=".front-", dir=edge_dir.parent) as temporary:
        if plan.partition.split == 0:
            model = _embedding_front(stage_checkpoint(source, plan, Path(temporary)))
        else:
            model = front_at(float_front(source, plan, Path(temporary)), plan)
        shrink_weights(model, plan.partition.front_bits)
        _check_weights(model, source)
        _save(model, edge_dir)


def float_front(source: ModelSource, plan: Plan, folder: Path) -> FloatFront:
    """The front of at least one layer in float32; its weights stay in `folder`.

    Raises BuildError when the exporter fails, and ModelError for weights that make a sample text's
    values infinite.
    """
    staged = stage_checkpoint(source, plan, folder)
    exported = folder / "onnx"
    export_graph(plan, staged, exported, folder / "cache")
    model = onnx.load(exported / FRONT_NAME, load_external_data=False)
    replace_attention_mask(model)
    set_attention_windows(model, source.geometry)
    if not plan.edge_is_whole:
        expose_residual_stream(model)
    importance: dict[str, npt.NDArray[np.float32]] = {}
    if min(plan.layer_bits) <= 8:
        longest = source.config.max_position_embeddings
        ids = source.load_tokenizer()(SAMPLE_TEXT)["input_ids"][:longest]
        importance = input_importance(
            model, exported, source.geometry, np.array(ids, dtype=np.int64)
        )
        if not all(np.isfinite(squares).all() for squares in importance.values()):
            raise ModelError(
                f"{source.place}: the front's values on a sample text are not finite; its weights "
                "are too large for float32"
            )
    return FloatFront(model, exported, importance)


def front_at(front: FloatFront, plan: Plan) -> onnx.ModelProto:
    """The front with the plan's bits and weights; the embedding still has 32 bits."""
    model = front.at(
        plan.layer_bits,
        head_bits=plan.partition.front_bits,
        accuracy_level=FP32_COMPUTE if plan.exact_front else INT8_COMPUTE,
    )
    if plan.kv_bits == 16:
        halve_cache(model)
    return model


def _embedding_front(staged: Path) -> onnx.ModelProto:
    """Split 0: a graph that looks tokens up, and scales the rows where the family does."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(staged)
    weight = load_file(staged / "model.safetensors")[EMBEDDING_NAME]
    scale = float(config.hidden_size**0.5) if front_family(config).scales_embedding else None
    return embedding_graph(weight.to(torch.float32).numpy(), scale=scale)


def _check_weights(model: onnx.ModelProto, source: ModelSource) -> None:
    """ModelError for a weight, or a scale of rounded weights, that is not finite in the graph."""
    for weight in model.graph.initializer:
        if weight.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            continue
        if not np.isfinite(numpy_helper.to_array(weight)).all():
            raise ModelError(
                f"{source.place}: {weight.name} is not finite with these --front-bits; its values "
                "are too large, choose --front-bits 32"
            )


def _save(model: onnx.ModelProto, edge_dir: Path) -> None:
    onnx.save(
        model,
        edge_dir / FRONT_NAME,
        save_as_external_data=True,
        location=f"{FRONT_NAME}.data",
        size_threshold=1024,
    )
