"""What a weight of the front takes in memory, and how many share a scale."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprofiles.profiles.catalog import load_device
from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.plan import ModelRef, Partition, Plan, WeightBlocks
from optimizer.artifacts.specs import load_spec, shipped_specs
from optimizer.cost.edge import front_step
from optimizer.cost.front_kernels import block_size, widened_note
from optimizer.cost.memory import edge_memory, edge_memory_over
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


def with_halves(provider: str = "onnxruntime-cpu") -> DeviceProfile:
    """A device that was measured with 16-bit products, at twice the rate of 32-bit ones."""
    device = load_device("raspberry-pi-5-8gb")
    wide = device.kernel(32)
    points = tuple(replace(each, bytes_per_s=2 * each.bytes_per_s) for each in wide.decode.points)
    half = replace(wide, weight_bits=16, compute="fp16", decode=replace(wide.decode, points=points))
    platform = replace(device.platform, engine=provider)  # type: ignore[arg-type]
    return replace(device, platform=platform, kernels=(*device.kernels, half))


def test_a_device_that_computes_in_16_bits_keeps_two_bytes_a_weight() -> None:
    plan = plan_of("smollm2-135m", 10, 16, "small")
    weights = num_front_weights(plan.model.geometry, 10)
    wide, half = (
        edge_memory(device, plan) for device in (load_device("raspberry-pi-5-8gb"), with_halves())
    )
    assert wide.weight_bytes - half.weight_bytes == pytest.approx(2.041 * weights)
    exact = replace(plan, exact_front=True)
    assert edge_memory(with_halves(), exact).weight_bytes == wide.weight_bytes
    assert edge_memory(with_halves("torch-cuda"), plan).weight_bytes == wide.weight_bytes


def test_its_16_bit_front_is_timed_by_that_kernel() -> None:
    geometry = plan_of("smollm2-135m", 10, 16, "small").model.geometry
    asked = {"split": 10, "kv_bits": 8, "num_rows": 1, "position": 128}
    times = {
        (name, bits): front_step(device, geometry, weight_bits=bits, **asked)  # type: ignore[arg-type]
        for name, device in (("wide", load_device("raspberry-pi-5-8gb")), ("half", with_halves()))
        for bits in (16, 32)
    }
    assert times["wide", 16] == times["wide", 32] == times["half", 32]
    assert times["half", 16].matrices_s < 0.5 * times["wide", 16].matrices_s
