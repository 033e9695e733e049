"""A plan comes back from YAML equal; a wrong one names its file, key and what is allowed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import ModelRef, Partition, Plan, load_plan
from optimizer.artifacts.prediction import (
    EdgeMemoryParts,
    Limits,
    Predicted,
    ProfilesUsed,
    StepParts,
)
from optimizer.cost.memory import edge_memory_over
from optimizer.errors import ModelError, OptimizerError, PlanError

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

DECIDED = replace(
    PLAN,
    drafting="ngram",
    front_layer_bits=(8, 4, 4),
    profiles=ProfilesUsed(edge="pi", cloud="a100", link="4g", epsilon=0.05),
    limits=Limits(edge_memory_bytes=1e9, max_tbt_s=0.2, max_quality_drop_pct=0.0),
    predicted=Predicted(
        edge_memory_bytes=6e8,
        ttft_s=0.5,
        tbt_s=0.1,
        longest_tbt_s=0.15,
        uplink_bytes_per_token=200.0,
        quality_drop_pct=0.0,
        quality_source="certified",
        cloud_s_per_token=0.01,
        cloud_cost_ratio=1.4,
        cloud_memory_per_session_bytes=1e6,
        cloud_memory_bytes=5e8,
        longest_tokens=200,
        tokens_per_round=1.5,
        edge_memory=EdgeMemoryParts(
            runtime_bytes=1e8,
            weight_bytes=3e8,
            embedding_bytes=1e8,
            kv_bytes=5e7,
            workspace_bytes=5e7,
            load_peak_bytes=4e8,
        ),
        step=StepParts(front_s=0.02, encode_s=0.001, wire_s=0.06, cloud_s=0.019),
    ),
    binding=("edge memory",),
)


@pytest.mark.parametrize("plan", [PLAN, DECIDED])
def test_a_plan_comes_back_from_yaml_equal(tmp_path: Path, plan: Plan) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(plan.to_yaml())
    assert load_plan(path) == plan
    assert hash(load_plan(path)) == hash(plan)


def test_a_plan_of_the_first_format_still_reads_and_has_none_of_the_newer_fields(
    tmp_path: Path,
) -> None:
    old = yaml.safe_load(PLAN.to_yaml()) | {"format": 1}
    for key in ("drafting", "front_layer_bits", "binding"):
        del old[key]
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(old))
    read = load_plan(path)
    assert replace(read, format=PLAN.format) == PLAN
    path.write_text(yaml.safe_dump(old | {"drafting": "ngram"}))
    with pytest.raises(PlanError, match="plan format 1 has no drafting"):
        load_plan(path)


def test_a_prompts_place_is_written_only_where_it_is_not_the_edge(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    assert "prefill" not in yaml.safe_load(PLAN.to_yaml())  # so earlier versions read it
    path.write_text(PLAN.to_yaml())
    assert load_plan(path).prefill == "edge"
    for place in ("cloud", "both"):
        plan = replace(PLAN, back_start=0, prefill=place)
        path.write_text(plan.to_yaml())
        assert load_plan(path) == plan
    path.write_text(yaml.safe_dump(yaml.safe_load(PLAN.to_yaml()) | {"prefill": "nowhere"}))
    with pytest.raises(PlanError, match="prefill"):
        load_plan(path)


def test_the_edges_provider_is_written_only_where_it_is_not_the_cpu(tmp_path: Path) -> None:
    assert DECIDED.profiles is not None
    assert "edge_provider" not in yaml.safe_load(DECIDED.to_yaml())["profiles"]
    plan = replace(DECIDED, profiles=replace(DECIDED.profiles, edge_provider="openvino"))
    path = tmp_path / "plan.yaml"
    path.write_text(plan.to_yaml())
    assert load_plan(path) == plan
    path.write_text(plan.to_yaml().replace("openvino", "tensorrt"))
    with pytest.raises(PlanError, match="edge_provider"):
        load_plan(path)


def test_a_prompt_goes_as_ids_only_to_a_server_with_every_layer() -> None:
    with pytest.raises(PlanError, match="holds only the layers from 1 on"):
        replace(PLAN, prefill="cloud")


def test_layer_bits_are_one_of_each_layer_and_a_limit_is_positive() -> None:
    assert DECIDED.layer_bits[:3] == (8, 4, 4)
    assert PLAN.layer_bits[:3] == (4, 4, 4)
    with pytest.raises(PlanError, match="2 values for a front of 3 layers"):
        replace(PLAN, front_layer_bits=(4, 8))
    with pytest.raises(PlanError, match="choose among"):
        replace(PLAN, front_layer_bits=(4, 8, 16))
    with pytest.raises(PlanError, match="smallest of the front layer bits, 8"):
        replace(PLAN, front_layer_bits=(8, 8, 8))
    with pytest.raises(PlanError, match="drafting 'tree'"):
        replace(PLAN, drafting="tree")
    with pytest.raises(PlanError, match="max_tbt_s: 0"):
        Limits(max_tbt_s=0)


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


def test_plans_without_blocks_have_small_ones(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    assert "weight_blocks" not in yaml.safe_load(PLAN.to_yaml())  # so earlier versions read it
    path.write_text(PLAN.to_yaml())
    assert load_plan(path).weight_blocks == "small"
    large = replace(PLAN, weight_blocks="large")
    path.write_text(large.to_yaml())
    assert load_plan(path) == large
    path.write_text(yaml.safe_dump(yaml.safe_load(PLAN.to_yaml()) | {"weight_blocks": "huge"}))
    with pytest.raises(PlanError, match="weight_blocks"):
        load_plan(path)


def test_positions_beyond_the_cache_are_written_where_there_are_any(tmp_path: Path) -> None:
    assert "max_positions" not in yaml.safe_load(PLAN.to_yaml())  # so earlier versions read it
    longest = PLAN.model.geometry.context_length
    wide = replace(PLAN, max_positions=longest)
    path = tmp_path / "plan.yaml"
    path.write_text(wide.to_yaml())
    assert load_plan(path) == wide
    for wrong in (PLAN.max_tokens - 1, longest + 1):
        with pytest.raises(PlanError, match=f"max positions {wrong}: must lie between"):
            replace(PLAN, max_positions=wrong)


def test_the_tables_of_positions_take_memory() -> None:
    """Cosine and sine of each, half a head's channels wide."""
    wide = replace(PLAN, max_positions=PLAN.model.geometry.context_length)
    added = edge_memory_over(0.0, wide).weight_bytes - edge_memory_over(0.0, PLAN).weight_bytes
    value_bytes = 2 if PLAN.kv_bits == 16 else 4
    assert added == wide.max_positions * PLAN.model.geometry.head_dim * value_bytes
