"""Answers that outgrow the device's cache: every move is the closed form, to the byte."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles.links.catalog import load_link
from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.plan import Plan
from optimizer.cost.cloud import SessionRows, back_step_s, sample_s
from optimizer.cost.codec import answer_bytes
from optimizer.cost.link import link_at
from optimizer.cost.request import round_parts
from optimizer.cost.round_trip import NEW_CONNECTION_ROUND_TRIPS
from optimizer.cost.setting import RequestSetting
from optimizer.errors import ScenarioError
from optimizer.simulate.assemble import Inputs, plan_of
from optimizer.simulate.measures import measure
from optimizer.simulate.moving import split_capacities, split_holding
from optimizer.simulate.record import Record
from optimizer.simulate.report.files import Findings, write_files
from optimizer.simulate.scenario import (
    Arrivals,
    Deployment,
    DraftingScenario,
    Fault,
    Lengths,
    MeasuredSteps,
    Scenario,
    Servers,
    StepPoint,
)
from optimizer.simulate.setup import load_setup
from optimizer.simulate.simulation import simulate
from optimizer.simulate.sweep import with_value
from optimizer.simulate.times import FrontTimes, LowerRows, ModelledBack
from optimizer.simulate.workload import client_specs
from protos.sizes import token_frame_bytes
from tests.optimizer.simulate.scenes import LEVEL, PLAN, run, same, scene, setup_of
from tests.optimizer.simulate.test_analytic import NO_BYTES

EDGE, CLOUD = load_device("raspberry-pi-5-8gb"), load_device("local-epyc-2core")  # EDGE: 25 W
GEOMETRY = PLAN.model.geometry
SPLITS = (6, 10, 14)
MOVING = replace(
    PLAN,
    partition=replace(PLAN.partition, split=14),
    back_start=0,
    front_splits=SPLITS,
    max_tokens=100,
)
PROMPT, ANSWER = 60, 250
# Before the token behind so many, the split moves: 100 tokens at split 14 are 140 at 10, 233 at 6.
MOVES = ((100, 10), (140, 6), (233, 0))
LENGTHS = {"prompt_tokens": Lengths(median=PROMPT), "output_tokens": Lengths(median=ANSWER)}


def long_answers(*, context: str | None = "handover", **changes: object) -> Scenario:
    """One client whose answers walk from split 14 to 0."""
    changes = {"software": NO_BYTES, "duration_s": 1.5, **changes}
    return scene(group={**LENGTHS, "context": context}, **changes)


def gap_before(record: Record, num_tokens: int) -> float:
    """Seconds between the two tokens of the first answer that follow `num_tokens` - 1 tokens."""
    return record.gaps_s[num_tokens - PROMPT - 1]


def at_split(split: int) -> RequestSetting:
    return RequestSetting(
        edge=EDGE,
        cloud=CLOUD,
        link=link_at(load_link("4g"), epsilon=0.5),
        geometry=GEOMETRY,
        partition=replace(PLAN.partition, split=split),
        kv_bits=PLAN.kv_bits,
        level=LEVEL,
        chunk=PLAN.prefill_chunk,
    )


def back_s(rows: int, position: int, *, first: int = 0) -> float:
    """The server's layers from `first` on and one row of logits, for a session alone."""
    return back_step_s(
        CLOUD, GEOMETRY, num_layers=GEOMETRY.num_layers - first, back_bits=8, kv_bits=32,
        sessions=[SessionRows(rows, position)], num_logits=1,
    )  # fmt: skip


def test_an_answer_walks_through_the_splits_to_the_cloud() -> None:
    record = run(long_answers(), MOVING)
    [row] = record.requests
    assert (row.outcome, row.tokens, row.moves) == ("done", ANSWER, 3)
    assert row.move_bytes == sum(token_frame_bytes(n, want_token=True) for n, _ in MOVES)
    assert row.prompt_ids == 0
    # Tokens before the last move go as rows, and every later one as an id, each in its frame.
    ids = len(MOVES) + (PROMPT + ANSWER - 233 - 1)
    # The prompt is one frame of rows, and its answer the first token.
    assert record.level_counts == {"ids": ids, "q3": ANSWER - ids}


