"""Moves that bring keys and values along: every one is the closed form, to the byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from codec.kv.frame import KV_BITS, KvFrames
from optimizer.artifacts.plan import Plan
from optimizer.cost.cloud import sample_s
from optimizer.cost.codec import answer_bytes
from optimizer.policy.move_transport import DECODE_S, ENCODE_S, MoveChoice
from optimizer.simulate.record import Record
from optimizer.simulate.scenario import Fault, Link, Servers
from optimizer.simulate.setup import load_setup
from optimizer.simulate.simulation import simulate
from optimizer.simulate.times import LevelTimes
from protos.sizes import token_frame_bytes
from tests.optimizer.simulate.scenes import LEVEL, run, setup_of
from tests.optimizer.simulate.test_moving import (
    ANSWER,
    CLOUD,
    GEOMETRY,
    KV_LAYER_BLOCK,
    MOVING,
    PROMPT,
    at_split,
    back_s,
    blocks,
    gap_before,
    long_answers,
)

SHIPPING = replace(MOVING, kv_bits=32, max_tokens=100)
BY_KV: MoveChoice = "kv"
BY_IDS: MoveChoice = "ids"
WAYS: tuple[MoveChoice, ...] = ("auto", "kv", "ids")


def shipped(move_by: MoveChoice, plan: Plan = SHIPPING, **changes: Any) -> Record:
    """The record of one client whose answers move as `move_by` says."""
    scenario = long_answers(**changes)
    return run(replace(scenario, clients=(replace(scenario.clients[0], move_by=move_by),)), plan)


def kv_frames(num_tokens: int, before: int, after: int) -> list[tuple[int, int]]:
    """Tokens and bytes of keys and values of each frame of a move behind `num_tokens` tokens."""
    frames = KvFrames(
        hidden_size=GEOMETRY.hidden_size,
        layers=range(after, before),
        num_heads=GEOMETRY.num_kv_heads,
        head_dim=GEOMETRY.head_dim,
    )
    rows = [
        min(frames.max_tokens, num_tokens - 1 - start)
        for start in range(0, num_tokens - 1, frames.max_tokens)
    ]
    return [(n, round(n * frames.num_elements * KV_BITS["kv8"] / 8)) for n in rows]


def kv_bytes_up(num_tokens: int, before: int, after: int) -> int:
    """Of a move's frames: keys and values beside ids, and at split 0 the newest token's id."""
    total = sequence = position = 0
    for rows, kv_bytes in kv_frames(num_tokens, before, after):
        total += token_frame_bytes(
            rows,
            sequence=sequence,
            first_position=position,
            want_token=False,
            kv_bytes=kv_bytes,
        )
        sequence, position = sequence + 1, position + rows
    return total + (newest_bytes(num_tokens, before) if after == 0 else 0)


def newest_bytes(num_tokens: int, before: int) -> int:
    """Of the newest token's id behind the keys and values of a move to split 0."""
    sequence = len(kv_frames(num_tokens, before, 0))
    return token_frame_bytes(1, sequence=sequence, first_position=num_tokens - 1, want_token=True)


KV_MOVES = ((100, 14, 10), (140, 10, 6), (233, 6, 0))


def test_a_move_by_keys_and_values_sends_them_and_the_newest_id() -> None:
    record = shipped(BY_KV)
    [row] = record.requests
    assert (row.outcome, row.tokens, row.moves) == ("done", ANSWER, 3)
    assert row.move_bytes == sum(kv_bytes_up(*move) for move in KV_MOVES)
    assert record.level_counts["kv:kv8"] == sum(len(kv_frames(*move)) for move in KV_MOVES)


@pytest.mark.parametrize(("num_tokens", "before", "after"), KV_MOVES)
def test_a_move_by_keys_and_values_takes_a_round_trip_and_their_bytes(
    num_tokens: int, before: int, after: int
) -> None:
    """The Open; the frames one behind the other on the link; decoding; the newest token's step.

    It goes as a row, which the device computes while the link is busy, or at split 0 as an id.
    """
    setting = at_split(after)
    link, stack_s = setting.link, setting.stack_s
    elements = 2 * (before - after) * GEOMETRY.num_kv_heads * GEOMETRY.head_dim
    last_rows = kv_frames(num_tokens, before, after)[-1][0]
    kv_s = kv_bytes_up(num_tokens, before, after) / link.up_bytes_per_s
    assert ENCODE_S * elements * (num_tokens - 1) < link.rtt_s  # hidden behind the round trip
    row, decode_s = LevelTimes(LEVEL, GEOMETRY.hidden_size).frame(1, of_prompt=True), 0.0
    newest_s = newest_bytes(num_tokens, before) / link.up_bytes_per_s
    if after:
        newest_s, decode_s = row.num_bytes / link.up_bytes_per_s, row.decode_s
        kv_s += newest_s
    gap_s = (
        2 * (link.rtt_s + stack_s)
        + kv_s
        + max(DECODE_S * elements * last_rows - newest_s, 0.0)
        + decode_s
        + back_s(1, num_tokens - 1, first=after)
        + sample_s(CLOUD, GEOMETRY, num_logits=1)
        + answer_bytes(1) / link.down_bytes_per_s
    )
    assert gap_before(shipped(BY_KV), num_tokens) == pytest.approx(gap_s, abs=1e-9)


