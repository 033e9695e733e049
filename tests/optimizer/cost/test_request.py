"""One request end to end: the parts are the other models', in line; limits have closed forms."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.profiles.catalog import load_device
from hwprofiles.profiles.device import Figure
from optimizer.artifacts.plan import Partition
from optimizer.artifacts.specs import load_spec
from optimizer.cost.cloud import SessionRows, back_step_s
from optimizer.cost.codec import LevelCost, answer_bytes, frame_bytes
from optimizer.cost.edge import front_step
from optimizer.cost.link import LinkPoint
from optimizer.cost.prompt import prefill_s
from optimizer.cost.request import (
    DraftedRound,
    expected_tokens,
    predict_request,
    round_parts,
)
from optimizer.cost.round_trip import RequestParts
from optimizer.cost.setting import RequestSetting
from tests.optimizer.hot_devices import drowsy, hot

LEVEL = LevelCost(
    name="x", bits_per_element=4.0, encode_fixed_s=1e-4, encode_s_per_element=1e-8,
    decode_fixed_s=5e-5, decode_s_per_element=2e-8,
)  # fmt: skip
LINK = LinkPoint(up_bytes_per_s=2.5e5, down_bytes_per_s=1.25e6, rtt_s=0.05)
LLAMA = load_spec("llama-2-7b").geometry
BASE = RequestSetting(
    edge=load_device("jetson-orin-nano-8gb"),
    cloud=load_device("a100-80gb"),
    link=LINK,
    geometry=LLAMA,
    partition=Partition(split=8, front_bits=4, back_bits=16),
    kv_bits=8,
    level=LEVEL,
)


def test_a_step_counts_the_speed_that_lasts_and_a_prompt_the_full_one() -> None:
    warm = dataclasses.replace(BASE, edge=hot(BASE.edge, share=0.5))
    cool, slow = (
        predict_request(setting, prompt_tokens=300, new_tokens=50) for setting in (BASE, warm)
    )
    assert slow.round_parts.front_s == pytest.approx(2 * cool.round_parts.front_s)
    assert slow.tbt_s - cool.tbt_s == pytest.approx(cool.round_parts.front_s)
    assert slow.ttft_s == cool.ttft_s


def test_steps_that_wait_for_the_other_side_are_slower_and_others_are_not() -> None:
    drowsy_both = dataclasses.replace(
        BASE, edge=drowsy(BASE.edge, times=1.5), cloud=drowsy(BASE.cloud, times=2.0)
    )
    awake, slow = (
        predict_request(setting, prompt_tokens=300, new_tokens=50)
        for setting in (BASE, drowsy_both)
    )
    assert slow.round_parts.front_s == pytest.approx(1.5 * awake.round_parts.front_s)
    assert slow.round_parts.back_s == pytest.approx(2.0 * awake.round_parts.back_s)
    assert slow.ttft_s == awake.ttft_s
    many, alike = (round_parts(s, position=300, batch=8).back_s for s in (BASE, drowsy_both))
    assert alike == many  # a server with others to serve does not wait
    whole = Partition(split=32, front_bits=4, back_bits=16)
    alone, same = (
        round_parts(dataclasses.replace(s, partition=whole), position=300).front_s
        for s in (BASE, drowsy_both)
    )
    assert same == alone


def test_a_speed_that_did_not_fall_changes_nothing() -> None:
    warm = dataclasses.replace(BASE, edge=hot(BASE.edge, share=1.2))
    assert round_parts(warm, position=10) == round_parts(BASE, position=10)


def test_a_round_is_its_parts_in_line() -> None:
    parts = round_parts(BASE, position=500)
    front = front_step(
        BASE.edge, LLAMA, split=8, weight_bits=4, kv_bits=8, num_rows=1, position=500
    ).total_s
    back = back_step_s(
        BASE.cloud, LLAMA, num_layers=24, back_bits=16, kv_bits=16,
        sessions=[SessionRows(1, 500)],
    )  # fmt: skip
    num_bytes = frame_bytes(LEVEL, hidden_size=4096, num_rows=1)
    expected = RequestParts(
        front_s=front,
        encode_s=1e-4 + 4096e-8,
        up_s=0.025 + num_bytes / 2.5e5,
        decode_s=5e-5 + 2 * 4096e-8,
        back_s=back,
        down_s=0.025 + answer_bytes(1) / 1.25e6,
    )
    for part in dataclasses.fields(RequestParts):
        found, wanted = getattr(parts, part.name), getattr(expected, part.name)
        assert found == pytest.approx(wanted), part.name
    assert parts.total_s == pytest.approx(expected.total_s)


def chunk_alone_s(setting: RequestSetting, *, position: int, num_rows: int) -> float:
    """A prompt's chunk with nothing beside it: its rows go through the front together."""
    parts = round_parts(setting, position=position, num_rows=num_rows, num_logits=1)
    front = front_step(
        setting.edge,
        LLAMA,
        split=8,
        weight_bits=4,
        kv_bits=8,
        num_rows=num_rows,
        position=position,
    )
    return float(dataclasses.replace(parts, front_s=front.total_s).total_s)


