"""What a weight of the front takes in memory, and how many share a scale."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.artifacts.plan import ModelRef, Partition, Plan, WeightBlocks
from optimizer.artifacts.specs import load_spec, shipped_specs
from optimizer.cost.front_kernels import block_size, widened_note
from optimizer.cost.memory import edge_memory_over
from optimizer.cost.weights import layer_vector_bytes, num_front_weights

MOST = {4: 0.62, 8: 1.1}  # bytes a weight


def plan_of(name: str, split: int, bits: int, blocks: WeightBlocks) -> Plan:
    return Plan(
        model=ModelRef(id=name, sha256="0" * 64, geometry=load_spec(name).geometry),
        partition=Partition(split=split, front_bits=bits, back_bits=32),
        back_start=split,
        kv_bits=8,
        level="lossless",
        max_tokens=512,
        prefill_chunk=128,
        weight_blocks=blocks,
    )


def matrix_bytes(plan: Plan) -> float:
    """Bytes in memory of the front's matrices alone."""
    vectors = plan.partition.split * layer_vector_bytes(plan.model.geometry)
    return edge_memory_over(0.0, plan).weight_bytes - vectors


@pytest.mark.parametrize(
    ("blocks", "bits", "is_down", "inputs", "size"),
    [
        ("small", 4, True, 4096, 32),
        ("large", 4, False, 4096, 64),
        ("large", 4, True, 8960, 128),
        ("large", 4, True, 192, 64),
        ("large", 4, False, 96, 32),
        ("large", 4, False, 80, 32),  # padded, as before
        ("large", 8, False, 1536, 128),
        ("large", 8, True, 576, 64),
        ("large", 16, False, 4096, 32),
    ],
)
def test_blocks_are_as_large_as_the_inputs_allow(
    blocks: WeightBlocks, bits: int, is_down: bool, inputs: int, size: int
) -> None:
    assert block_size(blocks, bits, is_down=is_down, inputs=inputs) == size


def test_bytes_in_memory_by_hand() -> None:
    layer = 576 * (960 + 576 + 2 * 1536)  # inputs of 576 divide by 64, not by 128
    down = 1536 * 576
    small = matrix_bytes(plan_of("smollm2-135m", 3, 4, "small"))
    assert small == pytest.approx(3 * (layer + down) * (0.5 + 8.5 / 32))
    large = matrix_bytes(plan_of("smollm2-135m", 3, 4, "large"))
    assert large == pytest.approx(3 * (layer * (0.5 + 8.5 / 64) + down * (0.5 + 8.5 / 128)))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen2.5-7b", "mistral-7b", "smollm2-1.7b"])
def test_a_layers_weights_take_no_more_than_promised(name: str, bits: int) -> None:
    plan = plan_of(name, 8, bits, "large")
    weights = num_front_weights(plan.model.geometry, 8)
    assert weights < matrix_bytes(plan) / (bits / 8)
    assert matrix_bytes(plan) <= MOST[bits] * weights


def test_eight_billion_weights_fit_eight_gigabytes_with_a_long_cache() -> None:
    plan = replace(plan_of("llama-3.1-8b", 32, 4, "large"), back_start=32, max_tokens=8192)
    memory = edge_memory_over(300e6, plan)
    assert 4.8 * 2**30 < memory.total_bytes < 6.2 * 2**30
    older = edge_memory_over(300e6, replace(plan, weight_blocks="small"))
    assert older.total_bytes > memory.total_bytes + 1e9


def test_loading_is_counted_with_the_head_that_is_packed() -> None:
    """The file's scales stay mapped until all is packed, and the head's own pages with them."""
    plan = replace(plan_of("llama-3.2-1b", 16, 4, "large"), max_tokens=128, prefill_chunk=1)
    memory = edge_memory_over(0.0, plan)
    geometry = plan.model.geometry
    head = geometry.vocab_size * geometry.hidden_size
    added = memory.load_peak_bytes - memory.weight_bytes
    weights = num_front_weights(geometry, 16)
    assert head / 2 + weights * 4 / 128 < added < head / 2 + weights * 4 / 64


@pytest.mark.parametrize("name", sorted(shipped_specs()))
def test_large_blocks_never_take_more(name: str) -> None:
    for bits in (4, 8):
        small, large = (matrix_bytes(plan_of(name, 1, bits, each)) for each in ("small", "large"))
        assert large <= small


def test_widened_weights_are_named() -> None:
    assert "16-bit front weights are widened to 32 bits" in widened_note(16)
    assert [widened_note(bits) for bits in (4, 8, 32)] == ["", "", ""]
