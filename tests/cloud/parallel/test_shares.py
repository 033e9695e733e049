"""Which part of each tensor a rank holds, and which models are refused, each in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cloud.engine.back_weights import BackModel, load_back, model_skeleton, read_config
from cloud.errors import WeightsError
from cloud.parallel.group import AddedModule, RankGroup
from cloud.parallel.shared_back import SharedBackFiles
from cloud.parallel.shares import check_divisible, divide
from optimizer.artifacts.bundle import Role
from optimizer.artifacts.weight_reference import WeightsPlace
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.sources.model_source import open_source
from tests.cloud.tiny_bundle import quantized_back, save_back
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import BACK_FAMILIES, make_tiny_model

# Sinks, norms over the width of all heads, a layer that the plan does not name.
REFUSED = ("gpt_oss", "olmo2", "olmo3", "granitemoehybrid")


def back(name: str, root: Path, **changes: Any) -> Path:
    transformers.logging.disable_progress_bar()
    folder = root / "cloud"
    save_back(make_tiny_model(name, root, **changes), folder)
    return folder


def layer_of(model: BackModel) -> Any:
    return model.layers[0]


@pytest.mark.parametrize("name", BACK_FAMILIES)
def test_every_family_is_divided_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    folder = back(name, tmp_path)
    if name not in REFUSED:
        check_divisible(folder, 2)
        return
    with pytest.raises(WeightsError, match="cannot be divided by --tensor-parallel 2: ") as caught:
        check_divisible(folder, 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "changes", "field"),
    [
        (3, {}, "num_attention_heads is 4"),
        (4, {}, "num_key_value_heads is 2"),
        (2, {"intermediate_size": 97}, "intermediate_size is 97"),
    ],
)
def test_what_the_ranks_do_not_divide_is_named(
    size: int, changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=field):
        check_divisible(back("llama", tmp_path, **changes), size)


def test_a_style_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = back("llama", tmp_path)
    config = read_config(folder)
    skeleton = model_skeleton(folder, config, torch.float32)
    skeleton._tp_plan = {**skeleton._tp_plan, "model.layers.*.mlp.up_proj": "sideways"}
    with pytest.raises(WeightsError, match=r"mlp\.up_proj is divided as 'sideways'"):
        divide(config, skeleton, folder, rank=0, size=2)


def test_a_model_without_a_plan_is_refused(tmp_path: Path) -> None:
    folder = back("llama", tmp_path)
    config = read_config(folder)
    skeleton = model_skeleton(folder, config, torch.float32)
    skeleton._tp_plan = None
    with pytest.raises(WeightsError, match=r"its plan leaves model\.layers\.0\.self_attn\.q_proj"):
        divide(config, skeleton, folder, rank=0, size=2)


@pytest.mark.parametrize("bits", [8, 32])
def test_the_ranks_hold_every_output_and_every_input_once(bits: int, tmp_path: Path) -> None:
    """A joined projection is divided part by part: a rank has its queries, keys and values."""
    folder = back("phi3", tmp_path)
    if bits == 8:
        quantized_back(folder)
    whole = load_back(folder, first_layer=1)
    ranks = [
        SharedBackFiles(folder, group=RankGroup(rank, 2), first_layer=1).model()
        for rank in range(2)
    ]

    def matrix(layer: Any) -> Any:
        linear: Any = layer.module if isinstance(layer, AddedModule) else layer
        if bits == 32:
            return linear.weight
        return linear.codes.float() * linear.scale[:, None]

    qkv = [matrix(layer_of(model).self_attn.qkv_proj) for model in ranks]
    parts = [part.split((32, 16, 16)) for part in qkv]
    joined = torch.cat([parts[rank][kind] for kind in range(3) for rank in range(2)])
    assert torch.equal(joined, matrix(layer_of(whole).self_attn.qkv_proj))
    down = torch.cat([matrix(layer_of(model).mlp.down_proj) for model in ranks], dim=1)
    assert torch.equal(down, matrix(layer_of(whole).mlp.down_proj))
    head = torch.cat([matrix(model.head.linear) for model in ranks])
    assert torch.equal(head, matrix(whole.head))
    assert sum(model.num_bytes for model in ranks) < 1.1 * whole.num_bytes


def test_a_bias_of_divided_inputs_is_added_once(tmp_path: Path) -> None:
    folder = back("starcoder2", tmp_path)
    whole = load_back(folder, first_layer=3)
    first, second = (
        SharedBackFiles(folder, group=RankGroup(rank, 2), first_layer=3).model()
        for rank in range(2)
    )
    bias = layer_of(whole).self_attn.o_proj.bias
    assert torch.equal(layer_of(first).self_attn.o_proj.module.bias, bias)
    assert not layer_of(second).self_attn.o_proj.module.bias.any()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_share_of_referenced_weights_has_the_bits_of_a_copys_share(
    bits: int, tmp_path: Path
) -> None:
    """A row's scale is that of the whole row, also where a rank has a part of the row."""
    make_tiny_model("llama", tmp_path / "model")
    source = open_source(tmp_path / "model")
    shares = []
    ways: tuple[WeightsPlace, ...] = ("copy", "reference")
    sides: tuple[Role, ...] = ("cloud",)
    for weights in ways:
        bundle = tmp_path / weights
        plan = make_plan(source, 2, back_bits=bits)
        build_bundle(
            source, plan, bundle, progress=lambda stage: None, sides=sides, weights=weights
        )
        files = SharedBackFiles(bundle / "cloud", group=RankGroup(1, 2), first_layer=2)
        model = files.model()
        shares.append(
            [t for part in (*model.layers, model.head) for t in part.state_dict().values()]
        )
    assert len(shares[0]) > 10
    assert all(map(torch.equal, *shares))
