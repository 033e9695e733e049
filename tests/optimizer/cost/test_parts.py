"""Memory, cloud, link and codec costs: closed forms, brute force and limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.links.catalog import load_link
from hwprofiles.profiles.catalog import load_device
from hwprofiles.profiles.device import CodecSpeed
from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.artifacts.prediction import Limits
from optimizer.artifacts.specs import load_spec
from optimizer.cost.cloud import SessionRows, back_step_s
from optimizer.cost.codec import (
    LevelCost,
    decode_s,
    encode_s,
    frame_bytes,
    level_on,
)
from optimizer.cost.link import link_at, pipeline_s, transfer_s
from optimizer.cost.memory import (
    FAULT_BYTES,
    RUNNING_CODE_BYTES,
    TEXT_EXPONENT,
    TEXT_FACTOR,
    TRIMMED_BYTES,
    edge_memory,
    touched_bytes,
    workspace_bytes,
)
from protos.sizes import ONE_ROW_OVERHEAD_BYTES

SMOL = load_spec("smollm2-135m").geometry
PI = load_device("raspberry-pi-5-8gb")
SECONDS = st.floats(min_value=0, max_value=10)


def plan_of(split: int, bits: int, kv_bits: int, max_tokens: int = 2048) -> Plan:
    return Plan(
        model=ModelRef(id="smol", sha256="0" * 64, geometry=SMOL),
        partition=Partition(split=split, front_bits=bits, back_bits=32),
        back_start=split,
        kv_bits=kv_bits,
        level="lossless",
        max_tokens=max_tokens,
        prefill_chunk=128,
    )


def test_edge_memory_adds_up_and_counts_the_papers_kv() -> None:
    memory = edge_memory(PI, plan_of(10, 4, 32))
    assert memory.kv_bytes == 2 * 10 * 2048 * 3 * 64 * 4
    assert memory.workspace_bytes == workspace_bytes(SMOL, 128)
    assert memory.total_bytes == pytest.approx(
        memory.runtime_bytes
        + memory.weight_bytes
        + memory.embedding_bytes
        + memory.kv_bytes
        + memory.workspace_bytes
    )
    # The empty process, a tokenizer of 49,152 entries, two rotations of 576 x 576.
    base = PI.memory.runtime_base_bytes.value
    assert memory.runtime_bytes == base + 600 * 49152 + 2 * 4 * 576 * 576
    calibrated = edge_memory(PI, dataclasses.replace(plan_of(10, 4, 32), level="q2"))
    assert memory.codec_bytes == 0
    assert 0 < calibrated.codec_bytes < 49152 * 576
    assert calibrated.total_bytes == memory.total_bytes + calibrated.codec_bytes


def test_a_process_under_a_limit_gives_pages_of_files_back() -> None:
    figure = dataclasses.replace(PI.memory.runtime_base_bytes, value=float(50 << 20))
    device = dataclasses.replace(PI, memory=dataclasses.replace(PI.memory, base_file_bytes=figure))
    free = plan_of(20, 4, 32)
    limited = dataclasses.replace(free, limits=Limits(edge_memory_bytes=1e9))
    before, after = edge_memory(device, free), edge_memory(device, limited)
    given_back = (50 << 20) - RUNNING_CODE_BYTES + TRIMMED_BYTES
    assert before.runtime_bytes - after.runtime_bytes == given_back
    assert after.embedding_bytes < before.embedding_bytes
    assert after.load_peak_bytes >= before.runtime_bytes  # it is given back once it was taken
    old = edge_memory(PI, limited)  # a profile that does not know how much is files
    assert old.runtime_bytes == before.runtime_bytes


def test_text_touches_fewer_pages_than_tokens_drawn_evenly() -> None:
    """Pages of 64 KiB that 512 and 2,048 tokens of text map in SmolLM2's table: 101 and 207 of 500
    on average, 121 and 224 at most (of documentation)."""
    table = 500 * FAULT_BYTES
    for tokens, mean, most in ((512, 101, 121), (2048, 207, 224)):
        pages = touched_bytes(table, tokens) / FAULT_BYTES
        assert mean <= pages <= 1.05 * most


def test_more_layers_bits_tokens_or_cache_bits_never_need_less_memory() -> None:
    def total(split: int = 10, bits: int = 4, kv_bits: int = 8, tokens: int = 512) -> float:
        return edge_memory(PI, plan_of(split, bits, kv_bits, tokens)).total_bytes

    for values, name in (
        (range(31), "split"),
        ((4, 8, 16, 32), "bits"),
        ((8, 16, 32), "kv_bits"),
        ((64, 512, 2048, 8192), "tokens"),
    ):
        totals = [total(**{name: value}) for value in values]
        assert totals == sorted(totals), name


def test_a_short_sequence_touches_only_part_of_a_large_embedding() -> None:
    table = 49152 * 576 * 4
    few = edge_memory(PI, plan_of(10, 32, 32, 64)).embedding_bytes
    assert 0 < few <= 64 * 65_536
    drawn = round(TEXT_FACTOR * 2048**TEXT_EXPONENT)
    boxes = np.random.default_rng(0).integers(0, table // 65_536, (200, drawn))
    touched = np.mean([len(set(draw.tolist())) for draw in boxes]) * 65_536
    middle = edge_memory(PI, plan_of(10, 32, 32, 2048)).embedding_bytes
    assert middle == pytest.approx(touched, rel=0.01)
    assert few < middle < edge_memory(PI, plan_of(10, 32, 32, 8192)).embedding_bytes <= table


def test_a_batch_walks_the_weights_once() -> None:
    device, geometry = load_device("a100-80gb"), load_spec("llama-2-7b").geometry

    def step(count: int) -> float:
        return back_step_s(
            device, geometry, num_layers=32, back_bits=16, kv_bits=16,
            sessions=[SessionRows(1, 500)] * count,
        )  # fmt: skip

    weights = 2 * (load_spec("llama-2-7b").num_parameters - 32000 * 4096)
    assert step(1) > weights / (2039e9 * device.kernel(16).decode.efficiency)
    assert step(1) < step(8) < 2 * step(1)
    assert back_step_s(
        device, geometry, num_layers=32, back_bits=16, kv_bits=16, sessions=[]
    ) == 0.0  # fmt: skip


def test_fewer_layers_in_the_cloud_cost_less() -> None:
    device, geometry = load_device("l4-24gb"), load_spec("llama-3.1-8b").geometry
    times = [
        back_step_s(
            device, geometry, num_layers=layers, back_bits=16, kv_bits=16,
            sessions=[SessionRows(1, 100)],
        )
        for layers in (8, 16, 32)
    ]  # fmt: skip
    assert times == sorted(times)
    assert times[2] - times[1] == pytest.approx(2 * (times[1] - times[0]), rel=0.05)


def test_a_transfer_takes_its_bytes_at_the_rate() -> None:
    assert transfer_s(1000, 250.0) == pytest.approx(4.0)
    assert transfer_s(1, 0.0) == float("inf")


def test_a_surer_plan_counts_on_a_worse_link() -> None:
    for name in _names():
        profile = load_link(name)
        surer, likely = link_at(profile, epsilon=0.05), link_at(profile, epsilon=0.5)
        assert surer.up_bytes_per_s <= likely.up_bytes_per_s
        assert surer.rtt_s >= likely.rtt_s


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=6))
def test_the_pipeline_is_the_longest_path(stages: list[tuple[float, float, float]]) -> None:
    front, wire, back = (tuple(stage[i] for stage in stages) for i in range(3))
    count = len(stages)
    longest = max(
        sum(front[: i + 1]) + sum(wire[i : j + 1]) + sum(back[j:])
        for i in range(count)
        for j in range(i, count)
    )
    assert pipeline_s(front, wire, back) == pytest.approx(longest)


def test_frames_cost_a_header_and_bits_rounded_up() -> None:
    level = LevelCost(
        name="4", bits_per_element=4.2, encode_fixed_s=1e-4, encode_s_per_element=1e-8,
        decode_fixed_s=2e-4, decode_s_per_element=2e-8,
    )  # fmt: skip
    assert frame_bytes(level, hidden_size=576, num_rows=1) == ONE_ROW_OVERHEAD_BYTES + 303
    assert encode_s(level, hidden_size=1000, num_rows=10) == pytest.approx(2e-4)
    assert decode_s(level, hidden_size=1000, num_rows=10) == pytest.approx(4e-4)


def test_a_levels_seconds_come_from_the_profiles_of_both_machines() -> None:
    def speed(kind: str, width: int, each: float) -> CodecSpeed:
        return CodecSpeed(
            kind=kind, hidden_size=width, source="base", encode_fixed_s=each,
            encode_s_per_element=each / 100, decode_fixed_s=2 * each,
            decode_s_per_element=each / 50,
        )  # fmt: skip

    edge = dataclasses.replace(
        PI, codec=(speed("lossless", 100, 9.0), speed("calibrated", 100, 1.0),
                   speed("calibrated", 10_000, 3.0)),
    )  # fmt: skip
    cloud = dataclasses.replace(PI, codec=(speed("calibrated", 100, 0.5),))
    own = LevelCost(name="q3", bits_per_element=3.0, encode_fixed_s=7.0, decode_fixed_s=7.0)
    level = level_on(own, edge=edge, cloud=cloud, hidden_size=1000)
    assert level.bits_per_element == 3.0
    assert level.encode_fixed_s == pytest.approx(2.0)  # half-way in the logarithm
    assert level.decode_fixed_s == pytest.approx(1.0)
    exact = level_on(
        dataclasses.replace(own, name="lossless"), edge=edge, cloud=cloud, hidden_size=100
    )
    assert (exact.encode_fixed_s, exact.decode_fixed_s) == (9.0, 7.0)
    assert level_on(own, edge=PI, cloud=PI, hidden_size=100) == own


def _names() -> tuple[str, ...]:
    from hwprofiles.links.catalog import link_names

    return link_names()
