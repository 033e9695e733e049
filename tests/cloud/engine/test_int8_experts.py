"""Experts with int8 weights give what transformers' experts give with the same rounded weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from cloud.engine.int8_experts import Int8Experts, gated_by
from cloud.engine.int8_linear import int8_linear
from optimizer.export.back import quantize_rows
from tests.tiny_models import COMMON, CONFIGS

ROWS, CHOSEN = 11, 2


def rounded(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [E, N, K] and scales [E, N]."""
    codes, scales = quantize_rows(matrices.reshape(-1, matrices.shape[-1]))
    return codes.view(matrices.shape), scales.view(matrices.shape[:-1])


@pytest.mark.parametrize(
    ("family", "kind", "transposed"),
    [("qwen3_moe", Qwen3MoeExperts, False), ("gpt_oss", GptOssExperts, True)],
)
def test_they_are_transformers_experts(family: str, kind: Any, transposed: bool) -> None:
    torch.manual_seed(3)
    experts = kind(AutoConfig.for_model(family, **{**COMMON, **CONFIGS[family]}))
    made: dict[str, list[nn.Module]] = {}
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0.0, 0.2)
        for part in ("gate_up_proj", "down_proj"):
            weight = getattr(experts, part)
            matrices = weight.transpose(1, 2) if transposed else weight
            codes, scales = rounded(matrices)
            meant = codes.float() * scales[..., None]
            weight.copy_(meant.transpose(1, 2) if transposed else meant)
            biases = getattr(experts, f"{part}_bias", [None] * len(codes))
            made[part] = [int8_linear(*one) for one in zip(codes, scales, biases, strict=True)]
    ours = Int8Experts(gated_by(experts), made["gate_up_proj"], made["down_proj"])
    rows = torch.randn(ROWS, COMMON["hidden_size"])
    weights, chosen = torch.rand(ROWS, len(codes)).topk(CHOSEN)
    with torch.inference_mode():
        expected = experts(rows, chosen, weights)
        found = ours(rows, chosen, weights)
        alone = ours(rows[4:5], chosen[4:5], weights[4:5])
    assert float((found - expected).norm() / expected.norm()) < 3e-4  # two digits of 8 bits
    assert torch.equal(alone, found[4:5])