@pytest.mark.parametrize(("num_tokens", "split"), MOVES)
def test_a_move_takes_a_close_a_round_trip_and_the_prefill_of_ids(
    num_tokens: int, split: int
) -> None:
    record = run(long_answers(), MOVING)
    setting = at_split(split)
    link, stack_s = setting.link, setting.stack_s
    frame_bytes = token_frame_bytes(num_tokens, want_token=True)
    closed_s = link.rtt_s + stack_s
    prefill_s = back_s(num_tokens, 0) + sample_s(CLOUD, GEOMETRY, num_logits=1)
    gap_s = (
        closed_s
        + link.rtt_s
        + stack_s
        + frame_bytes / link.up_bytes_per_s
        + prefill_s
        + answer_bytes(1) / link.down_bytes_per_s
    )
    assert gap_before(record, num_tokens) == pytest.approx(gap_s, abs=1e-9)
    assert gap_s > 1.5 * gap_before(record, num_tokens - 1)


@pytest.mark.parametrize(("start", "end", "split"), [(61, 100, 14), (102, 140, 10), (142, 233, 6)])
def test_steps_at_a_split_take_what_they_take_there(start: int, end: int, split: int) -> None:
    record = run(long_answers(), MOVING)
    setting = at_split(split)
    for num_tokens in range(start, end):
        step_s = round_parts(setting, position=num_tokens - 1).total_s
        assert gap_before(record, num_tokens) == pytest.approx(step_s, abs=1e-9)


def test_at_split_0_steps_are_ids_and_no_front_runs() -> None:
    record = run(long_answers(), MOVING)
    setting = at_split(0)
    for num_tokens in (234, 309):
        frame_bytes = token_frame_bytes(
            1, sequence=num_tokens - 233, first_position=num_tokens - 1, want_token=True
        )
        step_s = (
            setting.link.rtt_s
            + setting.stack_s
            + frame_bytes / setting.link.up_bytes_per_s
            + back_s(1, num_tokens - 1)
            + sample_s(CLOUD, GEOMETRY, num_logits=1)
            + answer_bytes(1) / setting.link.down_bytes_per_s
        )
        assert gap_before(record, num_tokens) == pytest.approx(step_s, abs=1e-9)


def test_the_device_computes_every_position_once() -> None:
    """The prompt; a step for every token but the first of a part; at a move the newest token."""
    front = FrontTimes(EDGE, MOVING)
    seconds = front.seconds(PROMPT, 0) + level_s(PROMPT)
    for start, end, split in ((60, 99, 14), (99, 139, 10), (139, 232, 6)):
        for position in range(start, end):
            seconds += front.at(split).seconds(1, position)
            seconds += level_s(1) * (split == 14 or position > start)
    record = run(long_answers(), MOVING)
    assert record.edge_joules == pytest.approx(25.0 * seconds, rel=1e-9)


def level_s(rows: int) -> float:
    """Seconds of encoding a frame."""
    return LEVEL.encode_fixed_s + LEVEL.encode_s_per_element * rows * GEOMETRY.hidden_size


def test_the_parts_add_up_to_the_gaps() -> None:
    record = run(long_answers(), MOVING)
    assert sum(record.step_parts_s) == pytest.approx(sum(record.gaps_s), rel=1e-9)


def test_the_same_scenario_moves_the_same_way() -> None:
    busy = replace(long_answers(duration_s=5.0), seed=3)
    busy = replace(busy, clients=(replace(busy.clients[0], count=3),))
    assert same(run(busy, MOVING), run(busy, MOVING))


def test_without_segments_the_split_moves_to_0_at_once() -> None:
    plan = replace(MOVING, front_splits=())
    [row] = run(long_answers(), plan).requests
    assert (row.tokens, row.moves) == (ANSWER, 1)
    assert row.move_bytes == token_frame_bytes(100, want_token=True)


@pytest.mark.parametrize("context", [None, "refuse"])
def test_refuse_cuts_answers_to_the_plan(context: str | None) -> None:
    record = run(long_answers(context=context), MOVING)
    whole = replace(MOVING, front_splits=())
    assert same(record, run(long_answers(context=context), whole))
    assert {(row.tokens, row.moves, row.move_bytes) for row in record.requests} == {(40, 0, 0)}


def test_answers_that_fit_are_those_of_refuse() -> None:
    plan = replace(MOVING, max_tokens=PROMPT + ANSWER)
    moving, fixed = run(long_answers(), plan), run(long_answers(context="refuse"), plan)
    assert list(moving.gaps_s) == list(fixed.gaps_s)
    assert moving.requests == fixed.requests


@pytest.mark.parametrize(("prompt", "split", "moves"), [(99, 14, 3), (100, 10, 3), (250, 0, 1)])
def test_a_long_prompt_begins_at_the_split_that_holds_it(
    prompt: int, split: int, moves: int
) -> None:
    assert split_holding(split_capacities(MOVING, hands_over=True), prompt) == split
    group = {**LENGTHS, "prompt_tokens": Lengths(median=prompt), "context": "handover"}
    [row] = run(scene(group=group, software=NO_BYTES, duration_s=1.5), MOVING).requests
    assert (row.outcome, row.tokens, row.moves) == ("done", ANSWER, moves)
    assert row.prompt_ids == (prompt if split == 0 else 0)
    if split == 0:
        assert row.move_bytes == 0


