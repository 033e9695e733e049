"""The front's time: interpolation, hand-computed roofline, and shapes any plan relies on."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwprofiles.profiles.catalog import load_device, shipped_devices
from hwprofiles.profiles.device import (
    AttentionKernel,
    AttentionPoint,
    BatchCurve,
    BatchPoint,
    DecodeCurve,
    DecodePoint,
    Figure,
    Kernel,
    LayerPoint,
)
from hwprofiles.profiles.rates import (
    attention_s,
    batch_s_per_flop,
    decode_s_per_byte,
    interpolate,
    layer_rest_s,
    matrix_s,
)
from optimizer.artifacts.specs import load_spec
from optimizer.cost.cloud import lone_step_s
from optimizer.cost.edge import answer_step_s, front_prefill, front_step

SMOL = load_spec("smollm2-135m").geometry
EDGES = [name for name in shipped_devices() if "edge" in load_device(name).roles]


def test_interpolation_is_linear_in_the_logarithm_and_flat_outside() -> None:
    assert interpolate([1.0, 100.0], [10.0, 20.0], 10.0) == pytest.approx(15.0)
    assert interpolate([1.0, 100.0], [10.0, 20.0], 0.5) == 10.0
    assert interpolate([1.0, 100.0], [10.0, 20.0], 1e9) == 20.0
    assert interpolate([4.0], [7.0], 123.0) == 7.0


def test_decode_slowness_is_read_between_working_sets_and_matrix_sizes() -> None:
    curve = DecodeCurve(
        source="x",
        points=(
            DecodePoint(matrix_bytes=1e3, working_set_bytes=1e6, bytes_per_s=4.0),
            DecodePoint(matrix_bytes=1e3, working_set_bytes=1e8, bytes_per_s=1.0),
            DecodePoint(matrix_bytes=1e5, working_set_bytes=1e6, bytes_per_s=8.0),
        ),
        efficiency=0.5,
        efficiency_source="x",
    )
    at = {
        (1e6, 1e3): 1 / 4,
        (1e8, 1e3): 1.0,
        (1e7, 1e3): (1 / 4 + 1) / 2,
        (1e6, 1e4): (1 / 4 + 1 / 8) / 2,
        (1e9, 1e9): 1 / 8,
    }
    for (working_set, matrix), expected in at.items():
        found = decode_s_per_byte(curve, working_set_bytes=working_set, matrix_bytes=matrix)
        assert found == pytest.approx(expected / 0.5)


def test_few_rows_depend_on_the_working_set_and_many_do_not_walk_it() -> None:
    points = (
        BatchPoint(num_rows=2, flops_per_s=4.0, working_set_bytes=1e6),
        BatchPoint(num_rows=64, flops_per_s=8.0, working_set_bytes=1e6),
        BatchPoint(num_rows=2, flops_per_s=1.0, working_set_bytes=1e8),
        BatchPoint(num_rows=64, flops_per_s=8.0, working_set_bytes=1e8),
    )
    curve = BatchCurve(source="x", points=points)

    def slowness(rows: int, working_set: float) -> float:
        return float(
            batch_s_per_flop(curve, num_rows=rows, num_weights=1e6, working_set_bytes=working_set)
        )

    assert slowness(2, 1e6) == pytest.approx(1 / 4)
    assert slowness(2, 1e8) == pytest.approx(1.0)
    assert slowness(2, 1e7) == pytest.approx((1 / 4 + 1) / 2)
    assert slowness(64, 1e6) == slowness(64, 1e8) == pytest.approx(1 / 8)
    decode = DecodeCurve(source="x", points=(DecodePoint(working_set_bytes=0, bytes_per_s=1e-9),))
    kernel = Kernel(
        weight_bits=32, compute="fp32", dispatch_s=0.5, source="x", decode=decode, batch=curve
    )
    found = matrix_s(kernel, num_weights=10, matrix_bytes=40, num_rows=64, working_set_bytes=1e8)
    assert found == pytest.approx(0.5 + 2 * 64 * 10 / 8)  # the one-row rate is no floor here


def test_the_rest_of_a_layer_is_read_by_width_rows_and_sessions() -> None:
    def point(width: int, sessions: int, rows: int, seconds: float) -> LayerPoint:
        return LayerPoint(width=width, num_sessions=sessions, num_rows=rows, seconds=seconds)

    layers = (
        point(100, 1, 1, 1.0), point(100, 1, 9, 5.0), point(100, 4, 4, 7.0),
        point(200, 1, 1, 3.0), point(200, 1, 9, 7.0),
    )  # fmt: skip
    kernel = replace(load_device("local-epyc-2core").kernel(32), layers=layers)
    overheads = load_device("local-epyc-2core").overheads

    def rest(width: int, rows: int, sessions: int = 1) -> float:
        found = layer_rest_s(
            kernel, overheads, width=width, inner=300, num_rows=rows, num_sessions=sessions
        )
        return float(found)

    assert rest(100, 1) == 1.0
    assert rest(100, 5) == pytest.approx(3.0)
    assert rest(100, 17) == pytest.approx(9.0)  # the last piece goes on
    assert rest(100, 4, 4) == pytest.approx(7.0)
    assert rest(100, 9, 4) == pytest.approx(5.0 + 7.0 - 2.5)  # rows, and what company costs
    assert rest(200, 1) == 3.0
    assert rest(400, 1) == pytest.approx(6.0)  # in proportion beyond the widest
    none = replace(kernel, layers=())
    assert layer_rest_s(
        none, overheads, width=100, inner=300, num_rows=1
    ) == overheads.layer_s.effective  # fmt: skip


def test_batch_and_attention_read_off_their_points() -> None:
    curve = BatchCurve(
        source="x",
        points=(BatchPoint(num_rows=2, flops_per_s=1.0), BatchPoint(num_rows=8, flops_per_s=4.0)),
    )
    assert batch_s_per_flop(curve, num_rows=4, num_weights=1e6) == pytest.approx(2 / 4)
    assert batch_s_per_flop(curve, num_rows=16, num_weights=1e6) == pytest.approx(2 / 16)
    assert batch_s_per_flop(curve, num_rows=1, num_weights=1e6) == pytest.approx(1.0)
    kernel = AttentionKernel(
        kv_bits=32,
        source="x",
        points=(
            AttentionPoint(num_rows=1, fixed_s=3.0, flops_per_s=100.0),
            AttentionPoint(num_rows=4, fixed_s=8.0, flops_per_s=200.0),
        ),
        width=10,
    )
    sizes: dict[str, Any] = {
        "num_heads": 2, "num_kv_heads": 1, "head_dim": 10, "working_set_bytes": 0.0,
    }  # fmt: skip
    one = attention_s(kernel, num_rows=1, num_tokens=50, **sizes)
    assert one == pytest.approx(3.0 + 4 * 20 * 50 / 100)  # a single row's fixed part is dispatch
    four = attention_s(kernel, num_rows=4, num_tokens=50, **sizes)
    assert four == pytest.approx(8.0 * 20 / 10 + 4 * 4 * 20 * 50 / 200)


def test_the_fixed_part_of_many_rows_grows_with_queries_keys_and_values() -> None:
    kernel = AttentionKernel(
        kv_bits=8,
        source="x",
        points=(AttentionPoint(num_rows=32, fixed_s=3.0, flops_per_s=200.0),),
        width=12 * 64,
        packed_width=(12 + 2 * 4) * 64,
    )
    for heads, kv_heads in ((9, 3), (14, 2), (16, 16)):
        found = attention_s(
            kernel, num_rows=32, num_tokens=50, num_heads=heads, num_kv_heads=kv_heads,
            head_dim=64, working_set_bytes=0.0,
        )  # fmt: skip
        slope = 4 * 32 * heads * 64 / 200
        assert found == pytest.approx(3.0 * (heads + 2 * kv_heads) / 20 + slope * 50)


def test_a_pause_costs_seconds_and_in_older_files_a_factor() -> None:
    device = load_device("local-epyc-2core")
    source = next(iter(device.sources))
    times = Figure(value=1.5, source=source)
    longer = Figure(value=4e-4, source=source)
    old = replace(device, overheads=replace(device.overheads, after_pause=times, pause_s=None))
    new = replace(device, overheads=replace(old.overheads, pause_s=longer))
    assert answer_step_s(old, 2e-3, waits=True) == pytest.approx(3e-3)
    assert answer_step_s(new, 2e-3, waits=True) == pytest.approx(2.4e-3)
    assert answer_step_s(new, 8e-3, waits=True) == pytest.approx(8.4e-3)  # not in proportion
    assert answer_step_s(new, 2e-3, waits=False) == pytest.approx(2e-3)
    assert lone_step_s(new, 2e-3, 1) == pytest.approx(2.4e-3)
    assert lone_step_s(new, 2e-3, 2) == pytest.approx(2e-3)  # with others it does not wait


def test_the_rest_of_whole_layers_is_read_off_within_its_working_set() -> None:
    points = tuple(
        LayerPoint(
            width=512, working_set_bytes=size, num_sessions=1, num_rows=rows, seconds=seconds
        )
        for size, rows, seconds in (
            (1e7, 1, 1e-5),
            (1e7, 33, 9e-5),
            (1e9, 1, 3e-5),
            (1e9, 33, 9e-5),
        )
    )
    device = load_device("local-epyc-2core")
    kernel = replace(device.kernels[0], layers=points)

    def rest(rows: int, working_set: float, width: int = 512) -> float:
        found = layer_rest_s(
            kernel, device.overheads, width=width, inner=1536, num_rows=rows,
            working_set_bytes=working_set,
        )  # fmt: skip
        return float(found)

    assert rest(1, 1e6) == pytest.approx(1e-5)  # held outside
    assert rest(1, 1e8) == pytest.approx(2e-5)  # half way in the logarithm
    assert rest(1, 1e10) == pytest.approx(3e-5)
    assert rest(17, 1e8) == pytest.approx((5e-5 + 6e-5) / 2)  # linear in the rows
    assert rest(1, 1e8, width=1024) == pytest.approx(4e-5)  # in proportion beyond
    many = layer_rest_s(
        kernel, device.overheads, width=512, inner=1536, num_rows=1,
        working_set_bytes=np.array([1e6, 1e8, 1e10]),
    )  # fmt: skip
    assert many == pytest.approx([1e-5, 2e-5, 3e-5])


def test_a_data_sheet_decode_step_is_the_roofline_by_hand() -> None:
    device = load_device("raspberry-pi-5-8gb")
    weights = 576 * 960 + 576 * 576 + 3 * 576 * 1536
    bandwidth = 17.07e9 * 0.66
    matrices = 10 * (weights * (0.5 + 4.5 / 32) / bandwidth + 5 * device.kernel(4).dispatch_s)
    step = front_step(device, SMOL, split=10, weight_bits=4, kv_bits=32, num_rows=1, position=99)
    assert step.matrices_s == pytest.approx(matrices)
    point = device.attention_kernel(32).points[0]
    attention = point.fixed_s + 4 * 576 * 100 / (point.flops_per_s * 0.5)
    assert step.attention_s == pytest.approx(10 * attention)
    assert step.total_s == pytest.approx(
        step.matrices_s + step.attention_s + step.elementwise_s + step.step_s
    )


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_time_grows_with_layers_position_and_rows(name: str, bits: int) -> None:
    device = load_device(name)

    def seconds(split: int, rows: int, position: int) -> float:
        return float(front_step(
            device, SMOL, split=split, weight_bits=bits, kv_bits=32, num_rows=rows,
            position=position,
        ).total_s)  # fmt: skip

    layers = [seconds(split, 1, 100) for split in range(31)]
    assert all(after > before for before, after in itertools.pairwise(layers))
    positions = [seconds(10, 1, position) for position in (0, 16, 512, 2000, 8000)]
    assert all(after > before for before, after in itertools.pairwise(positions))
    rows = [seconds(10, count, 0) for count in (1, 16, 32, 128, 512)]
    assert all(after > before for before, after in itertools.pairwise(rows))


def test_a_prompt_is_its_chunks() -> None:
    device = load_device("raspberry-pi-5-8gb")
    chosen: dict[str, Any] = {"split": 5, "weight_bits": 8, "kv_bits": 8}
    chunks = front_prefill(device, SMOL, num_tokens=300, chunk=128, **chosen)
    assert len(chunks) == 3
    last = front_step(device, SMOL, num_rows=44, position=256, **chosen)
    assert chunks[-1] == pytest.approx(last.total_s)
    assert math.fsum(chunks) > front_step(device, SMOL, num_rows=1, position=0, **chosen).total_s


def test_a_70b_model_is_costed_without_weights_fast_enough_to_search() -> None:
    geometry = load_spec("llama-3.1-70b").geometry
    step = front_step(
        load_device("jetson-agx-orin-64gb"), geometry, split=40, weight_bits=4, kv_bits=32,
        num_rows=1, position=4096,
    )  # fmt: skip
    weight_time = 40 * 855_638_016 * 0.640625 / (204.8e9 * 0.2)
    assert weight_time < step.total_s < 1.5 * weight_time