def test_one_chunk_is_a_round_and_many_overlap() -> None:
    alone_s = chunk_alone_s(BASE, position=0, num_rows=100)
    assert prefill_s(BASE, num_tokens=100) == pytest.approx(alone_s)
    chunked = dataclasses.replace(BASE, chunk=25)
    in_line = sum(
        chunk_alone_s(chunked, position=start, num_rows=25) for start in range(0, 100, 25)
    )
    assert prefill_s(chunked, num_tokens=100) < in_line - 3 * LINK.rtt_s


def test_the_front_makes_the_rows_of_drafts_one_by_one() -> None:
    def one_s(position: int) -> float:
        return float(round_parts(BASE, position=position).front_s)

    drafted = round_parts(BASE, position=400, num_rows=5).front_s
    assert drafted == pytest.approx(sum(one_s(400 + row) for row in range(5)), rel=1e-3)


def test_company_costs_queueing_and_a_longer_step() -> None:
    alone, company = (round_parts(BASE, position=100, batch=batch) for batch in (1, 16))
    assert alone.queue_s == 0
    assert company.back_s > alone.back_s
    assert company.queue_s == pytest.approx(company.back_s / 2)
    shared = predict_request(BASE, prompt_tokens=10, new_tokens=10, batch=16)
    single = predict_request(BASE, prompt_tokens=10, new_tokens=10)
    assert shared.tbt_s > single.tbt_s
    assert shared.cloud_s_per_token < single.cloud_s_per_token


def test_with_all_layers_on_the_edge_nothing_travels() -> None:
    whole = dataclasses.replace(BASE, partition=Partition(split=32, front_bits=4, back_bits=16))
    found = predict_request(whole, prompt_tokens=64, new_tokens=10)
    assert found.uplink_bytes == found.cloud_s == found.open_s == 0
    step = front_step(
        whole.edge, LLAMA, split=32, weight_bits=4, kv_bits=8, num_rows=1, position=64 + 4
    ).total_s
    assert found.tbt_s == pytest.approx(step)
    dead = LinkPoint(up_bytes_per_s=0, down_bytes_per_s=0, rtt_s=0.1)
    assert math.isfinite(
        predict_request(
            dataclasses.replace(whole, link=dead), prompt_tokens=4, new_tokens=2
        ).total_s
    )
    assert predict_request(
        dataclasses.replace(BASE, link=dead), prompt_tokens=4, new_tokens=2
    ).tbt_s == math.inf  # fmt: skip


def test_drafts_that_are_right_divide_the_round_trip() -> None:
    plain = predict_request(BASE, prompt_tokens=100, new_tokens=101)
    drafting = DraftedRound(num_drafts=3, tokens_per_round=4.0, draft_s=1e-3)
    found = predict_request(BASE, prompt_tokens=100, new_tokens=101, drafting=drafting)
    assert found.tbt_s == pytest.approx((found.round_parts.total_s + 1e-3) / 4)
    assert found.tbt_s < plain.tbt_s
    beyond_front_s = plain.tbt_s - plain.round_parts.front_s
    assert found.tbt_s - found.round_parts.front_s / 4 < beyond_front_s / 2
    useless = DraftedRound(num_drafts=3, tokens_per_round=1.0)
    wasted = predict_request(BASE, prompt_tokens=100, new_tokens=101, drafting=useless)
    assert wasted.tbt_s > plain.tbt_s
    assert wasted.uplink_bytes_per_token > 3 * plain.uplink_bytes_per_token


@given(
    acceptance=st.floats(min_value=0, max_value=1), num_drafts=st.integers(min_value=0, max_value=9)
)
def test_expected_tokens_is_the_sum_of_the_chances(acceptance: float, num_drafts: int) -> None:
    summed = sum(acceptance**i for i in range(num_drafts + 1))
    assert expected_tokens(acceptance, num_drafts) == pytest.approx(summed)


def test_stacks_and_sampling_count_where_they_were_measured() -> None:
    overheads = dataclasses.replace(
        BASE.cloud.overheads,
        message_s=Figure(value=4e-4, source="overheads"),
        sample_s_per_logit=Figure(value=1e-9, source="overheads"),
        session_s=Figure(value=1e-4, source="overheads"),
    )
    cloud = dataclasses.replace(BASE.cloud, overheads=overheads)
    unmeasured = dataclasses.replace(BASE.cloud.overheads, session_s=None)
    without = dataclasses.replace(BASE.cloud, overheads=unmeasured)
    plain = round_parts(dataclasses.replace(BASE, cloud=without), position=9)
    full = round_parts(dataclasses.replace(BASE, cloud=cloud), position=9)
    assert full.up_s - plain.up_s == pytest.approx(2e-4)
    assert full.down_s - plain.down_s == pytest.approx(2e-4)
    assert full.sample_s == pytest.approx(32_000e-9)
    assert full.back_s - plain.back_s == pytest.approx(1e-4)


def test_a_front_of_mixed_precision_lies_between_its_uniform_ones() -> None:
    def front(bits: int, layers: tuple[int, ...] = ()) -> float:
        partition = Partition(split=8, front_bits=bits, back_bits=16)
        mixed = dataclasses.replace(BASE, partition=partition, front_layer_bits=layers)
        return float(round_parts(mixed, position=10).front_s)

    assert front(8, (8,) * 8) == pytest.approx(front(8))
    assert front(4, (4,) * 8) == pytest.approx(front(4))
    assert front(4) < front(8, (4, 8) * 4) < front(8)
