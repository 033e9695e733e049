"""Export the front: the embedding and the first layers as one ONNX graph for the device.

onnxruntime-genai's model builder makes the graph in float32; it gets a small staged checkpoint
with only the tensors of the front, so it never sees the whole model. The graph is then changed in
three places: the last normalization becomes the plain sum that it normalizes (the residual stream
is what the back continues), the attention mask becomes the two numbers that the attention kernel
makes of it (one subgraph less in every step), and the matrices get the plan's bits (`float_front`).

Interface of `front.onnx`, L layers, G KV heads, N the cache's length:

    input_ids               int64 [1, T]
    seqlens_k               int32 [1]       tokens in the cache after this step, minus one
    total_sequence_length   int32 []        tokens in the cache after this step
    past_key_values.i.key   [1, G, N, head_dim], .value alike; present.i.* share their memory
    -> hidden_states        float32 [1, T, D], or `logits` float32 [1, 1, V] when split == L
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import Plan
from optimizer.errors import BuildError
from optimizer.export.front.embedding import embedding_graph, shrink_weights
from optimizer.export.front.float_front import FloatFront, input_importance
from optimizer.export.front.kv_scales import SAMPLE_TEXT, write_kv_scales
from optimizer.export.sources.model_source import ModelSource

logger = logging.getLogger(__name__)

FRONT_NAME: Final = "front.onnx"
# At 16 bits the matrices are stored in float16 afterwards: the exporter's own fp16 graph has no
# fused attention for CPUs.
PRECISION: Final = "fp32"
INT8_COMPUTE: Final = 4  # MatMulNBits accuracy levels: activations as int8 ...
FP32_COMPUTE: Final = 1  # ... or in float32, one row or many rows alike
LAYER_INDEX: Final = re.compile(r"\blayers\.(\d+)\.")  # in tensor names


def export_front(source: ModelSource, plan: Plan, edge_dir: Path) -> None:
    """Write `front.onnx` and its weights for `plan` into `edge_dir`, which must exist.

    Raises BuildError when the exporter fails. Weights below 16 bits are rounded in blocks of 32,
    each layer's to its own bits (`plan.front_layer_bits`); the embedding gets 8.
    """
    with tempfile.TemporaryDirectory(prefix="splitpoint-front-") as temporary:
        if plan.partition.split == 0:
            model = _embedding_front(_staged(source, plan, Path(temporary)))
        else:
            model = front_at(float_front(source, plan, Path(temporary)), plan)
        shrink_weights(model, plan.partition.front_bits)
        _save(model, edge_dir)


def float_front(source: ModelSource, plan: Plan, folder: Path) -> FloatFront:
    """The front of at least one layer in float32; its weights stay in `folder`."""
    staged = _staged(source, plan, folder)
    exported = folder / "onnx"
    _run_builder(staged, exported, _builder_options(plan, staged), folder / "cache")
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


def expose_residual_stream(model: onnx.ModelProto) -> None:
    """Replace the final norm by the sum it normalizes, so that `hidden_states` is the residual.

    The exporter ends the graph in SkipSimplifiedLayerNormalization(residual, update, weight).
    """
    graph = model.graph
    final = next((node for node in graph.node if "hidden_states" in node.output), None)
    if final is None or final.op_type != "SkipSimplifiedLayerNormalization":
        raise BuildError("the exporter's graph does not end in the norm that was expected")
    residual, update, weight = final.input[:3]
    total = helper.make_node("Add", [residual, update], ["hidden_states"], name="/residual/Add")
    position = list(graph.node).index(final)
    graph.node.remove(final)
    graph.node.insert(position, total)
    _drop_initializer(graph, weight)


def replace_attention_mask(model: onnx.ModelProto) -> None:
    """Feed the attention kernels `seqlens_k` and `total_sequence_length` directly."""
    graph = model.graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    if not attention:
        raise BuildError("the exporter's graph has no GroupQueryAttention")
    for node in attention:
        node.input[5], node.input[6] = "seqlens_k", "total_sequence_length"
    mask = next((value for value in graph.input if value.name == "attention_mask"), None)
    if mask is not None:
        graph.input.remove(mask)
    graph.input.extend(
        [
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
        ]
    )
    _drop_unused_nodes(graph)


def set_attention_windows(model: onnx.ModelProto, geometry: ModelGeometry) -> None:
    """Give every attention node its layer's window (-1: none) over one full-length cache.

    The exporter leaves Mistral's window out, and gives others a ring buffer as long as the
    window, in which nothing can be rolled back.
    """
    for node in model.graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        match = LAYER_INDEX.search(node.name.replace("/", "."))
        if match is None:
            raise BuildError(f"no layer number in the attention node {node.name!r}")
        window = geometry.window_of_layer(int(match.group(1)))
        changed = ("local_window_size", "sliding_window_cache")
        kept = [attribute for attribute in node.attribute if attribute.name not in changed]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.append(
            helper.make_attribute("local_window_size", -1 if window is None else window)
        )


def halve_cache(model: onnx.ModelProto) -> None:
    """Run attention, and keep its cache, in float16; everything around it stays float32."""
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "GroupQueryAttention"]:
        before: list[onnx.NodeProto] = []
        for index in (0, 1, 2, 7, 8):  # query, key, value, cosines, sines
            if index < len(node.input) and node.input[index]:
                narrow = f"{node.name}/input_{index}.float16"
                before.append(
                    helper.make_node("Cast", [node.input[index]], [narrow], to=TensorProto.FLOAT16)
                )
                node.input[index] = narrow
        wide = node.output[0]
        node.output[0] = f"{wide}.float16"
        after = helper.make_node("Cast", [node.output[0]], [wide], to=TensorProto.FLOAT)
        position = list(graph.node).index(node)
        graph.node.insert(position + 1, after)
        for cast in reversed(before):
            graph.node.insert(position, cast)
    for value in (*graph.input, *graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    # Shapes and types of inner values no longer hold; ONNX Runtime infers them anew.
    del graph.value_info[:]


def _staged(source: ModelSource, plan: Plan, folder: Path) -> Path:
    """A checkpoint with the front's tensors and a config that claims no more layers."""
    folder = folder / "model"
    folder.mkdir()
    split = plan.partition.split
    config = copy.deepcopy(source.config)
    if not plan.edge_is_whole:
        config.num_hidden_layers = split
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:split]
        config.tie_word_embeddings = True  # no head is exported: ask for none
    config.save_pretrained(folder)
    source.load_tokenizer().save_pretrained(folder)
    tensors = {
        name: source.read(name).contiguous()
        for name in sorted(source.tensor_names)
        if _belongs_to_front(name, split, plan.edge_is_whole)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _belongs_to_front(name: str, split: int, whole: bool) -> bool:
    layer = LAYER_INDEX.search(name)
    if layer is not None:
        return int(layer.group(1)) < split
    return whole or not name.startswith("lm_head")


def _builder_options(plan: Plan, staged: Path) -> list[str]:
    options = [f"filename={FRONT_NAME}", "hf_token=false", "shared_embeddings=false"]
    options.append("prune_lm_head=true" if plan.edge_is_whole else "exclude_lm_head=true")
    if plan.kv_bits == 8:
        scales = staged.parent / "kv_scales.json"
        write_kv_scales(staged, scales)
        options += ["kv_cache_quant_scheme=int8_per_channel", f"kv_cache_scale_file={scales}"]
    return options


def _run_builder(staged: Path, exported: Path, options: list[str], cache: Path) -> None:
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    arguments = ("", str(staged), str(exported), PRECISION, "cpu", str(cache))
    with _quietly() as said:
        try:
            create_model(*arguments, **parse_extra_options(*arguments, options))
        except Exception as error:  # the builder raises whatever its parts raise
            logger.debug("the exporter said: %s", said.getvalue())
            raise BuildError(f"the exporter failed: {type(error).__name__}: {error}") from error
    logger.debug("the exporter said: %s", said.getvalue())


def _embedding_front(staged: Path) -> onnx.ModelProto:
    """Split 0: a graph that looks tokens up (and scales them where the family does)."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(staged)
    weight = load_file(staged / "model.safetensors")["model.embed_tokens.weight"]
    scale = float(config.hidden_size**0.5) if config.model_type.startswith("gemma") else None
    return embedding_graph(weight.to(torch.float32).numpy(), scale=scale)


def _save(model: onnx.ModelProto, edge_dir: Path) -> None:
    onnx.save(
        model,
        edge_dir / FRONT_NAME,
        save_as_external_data=True,
        location=f"{FRONT_NAME}.data",
        size_threshold=1024,
    )


def _drop_unused_nodes(graph: onnx.GraphProto) -> None:
    wanted = {value.name for value in graph.output}
    kept: list[Any] = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _drop_initializer(graph: onnx.GraphProto, name: str) -> None:
    if any(name in node.input for node in graph.node):
        return
    for initializer in graph.initializer:
        if initializer.name == name:
            graph.initializer.remove(initializer)
            return


@contextlib.contextmanager
def _quietly() -> Iterator[io.StringIO]:
    """Keep the exporter's prints and progress bars off the screen; they go to the debug log."""
    from transformers.utils import logging as transformers_logging

    said = io.StringIO()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    quantizer = logging.getLogger("onnxruntime.quantization")
    quantizer.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield said
    finally:
        transformers_logging.set_verbosity(level)
