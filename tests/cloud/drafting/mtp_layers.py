"""Multi-token layers with random weights, in the published formats, for tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, VOCAB, LAYERS, EXPERTS = 64, 320, 4, 4
KINDS = ("deepseek_v3", "glm4_moe", "qwen3_next")
_COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
}
_OF_KIND: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "head_dim": None,  # there, what is rotated of a head
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
    },
    "glm4_moe": {
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "use_qk_norm": True,
        "attention_bias": True,
    },
    "qwen3_next": {"num_experts": EXPERTS, "shared_expert_intermediate_size": 32},
}


def mtp_config(kind: str, **changes: Any) -> dict[str, Any]:
    """A checkpoint's `config.json`."""
    values = {**_COMMON, **_OF_KIND[kind], "model_type": kind, **changes}
    return {name: value for name, value in values.items() if value is not None}


def mtp_tensors(kind: str) -> dict[str, Tensor]:
    """The layer's tensors as the checkpoint names them, beside one tensor of another layer."""
    generator = torch.Generator().manual_seed(5)

    def matrix(out: int, into: int) -> Tensor:
        return torch.randn(out, into, generator=generator) * into**-0.5

    def mlp(name: str, inner: int) -> dict[str, Tensor]:
        return {
            f"{name}.gate_proj.weight": matrix(inner, WIDTH),
            f"{name}.up_proj.weight": matrix(inner, WIDTH),
            f"{name}.down_proj.weight": matrix(WIDTH, inner),
        }

    layer = {"mlp.gate.weight": matrix(EXPERTS, WIDTH)}
    for name in ("input_layernorm", "post_attention_layernorm"):
        layer[f"{name}.weight"] = 1.0 + 0.1 * torch.randn(WIDTH, generator=generator)
    for expert in range(EXPERTS):
        layer |= mlp(f"mlp.experts.{expert}", 32)
    for name, (out, into) in _attention(kind).items():
        layer[f"self_attn.{name}.weight"] = matrix(out, into)
    norm = torch.ones(WIDTH)
    if kind == "qwen3_next":
        layer |= mlp("mlp.shared_expert", 32)
        layer["mlp.shared_expert_gate.weight"] = matrix(1, WIDTH)
        layer |= {f"self_attn.{one}_norm.weight": torch.zeros(16) for one in "qk"}
        found = {f"mtp.layers.0.{name}": one for name, one in layer.items()}
        found |= {f"mtp.{name}.weight": norm for name in ("norm", "pre_fc_norm_embedding")}
        found |= {"mtp.pre_fc_norm_hidden.weight": norm, "mtp.fc.weight": matrix(WIDTH, 2 * WIDTH)}
        return {**found, "model.layers.0.input_layernorm.weight": norm}
    layer |= mlp("mlp.shared_experts", 32)
    layer["mlp.gate.e_score_correction_bias"] = torch.zeros(EXPERTS)
    if kind == "glm4_moe":
        layer |= {f"self_attn.{one}_norm.weight": torch.ones(16) for one in "qk"}
        sizes = {"q": 64, "k": 32, "v": 32}
        layer |= {f"self_attn.{one}_proj.bias": torch.zeros(n) for one, n in sizes.items()}
    else:
        layer["self_attn.q_a_layernorm.weight"] = torch.ones(24)
        layer["self_attn.kv_a_layernorm.weight"] = torch.ones(16)
    layer |= {f"{name}.weight": norm for name in ("enorm", "hnorm", "shared_head.norm")}
    layer["eh_proj.weight"] = matrix(WIDTH, 2 * WIDTH)
    layer["shared_head.head.weight"] = 6.0 * matrix(VOCAB, WIDTH)  # sure of something
    layer["embed_tokens.weight"] = matrix(VOCAB, WIDTH)
    found = {f"model.layers.{LAYERS}.{name}": one for name, one in layer.items()}
    return {**found, "model.layers.0.input_layernorm.weight": norm}


def _attention(kind: str) -> dict[str, tuple[int, int]]:
    if kind == "deepseek_v3":
        return {
            "q_a_proj": (24, WIDTH),
            "q_b_proj": (4 * 24, 24),
            "kv_a_proj_with_mqa": (24, WIDTH),
            "kv_b_proj": (4 * 28, 16),
            "o_proj": (WIDTH, 4 * 12),
        }
    queries = 128 if kind == "qwen3_next" else 64  # a gate beside each query
    return {
        "q_proj": (queries, WIDTH),
        "k_proj": (32, WIDTH),
        "v_proj": (32, WIDTH),
        "o_proj": (WIDTH, 64),
    }


def write_mtp(
    folder: Path, kind: str, *, tensors: dict[str, Tensor] | None = None, **changes: Any
) -> Path:
    """A checkpoint's folder. tensors: in the place of `mtp_tensors`; changes: of its config."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = mtp_tensors(kind) if tensors is None else tensors
    save_file({name: one.clone() for name, one in kept.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(mtp_config(kind, **changes)))
    return folder