def test_the_policy_takes_the_quicker_way() -> None:
    by_kv, by_ids, auto = shipped(BY_KV), shipped(BY_IDS), shipped("auto")
    for num_tokens, _, _ in KV_MOVES:
        gaps = [gap_before(record, num_tokens) for record in (by_kv, by_ids)]
        assert gap_before(auto, num_tokens) == pytest.approx(min(gaps), abs=1e-9)
    assert by_ids.level_counts["ids"] > 3
    assert not any(level.startswith("kv") for level in by_ids.level_counts)


def test_over_a_fast_link_the_policy_sends_keys_and_values() -> None:
    lan = Link(mix={"lan": 1.0}, quantile=0.5)
    scenario = long_answers()
    group = replace(scenario.clients[0], link=lan)
    by = {
        way: run(replace(scenario, clients=(replace(group, move_by=way),)), SHIPPING)
        for way in WAYS
    }
    assert by["auto"].level_counts == by["kv"].level_counts
    assert by["auto"].level_counts["kv:kv8"] == 3
    for num_tokens, _, _ in KV_MOVES:
        assert gap_before(by["kv"], num_tokens) < gap_before(by["ids"], num_tokens)


def test_a_small_cache_moves_by_ids() -> None:
    record = shipped(BY_KV, replace(SHIPPING, kv_bits=8))
    assert record.level_counts["ids"] > 3
    assert not any(level.startswith("kv") for level in record.level_counts)


def test_lossless_rows_move_with_lossless_keys_and_values() -> None:
    exact = replace(LEVEL, name="lossless", bits_per_element=28.0)
    group = replace(long_answers().clients[0], move_by=BY_KV)
    setup = load_setup(
        replace(long_answers(), clients=(group,)),
        replace(SHIPPING, level="lossless"),
        {exact.name: exact},
    )
    record = simulate(setup)
    [row] = record.requests
    sent = {level for level in record.level_counts if level.startswith("kv")}
    assert sent == {"kv:lossless"}
    assert row.move_bytes > 3 * sum(kv_bytes_up(*move) for move in KV_MOVES)


def test_no_room_for_both_sessions_is_a_move_by_ids() -> None:
    """The older session's blocks are free then, and its Open has cost a round trip."""
    least = blocks(PROMPT + ANSWER, 0)
    servers = Servers(device="local-epyc-2core", kv_memory_bytes=least * KV_LAYER_BLOCK, waiting=0)
    record = shipped(BY_KV, servers=servers)
    [row] = record.requests
    assert (row.outcome, row.tokens, row.moves) == ("done", ANSWER, 3)
    last_move = token_frame_bytes(233, want_token=True)
    assert row.move_bytes == kv_bytes_up(100, 14, 10) + kv_bytes_up(140, 10, 6) + last_move
    setting = at_split(0)
    expected_s = (
        2 * (setting.link.rtt_s + setting.stack_s)
        + last_move / setting.link.up_bytes_per_s
        + back_s(233, 0)
        + sample_s(CLOUD, GEOMETRY, num_logits=1)
        + answer_bytes(1) / setting.link.down_bytes_per_s
    )
    assert gap_before(record, 233) == pytest.approx(expected_s, abs=1e-9)


@pytest.mark.parametrize("num_tokens", [100, 140, 233])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
def test_a_server_lost_while_keys_and_values_move_gets_ids(num_tokens: int, share: float) -> None:
    quiet = shipped(BY_KV)
    [before] = quiet.requests
    moved_s = before.asked_s + before.ttft_s + sum(quiet.gaps_s[: num_tokens - PROMPT - 1])
    at_s = moved_s + share * gap_before(quiet, num_tokens)
    fault = Fault(kind="server_loss", at_s=at_s, duration_s=0.3)
    record = shipped(BY_KV, faults=(fault,))
    [row] = record.requests
    assert (row.outcome, row.tokens, row.moves) == ("done", ANSWER, 3)
    assert gap_before(record, num_tokens) > 0.3
    assert row.move_bytes <= before.move_bytes
    assert sum(record.step_parts_s) == pytest.approx(sum(record.gaps_s), rel=1e-9)


def test_every_block_is_free_once_the_clients_are_done() -> None:
    """Many clients that move at once, over a server that is lost in between: no block is left."""
    fault = Fault(kind="server_loss", at_s=2.0, duration_s=0.3)
    busy = long_answers(duration_s=4.0, drain_s=600.0, faults=(fault,))
    busy = replace(busy, clients=(replace(busy.clients[0], count=5, move_by="kv"),))
    setup = setup_of(busy, SHIPPING)
    record = simulate(setup)
    assert {row.outcome for row in record.requests} == {"done"}
    assert all(row.moves == 3 for row in record.requests)
    longer = simulate(replace(setup, scenario=replace(busy, drain_s=1200.0)))
    assert longer.servers == record.servers
    assert record.servers[0].peak_sessions <= 5
