"""From the chosen cell to a Plan: its predictions part by part, from the scalar cost models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.artifacts.prediction import (
    EdgeMemoryParts,
    Predicted,
    PredictedRanges,
    ProfilesUsed,
    StepParts,
)
from optimizer.cost.cloud import back_kv_bits
from optimizer.cost.energy import lasting_rate, predicted_cost, predicted_energy
from optimizer.cost.front_kernels import blocks_for
from optimizer.cost.levels import level_at
from optimizer.cost.memory import EdgeMemory, edge_memory
from optimizer.cost.request import NO_DRAFTS, RequestTime, predict_request, time_ranges
from optimizer.cost.round_trip import NEW_CONNECTION_ROUND_TRIPS, OPEN_ROUND_TRIPS
from optimizer.cost.setting import RequestSetting
from optimizer.cost.streaming import reading_s
from optimizer.cost.uncertainty import error_of_kind, range_of
from optimizer.policy.kv_blocks import reserved_tokens
from optimizer.search.edge_bytes import front_plan
from optimizer.search.grid import Grid
from optimizer.search.problem import Cell, DraftOption, FrontPrecision


def plan_of(
    grid: Grid,
    cell: Cell,
    *,
    model: ModelRef,
    profiles: ProfilesUsed,
    binding: tuple[str, ...] = (),
) -> Plan:
    """The plan of one configuration, with what it predicts."""
    problem, space = grid.problem, grid.problem.space
    split, front = space.splits[cell.split], space.fronts[cell.front]
    tokens = int(np.broadcast_to(grid.max_tokens, space.shape)[cell])
    plan = Plan(
        model=model,
        partition=Partition(
            split=split, front_bits=front.front_bits, back_bits=space.back_bits[cell.back]
        ),
        back_start=split if problem.back_from is None else min(problem.back_from, split),
        kv_bits=space.kv_bits[cell.kv],
        level=space.levels[cell.level].name,
        max_tokens=tokens,
        prefill_chunk=space.chunks[cell.chunk],
        exact_front=problem.exact_front,
        drafting=space.drafts[cell.draft].kind,
        front_layer_bits=_stored_layer_bits(front, split),
        weight_blocks=blocks_for(front.front_bits, problem.weight_blocks),
        streamed_layers=front_plan(problem, split, front).streamed_layers,
        prefill=grid.prefill_of(cell),
        profiles=profiles,
        limits=grid.limits,
        binding=binding,
    )
    return replace(plan, predicted=_predicted(grid, cell, plan))


def _stored_layer_bits(front: FrontPrecision, split: int) -> tuple[int, ...]:
    return front.layer_bits.get(split, ())


def _predicted(grid: Grid, cell: Cell, plan: Plan) -> Predicted:
    problem, space = grid.problem, grid.problem.space
    draft = space.drafts[cell.draft]
    level = level_at(space.levels[cell.level], problem.quality, plan.partition.split)
    setting = RequestSetting(
        edge=problem.edge,
        cloud=problem.cloud,
        link=grid.link,
        geometry=problem.geometry,
        partition=plan.partition,
        kv_bits=plan.kv_bits,
        level=level,
        chunk=plan.prefill_chunk,
        exact_front=plan.exact_front,
        front_layer_bits=plan.front_layer_bits,
        prefill=plan.prefill,
        reading_s=reading_s(problem.edge, plan),
    )
    whole = plan.edge_is_whole
    time = _request(grid, setting, draft)
    memory = _edge_memory(grid, draft, plan)
    asked = {
        "prompt_tokens": grid.limits.prompt_tokens,
        "new_tokens": problem.answer_tokens,
        "batch": grid.limits.num_sessions,
    }
    quality = {
        "split": plan.partition.split,
        "layer_bits": plan.layer_bits,
        "back_bits": plan.partition.back_bits,
        "kv_bits": plan.kv_bits,
        "level": plan.level,
    }
    session = problem.geometry.kv_bytes(
        num_layers=problem.geometry.num_layers - plan.partition.split,
        num_tokens=reserved_tokens(plan.max_tokens),
        kv_bits=back_kv_bits(problem.cloud, plan.partition.back_bits),
    )
    shape = space.shape
    index = next(i for i, n in enumerate(grid.fixed.lengths) if n >= plan.max_tokens)
    longest_tbt_s = float(np.broadcast_to(grid.longest_tbt_s(index), shape)[cell])
    ranges = _ranges(grid, setting, time, memory.total_bytes, longest_tbt_s)
    return Predicted(
        edge_memory_bytes=memory.total_bytes,
        ttft_s=time.ttft_s,
        first_ttft_s=_request(
            grid, setting, draft, open_round_trips=NEW_CONNECTION_ROUND_TRIPS
        ).ttft_s,
        tbt_s=time.tbt_s,
        longest_tbt_s=longest_tbt_s,
        uplink_bytes_per_token=time.uplink_bytes_per_token,
        quality_drop_pct=problem.quality.drop_pct(**quality),  # type: ignore[arg-type]
        quality_source=problem.quality.source_of(**quality),  # type: ignore[arg-type]
        cloud_s_per_token=time.cloud_s_per_token,
        cloud_cost_ratio=None if whole else _cloud_only_s(grid, setting) / time.cloud_s_per_token,
        cloud_memory_per_session_bytes=float(session),
        cloud_memory_bytes=float(np.broadcast_to(grid.cloud_memory_bytes, shape)[cell]),
        longest_tokens=int(np.broadcast_to(grid.longest_tokens, shape)[cell]),
        tokens_per_round=time.tokens_per_round,
        edge_memory=_memory_parts(memory),
        step=_step_parts(time, draft, whole=whole),
        ranges=ranges,
        energy=predicted_energy(setting, time, **asked),
        cost=predicted_cost(setting, time, problem.prices, **asked),
        lasting=lasting_rate(problem.edge, ranges.tbt_s),
    )


def _ranges(
    grid: Grid,
    setting: RequestSetting,
    time: RequestTime,
    memory_bytes: float,
    longest_tbt_s: float,
) -> PredictedRanges:
    """How sure the predictions are; the slowest step as sure as the one in the middle."""
    times = time_ranges(setting, time, batch=grid.limits.num_sessions)
    return PredictedRanges(
        ttft_s=times.ttft,
        tbt_s=times.tbt,
        longest_tbt_s=times.tbt.around(longest_tbt_s),
        edge_memory_bytes=range_of(memory_bytes, error_of_kind(setting.edge, "memory")),
    )


def _step_parts(time: RequestTime, draft: DraftOption, *, whole: bool) -> StepParts:
    parts = time.round_parts
    return StepParts(
        front_s=float(parts.front_s),
        encode_s=float(parts.encode_s),
        wire_s=float(parts.wire_s),
        cloud_s=0.0 if whole else float(parts.queue_s + parts.cloud_s),
        draft_s=0.0 if whole else draft.drafting.draft_s + time.ahead_s,
        sample_s=float(parts.sample_s) if whole else 0.0,
    )


def _request(
    grid: Grid,
    setting: RequestSetting,
    draft: DraftOption,
    *,
    open_round_trips: float = OPEN_ROUND_TRIPS,
) -> RequestTime:
    return predict_request(
        setting,
        prompt_tokens=grid.limits.prompt_tokens,
        new_tokens=grid.problem.answer_tokens,
        batch=grid.limits.num_sessions,
        drafting=draft.drafting,
        open_round_trips=open_round_trips,
    )


def _cloud_only_s(grid: Grid, setting: RequestSetting) -> float:
    """Seconds of the server a token when it runs the whole model itself: no frames, no drafts."""
    alone = replace(
        setting,
        partition=replace(setting.partition, split=0),
        front_layer_bits=(),
        level=replace(setting.level, decode_fixed_s=0.0, decode_s_per_element=0.0),
    )
    return _request(grid, alone, DraftOption(drafting=NO_DRAFTS)).cloud_s_per_token


def _edge_memory(grid: Grid, draft: DraftOption, plan: Plan) -> EdgeMemory:
    memory = edge_memory(grid.problem.edge, plan)
    return replace(memory, draft_bytes=0.0 if plan.edge_is_whole else draft.memory_bytes)


def _memory_parts(memory: EdgeMemory) -> EdgeMemoryParts:
    return EdgeMemoryParts(
        runtime_bytes=memory.runtime_bytes,
        weight_bytes=memory.weight_bytes,
        embedding_bytes=memory.embedding_bytes,
        kv_bytes=memory.kv_bytes,
        workspace_bytes=memory.workspace_bytes,
        load_peak_bytes=memory.load_peak_bytes + memory.draft_bytes,
        draft_bytes=memory.draft_bytes,
        codec_bytes=memory.codec_bytes,
    )
