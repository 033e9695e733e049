"""From the chosen cell to a Plan: its predictions part by part, from the scalar cost models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.artifacts.prediction import EdgeMemoryParts, Predicted, ProfilesUsed, StepParts
from optimizer.cost.cloud import back_kv_bits
from optimizer.cost.levels import level_at
from optimizer.cost.memory import edge_memory
from optimizer.cost.request import (
    NEW_CONNECTION_ROUND_TRIPS,
    NO_DRAFTS,
    OPEN_ROUND_TRIPS,
    Deployment,
    RequestTime,
    predict_request,
)
from optimizer.search.grid import Grid
from optimizer.search.problem import Cell, DraftChoice, Front


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
        profiles=profiles,
        limits=grid.limits,
        binding=binding,
    )
    return replace(plan, predicted=_predicted(grid, cell, plan))


def _stored_layer_bits(front: Front, split: int) -> tuple[int, ...]:
    return front.layer_bits.get(split, ())


def _predicted(grid: Grid, cell: Cell, plan: Plan) -> Predicted:
    problem, space = grid.problem, grid.problem.space
    draft = space.drafts[cell.draft]
    level = level_at(space.levels[cell.level], problem.quality, plan.partition.split)
    deployment = Deployment(
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
    )
    whole = plan.edge_is_whole
    time = _request(grid, deployment, draft)
    memory = _memory_parts(grid, draft, plan)
    quality = {
        "split": plan.partition.split,
        "layer_bits": plan.layer_bits,
        "back_bits": plan.partition.back_bits,
        "kv_bits": plan.kv_bits,
        "level": plan.level,
    }
    session = problem.geometry.kv_bytes(
        num_layers=problem.geometry.num_layers - plan.partition.split,
        num_tokens=plan.max_tokens,
        kv_bits=back_kv_bits(problem.cloud),
    )
    parts = time.round_parts
    shape = space.shape
    index = next(i for i, n in enumerate(grid.tables.lengths) if n >= plan.max_tokens)
    return Predicted(
        edge_memory_bytes=_total(memory),
        ttft_s=time.ttft_s,
        first_ttft_s=_request(
            grid, deployment, draft, open_round_trips=NEW_CONNECTION_ROUND_TRIPS
        ).ttft_s,
        tbt_s=time.tbt_s,
        longest_tbt_s=float(np.broadcast_to(grid.longest_tbt_s(index), shape)[cell]),
        uplink_bytes_per_token=time.uplink_bytes_per_token,
        quality_drop_pct=problem.quality.drop_pct(**quality),  # type: ignore[arg-type]
        quality_source=problem.quality.source_of(**quality),  # type: ignore[arg-type]
        cloud_s_per_token=time.cloud_s_per_token,
        cloud_cost_ratio=None
        if whole
        else _cloud_only_s(grid, deployment) / time.cloud_s_per_token,
        cloud_memory_per_session_bytes=float(session),
        cloud_memory_bytes=float(np.broadcast_to(grid.cloud_memory_bytes, shape)[cell]),
        longest_tokens=int(np.broadcast_to(grid.longest_tokens, shape)[cell]),
        tokens_per_round=1.0 if whole else draft.drafting.tokens_per_round,
        edge_memory=memory,
        step=StepParts(
            front_s=parts.front_s,
            encode_s=parts.encode_s,
            wire_s=parts.up_s + parts.down_s,
            cloud_s=0.0 if whole else parts.queue_s + parts.cloud_s,
            draft_s=0.0 if whole else draft.drafting.draft_s,
            sample_s=parts.sample_s if whole else 0.0,
        ),
    )


def _request(
    grid: Grid,
    deployment: Deployment,
    draft: DraftChoice,
    *,
    open_round_trips: float = OPEN_ROUND_TRIPS,
) -> RequestTime:
    return predict_request(
        deployment,
        prompt_tokens=grid.limits.prompt_tokens,
        new_tokens=grid.problem.answer_tokens,
        batch=grid.limits.num_sessions,
        drafting=draft.drafting,
        open_round_trips=open_round_trips,
    )


def _cloud_only_s(grid: Grid, deployment: Deployment) -> float:
    """Seconds of the server a token when it runs the whole model itself: no frames, no drafts."""
    alone = replace(
        deployment,
        partition=replace(deployment.partition, split=0),
        front_layer_bits=(),
        level=replace(deployment.level, decode_fixed_s=0.0, decode_s_per_element=0.0),
    )
    return _request(grid, alone, DraftChoice(drafting=NO_DRAFTS)).cloud_s_per_token


def _memory_parts(grid: Grid, draft: DraftChoice, plan: Plan) -> EdgeMemoryParts:
    memory = edge_memory(grid.problem.edge, plan)
    draft_bytes = 0.0 if plan.edge_is_whole else draft.memory_bytes
    return EdgeMemoryParts(
        runtime_bytes=memory.runtime_bytes,
        weight_bytes=memory.weight_bytes,
        embedding_bytes=memory.embedding_bytes,
        kv_bytes=memory.kv_bytes,
        workspace_bytes=max(memory.workspace_bytes, memory.head_leftover_bytes),
        load_peak_bytes=memory.load_peak_bytes + draft_bytes,
        draft_bytes=draft_bytes,
        codec_bytes=memory.codec_bytes,
    )


def _total(parts: EdgeMemoryParts) -> float:
    steady = parts.runtime_bytes + parts.weight_bytes + parts.embedding_bytes + parts.kv_bytes
    running = steady + parts.workspace_bytes + parts.draft_bytes + parts.codec_bytes
    return max(running, parts.load_peak_bytes)
