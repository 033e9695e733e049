"""Draft heads with random weights in the formats that their authors publish, for tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HEADS, KV_HEADS, HEAD_DIM, INNER = 4, 2, 16, 96
THETA = 500.0  # of no default


def head_tensors(form: str, width: int, vocab: int, *, draft_vocab: int = 64) -> dict[str, Tensor]:
    """Tensors of an "eagle" or "eagle3" head of a model of `width` channels."""
    generator = torch.Generator().manual_seed(3)

    def matrix(out: int, into: int) -> Tensor:
        return torch.randn(out, into, generator=generator) * into**-0.5

    is_eagle3 = form == "eagle3"
    prefix = "midlayer." if is_eagle3 else "layers.0."
    wide = 2 * width if is_eagle3 else width
    tensors = {
        "fc.weight": matrix(width, 3 * width if is_eagle3 else 2 * width),
        f"{prefix}self_attn.q_proj.weight": matrix(HEADS * HEAD_DIM, wide),
        f"{prefix}self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, wide),
        f"{prefix}self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, wide),
        f"{prefix}self_attn.o_proj.weight": matrix(width, HEADS * HEAD_DIM),
        f"{prefix}mlp.gate_proj.weight": matrix(INNER, width),
        f"{prefix}mlp.up_proj.weight": matrix(INNER, width),
        f"{prefix}mlp.down_proj.weight": matrix(width, INNER),
        f"{prefix}post_attention_layernorm.weight": torch.ones(width),
    }
    if not is_eagle3:
        return {**tensors, "embed_tokens.weight": matrix(vocab, width)}
    ids = torch.randperm(vocab, generator=generator)[:draft_vocab].sort().values
    return {
        **tensors,
        f"{prefix}hidden_norm.weight": torch.ones(width),
        f"{prefix}input_layernorm.weight": torch.ones(width),
        "norm.weight": torch.ones(width),
        "lm_head.weight": 6.0 * matrix(draft_vocab, width),  # so that it is sure of something
        "d2t": ids - torch.arange(draft_vocab),
        "t2d": torch.zeros(vocab, dtype=torch.bool).index_fill_(0, ids, True),
    }


def head_config(form: str, width: int, vocab: int, **changes: Any) -> dict[str, Any]:
    """The `config.json` that goes with `head_tensors`."""
    values: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "rope_theta": THETA,
        "max_position_embeddings": 512,
    }
    if form == "eagle3":
        values |= {"draft_vocab_size": 64, "eagle_aux_hidden_state_layer_ids": [2, 3, 4]}
    return {**values, **changes}


def write_head(
    folder: Path,
    form: str,
    *,
    width: int = 64,
    vocab: int = 320,
    tensors: dict[str, Tensor] | None = None,
    **changes: Any,
) -> Path:
    """A head's folder. tensors: in the place of `head_tensors`; changes: of its config."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = head_tensors(form, width, vocab) if tensors is None else tensors
    save_file({name: one.contiguous() for name, one in kept.items()}, folder / "model.safetensors")
    config = head_config(form, width, vocab, **changes)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
