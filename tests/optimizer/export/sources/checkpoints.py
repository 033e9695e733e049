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
) -> Path:
    """The tiny llama as a GGUF file, but for the tensor `without`; the values are not permuted."""
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
    for name, tensor in (load_file(folder / WHOLE_NAME) | (more or {})).items():
        stored = name.replace("model.layers.", "blk.")
        for theirs, ours in GGUF_NAMES.items():
            stored = stored.replace(theirs, ours)
        if stored != without:
            writer.add_tensor(stored, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