KV_LAYER_BLOCK = GEOMETRY.kv_bytes(num_layers=1, num_tokens=16, kv_bits=32)


def blocks(num_tokens: int, split: int) -> int:
    return -(-num_tokens // 16) * (GEOMETRY.num_layers - split)


def test_kv_is_freed_before_it_is_taken_anew() -> None:
    least = blocks(PROMPT + ANSWER, 0)  # room for the last part alone
    servers = Servers(device="local-epyc-2core", kv_memory_bytes=least * KV_LAYER_BLOCK, waiting=0)
    record = run(long_answers(servers=servers), MOVING)
    assert [row.outcome for row in record.requests] == ["done"]
    [sums] = record.servers
    assert (sums.total_blocks, sums.refused) == (least, 0)


@pytest.mark.parametrize("duration_s", [100.0, 200.0])
def test_kv_is_held_as_long_as_each_session_and_no_longer(
    duration_s: float, tmp_path: Path
) -> None:
    """From where the Open comes in to where the Close does: one way later than both leave."""
    trace = tmp_path / "one.csv"
    trace.write_text(f"t_s,prompt_tokens,output_tokens\n0,{PROMPT},{ANSWER}\n", encoding="utf-8")
    scenario = long_answers(duration_s=duration_s)
    arrivals = Arrivals(kind="trace", trace=str(trace))
    group = replace(scenario.clients[0], arrivals=arrivals)
    record = run(replace(scenario, clients=(group,)), MOVING)
    round_trip_s = at_split(14).link.rtt_s + at_split(14).stack_s
    opened_s = record.requests[0].ttft_s - NEW_CONNECTION_ROUND_TRIPS * round_trip_s
    expected, before = 0.0, PROMPT + 1
    for split, end in ((14, 100), (10, 140), (6, 233), (0, PROMPT + ANSWER)):
        held_s = sum(gap_before(record, at) for at in range(before, end))
        expected += blocks(end, split) * (held_s + (opened_s if split == 14 else -round_trip_s))
        before = end
    assert record.servers[0].kv_block_seconds == pytest.approx(expected, rel=1e-9)


def test_a_session_that_has_no_room_at_a_move_is_a_lost_server() -> None:
    least = blocks(233, 6)  # and not enough for the part at split 0
    servers = Servers(device="local-epyc-2core", kv_memory_bytes=least * KV_LAYER_BLOCK)
    [row] = run(long_answers(servers=servers), MOVING).requests
    assert (row.outcome, row.tokens, row.moves) == ("server_lost", 233 - PROMPT, 3)
    assert row.move_bytes > 0


@pytest.mark.parametrize("num_tokens", [100, 140, 233])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
def test_a_move_survives_a_lost_server(num_tokens: int, share: float) -> None:
    quiet = run(long_answers(), MOVING)
    [before] = quiet.requests
    moved_s = before.asked_s + before.ttft_s + sum(quiet.gaps_s[: num_tokens - PROMPT - 1])
    at_s = moved_s + share * gap_before(quiet, num_tokens)
    fault = Fault(kind="server_loss", at_s=at_s, duration_s=0.3)
    record = run(long_answers(faults=(fault,)), MOVING)
    [row] = record.requests
    assert (row.outcome, row.tokens, row.moves) == ("done", ANSWER, 3)
    assert row.move_bytes == before.move_bytes
    assert row.e2e_s > before.e2e_s + 0.3
    assert sum(record.step_parts_s) == pytest.approx(sum(record.gaps_s), rel=1e-9)


def test_drafts_end_at_the_part_and_at_split_0() -> None:
    drafting = DraftingScenario(acceptance=1.0, length=4, best_length=False)
    plan = replace(MOVING, drafting="ngram")
    record = run(long_answers(drafting=drafting), plan)
    [row] = record.requests
    assert (row.outcome, row.tokens, row.moves) == ("done", ANSWER, 3)
    assert row.move_bytes == sum(token_frame_bytes(n, want_token=True) for n, _ in MOVES)
    # Of 40, 40 and 93 tokens of a part the first comes alone; then five a step.
    assert record.drafted == record.accepted == 4 * (7 + 7 + 18) + 3 + 3 + 1
    head = run(long_answers(drafting=drafting), replace(plan, drafting="head"))
    assert head.drafted == 4 * 7 + 3


def test_the_controller_does_not_take_a_move_for_a_stall() -> None:
    calm = long_answers(deadline_tbt_s=0.2)
    [row] = run(calm, MOVING).requests
    assert (row.outcome, row.moves) == ("done", 3)


def test_a_batch_reads_the_lowest_layer_that_a_session_enters_at() -> None:
    rows = [SessionRows(1, 90)]
    back = ModelledBack(CLOUD, MOVING, kv_bits=32)
    mixed = back.seconds(rows, 2, [LowerRows(1, 120, 10)])
    expected = back_step_s(
        CLOUD, GEOMETRY, num_layers=20, back_bits=8, kv_bits=32,
        sessions=[*rows, SessionRows(1, 120)], num_logits=2, skipped_layers=[4, 0],
    )  # fmt: skip
    assert mixed == pytest.approx(expected, rel=1e-12)
    assert back.seconds([], 1, [LowerRows(1, 120, 10)]) == pytest.approx(
        back_s(1, 120, first=10), rel=1e-12
    )


def test_moves_are_in_the_measures_and_in_the_report(tmp_path: Path) -> None:
    scenario = long_answers()
    record = run(scenario, MOVING)
    found = measure(scenario, [record, record])
    [row] = record.requests
    assert (found.split_moves, found.move_bytes) == (6, 2 * row.move_bytes)
    assert ("moves of a split", "6") in found.for_people()
    still = measure(scenario, [run(long_answers(context="refuse"), MOVING)])
    assert "moves of a split" not in dict(still.for_people())
    findings = Findings(scenario=scenario, plan=MOVING, records=[record], measures=found)
    write_files(findings, tmp_path)
    with (tmp_path / "requests.csv").open(newline="", encoding="utf-8") as file:
        [line] = csv.DictReader(file)
    assert (line["moves"], line["move_bytes"]) == ("3", str(row.move_bytes))
    assert "moves of a split" in (tmp_path / "report.html").read_text(encoding="utf-8")


MEASURED = MeasuredSteps(
    points=(StepPoint(rows=1, sessions=1, seconds=0.01),),
    context_tokens=100,
    attention_s_per_token=0.0,
)


def test_a_handover_that_cannot_be_is_one_clear_line() -> None:
    begins_there = replace(MOVING, front_splits=(), back_start=14)
    with pytest.raises(ScenarioError, match=r"clients clients: context handover: .* from 14 on"):
        setup_of(long_answers(), begins_there)
    whole = replace(
        MOVING, partition=replace(PLAN.partition, split=GEOMETRY.num_layers), front_splits=()
    )
    with pytest.raises(ScenarioError, match="context handover: this plan has no server"):
        setup_of(long_answers(), whole)
    servers = Servers(device="local-epyc-2core", measured=MEASURED)
    with pytest.raises(ScenarioError, match="nothing of the layers below"):
        setup_of(long_answers(servers=servers), MOVING)


def test_at_split_0_there_is_nothing_to_move() -> None:
    plan = replace(PLAN, partition=replace(PLAN.partition, split=0), back_start=0, max_tokens=100)
    [row] = run(long_answers(), plan).requests
    assert (row.tokens, row.moves, row.move_bytes) == (ANSWER, 0, 0)


def test_a_deployment_hands_over_too() -> None:
    deployment = Deployment(
        model="smollm2-135m", split=14, max_tokens=100, context="handover", front_splits=SPLITS
    )
    plan: Plan = plan_of(deployment)
    assert (plan.back_start, plan.front_splits) == (0, SPLITS)
    by_default = long_answers(context=None, deployment=deployment)
    assert run(by_default, plan).requests[0].moves == 3
    refused = long_answers(context="refuse", deployment=deployment)
    assert run(refused, plan).requests[0].moves == 0


def test_a_swept_split_keeps_the_cuts_below_it() -> None:
    inputs = Inputs(scenario=long_answers(), plan=MOVING)
    for split, cuts in ((12, (6, 10, 12)), (6, (6,)), (0, ())):
        assert with_value(inputs, "split", split).plan.front_splits == cuts


def test_requests_are_cut_by_group() -> None:
    one = long_answers().clients[0]
    both = replace(long_answers(), clients=(one, replace(one, name="other", context=None)))
    specs = client_specs(both, longest={"clients": 2048, "other": 100})
    assert [spec.requests[0].output_tokens for spec in specs] == [ANSWER, 40]
    record = simulate(load_setup(both, MOVING, {LEVEL.name: LEVEL}))
    assert {row.group: row.moves for row in record.requests} == {0: 3, 1: 0}
