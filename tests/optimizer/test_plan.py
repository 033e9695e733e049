"""A plan comes back from YAML equal; a wrong one names its file, key and what is allowed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from optimizer.errors import ModelError, OptimizerError, PlanError
from optimizer.geometry import ModelGeometry
from optimizer.plan import ModelRef, Partition, Plan, load_plan

GEOMETRY = ModelGeometry(
    architecture="LlamaForCausalLM",
    num_layers=4,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    vocab_size=320,
    context_length=256,
    tied_embeddings=True,
    sliding_window=12,
    sliding_layers=(0, 2),
)
PLAN = Plan(
    model=ModelRef(id="m", sha256="0" * 64, geometry=GEOMETRY),
    partition=Partition(split=3, front_bits=4, back_bits=8),
    back_start=1,
    kv_bits=8,
    level="lossless",
    max_tokens=100,
    prefill_chunk=16,
)


def test_a_plan_comes_back_from_yaml_equal(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.to_yaml())
    assert load_plan(path) == PLAN


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"colour": "red"}, "colour"),
        ({"kv_bits": None}, "kv_bits"),
        ({"kv_bits": "eight"}, "kv_bits"),
        ({"kv_bits": 5}, "KV bits 5"),
        ({"back_start": 4}, "back start 4"),
        ({"max_tokens": 257}, "max tokens 257"),
        ({"format": 9}, "plan format 9"),
    ],
)
def test_a_wrong_plan_names_the_file_and_the_key(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    values = yaml.safe_load(PLAN.to_yaml()) | change
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_a_partition_must_be_one_the_model_has() -> None:
    whole = replace(PLAN, partition=Partition(split=4, front_bits=32, back_bits=32))
    assert whole.edge_is_whole
    assert not PLAN.edge_is_whole
    with pytest.raises(PlanError, match="the model has 4 layers"):
        replace(PLAN, partition=Partition(split=5, front_bits=4, back_bits=8))
    for split, front_bits, back_bits in ((-1, 4, 8), (1, 3, 8), (1, 4, 4)):
        with pytest.raises(PlanError):
            Partition(split=split, front_bits=front_bits, back_bits=back_bits)


def test_kv_bytes_by_hand() -> None:
    # K and V, 3 layers, 100 tokens, 2 heads of 16 channels, one byte each.
    assert PLAN.front_kv_bytes() == 2 * 3 * 100 * 2 * 16


def test_a_window_belongs_to_the_layers_that_have_one() -> None:
    assert [GEOMETRY.window_of_layer(i) for i in range(4)] == [12, None, 12, None]
    everywhere = replace(GEOMETRY, sliding_layers=())
    assert [everywhere.window_of_layer(i) for i in range(4)] == [12] * 4
    nowhere = replace(GEOMETRY, sliding_window=None)
    assert [nowhere.window_of_layer(i) for i in range(4)] == [None] * 4


def test_a_geometry_that_cannot_be_is_refused() -> None:
    with pytest.raises(ModelError, match="num_layers"):
        replace(GEOMETRY, num_layers=0)
    with pytest.raises(OptimizerError, match="do not divide"):
        replace(GEOMETRY, num_kv_heads=3)
