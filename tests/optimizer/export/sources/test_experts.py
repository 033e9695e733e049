"""Experts that are stored one by one are read as the matrices that transformers computes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from optimizer.errors import ModelError
from optimizer.export.sources.checkpoint_files import WHOLE_NAME
from optimizer.export.sources.folder_source import FolderSource
from tests.tiny_models import COMMON

EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A tiny Qwen3 MoE on disk, and its weights as transformers has them."""
    config = transformers.AutoConfig.for_model(
        "qwen3_moe",
        **{**COMMON, "head_dim": 16, "moe_intermediate_size": 48, "num_experts": 4},
        num_experts_per_tok=2,
    )
    torch.manual_seed(2)
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("moe") / "m"
    model.save_pretrained(folder)
    return folder, model.state_dict()


def test_the_files_hold_experts_one_by_one_and_the_source_gives_them_together(
    saved: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    folder, meant = saved
    assert EXPERT in load_file(folder / WHOLE_NAME)
    source = FolderSource(folder)
    stored = source.stored_tensors()
    assert stored.keys() == meant.keys()
    for name, tensor in meant.items():
        assert stored[name].shape == tuple(tensor.shape)
        assert torch.equal(source._read(stored[name]), tensor)
    total = sum(4 * tensor.numel() for tensor in meant.values())
    assert sum(tensor.num_bytes for tensor in stored.values()) == total


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(EXPERT), r"experts\.2\.up_proj\.weight is missing"),
        (lambda t: t.update({EXPERT: t[EXPERT][:-1].clone()}), "experts of different shapes"),
    ],
)
def test_an_expert_that_is_missing_or_of_another_shape_is_refused(
    saved: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, change: Any, reason: str
) -> None:
    folder, _ = saved
    tensors = load_file(folder / WHOLE_NAME)
    change(tensors)
    save_file(tensors, tmp_path / WHOLE_NAME, metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match=reason):
        FolderSource(tmp_path).stored_tensors()
