"""Tiny checkpoints to spoil: a llama in one file, its copies, and the same model as GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file, save_file

from optimizer.export.sources.checkpoint_files import INDEX_NAME, WHOLE_NAME

Tensors = dict[str, torch.Tensor]


def copy_of(folder: Path, out: Path, change: Callable[[Tensors], object] | None = None) -> Path:
    """A copy of a checkpoint in one file; `change` alters its tensors."""
    shutil.copytree(folder, out)
    if change is not None:
        tensors = load_file(out / WHOLE_NAME)
        change(tensors)
        save_file(tensors, out / WHOLE_NAME, metadata={"format": "pt"})
    return out


def sharded(folder: Path, out: Path, *, count: int = 3) -> Path:
    """A copy in `count` shards with an index."""
    shutil.copytree(folder, out)
    tensors = load_file(out / WHOLE_NAME)
    (out / WHOLE_NAME).unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[number::count]}
        save_file(part, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (out / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return out


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def as_gguf(
    folder: Path,
    out: Path,
    *,
    without: str = "",
    more: dict[str, torch.Tensor] | None = None,
    facts: Callable[[gguf.GGUFWriter], object] | None = None,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """The tiny llama as a GGUF file, but for the tensor `without`; the values are not permuted.

    kind: the type of its layers' matrices.
    """
    writer = llama_writer(out, facts)
    for name, tensor in (load_file(folder / WHOLE_NAME) | (more or {})).items():
        stored = gguf_name(name)
        if stored == without:
            continue
        if name.endswith("_proj.weight") and kind != gguf.GGMLQuantizationType.F32:
            packed = gguf.quants.quantize(tensor.numpy(), kind)
            writer.add_tensor(stored, packed, raw_dtype=kind)
        else:
            writer.add_tensor(stored, tensor.numpy())
    return written(writer, out)


def as_split_gguf(folder: Path, out: Path, *, count: int) -> list[Path]:
    """The tiny llama in parts, as llama-gguf-split makes them."""
    out.mkdir()
    tensors = load_file(folder / WHOLE_NAME)
    names = sorted(tensors)
    paths = []
    for number in range(count):
        path = out / f"m-{number + 1:05}-of-{count:05}.gguf"
        writer = llama_writer(path, None) if number == 0 else gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(names))
        for name in names[number::count]:
            writer.add_tensor(gguf_name(name), tensors[name].numpy())
        paths.append(written(writer, path))
    return paths


def llama_writer(out: Path, facts: Callable[[gguf.GGUFWriter], object] | None) -> gguf.GGUFWriter:
    """A writer that has the tiny llama's metadata."""
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name("tiny")
    writer.add_block_count(4)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(320)
    if facts is not None:
        facts(writer)
    return writer


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    stored = name.replace("model.layers.", "blk.")
    for theirs, ours in GGUF_NAMES.items():
        stored = stored.replace(theirs, ours)
    return stored


def written(writer: gguf.GGUFWriter, out: Path) -> Path:
    """Write the file and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def gemma3_gguf(tensors: Tensors, out: Path) -> Path:
    """The tiny Gemma 3 as llama.cpp's converter writes it: norms plus one, positions by keys."""
    writer = gguf.GGUFWriter(out, "gemma3")
    writer.add_block_count(6)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(12)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)
    writer.add_vocab_size(320)
    names = {
        **GGUF_NAMES,
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "post_attention_layernorm": "post_attention_norm",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
    }
    for name, tensor in tensors.items():
        stored = name.replace("model.layers.", "blk.")
        for theirs, ours in sorted(names.items(), key=lambda pair: -len(pair[0])):
            stored = stored.replace(theirs, ours)
        values = tensor + 1 if "norm" in name else tensor
        writer.add_tensor(stored, values.numpy())
    return written(writer, out)
