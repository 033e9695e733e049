"""The engine that suits a model's device."""

from __future__ import annotations

import logging

import torch

from cloud.attention.gathered import GatheredAttention
from cloud.attention.paged import has_triton
from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import BackModel
from cloud.engine.gpu_trial import why_no_paged_attention
from cloud.engine.weight_types import FP8
from cloud.errors import StartError
from cloud.kv.pool import KvPool
from optimizer.policy.batching import GPU_SCHEDULER, Scheduler

logger = logging.getLogger(__name__)


def make_engine(model: BackModel, *, kv_type: str | None = None) -> BackEngine:
    """An engine for the model. kv_type: "fp8" keeps keys and values in 8 bits, on a GPU alone.

    Raises StartError where the device cannot keep them so.
    """
    if model.device.type != "cuda":
        return BackEngine(model)
    kv_dtype = torch.float8_e4m3fn if kv_type == FP8 else None
    reason = _why_not_paged(model)
    if kv_dtype is not None and (lacks := reason or _why_not_paged(model, kv_dtype)):
        raise StartError(f"--kv-type {kv_type} cannot be used here: {lacks}")
    if reason:
        logger.warning("histories are gathered, steps have no graphs: %s", reason)
        return BackEngine(model, attention=GatheredAttention.name)
    from cloud.engine.gpu_engine import GpuEngine

    return GpuEngine(model, kv_dtype=kv_dtype)


def _why_not_paged(model: BackModel, kv_dtype: torch.dtype | None = None) -> str | None:
    """Why the kernels cannot attend here. kv_dtype: of keys and values; None: the model's."""
    if not has_triton():
        return "Triton is not installed"
    if kv_dtype is not None:
        from cloud.gpu.weight_only import why_not

        if reason := why_not(model.device, kv_dtype):
            return reason
    heads = model.config.num_attention_heads
    return why_no_paged_attention(model.kv_shape, heads, model.device, kv_dtype=kv_dtype)


def scheduler_for(device: torch.device) -> Scheduler:
    """The limits of a batch on a device."""
    return Scheduler() if device.type == "cpu" else GPU_SCHEDULER


def warm_up(
    engine: BackEngine, pool: KvPool, *, split: int, max_sessions: int, max_tokens: int
) -> None:
    """Record the decode steps of sessions that enter at `split`, where the engine records any.

    Sessions that enter elsewhere, or draft, wait for a recording when they first need one.
    """
    if engine.model.device.type != "cuda" or not has_triton():
        return
    from cloud.engine.gpu_engine import GpuEngine

    if isinstance(engine, GpuEngine):
        engine.warm_up(pool.arena, split=split, num_rows=max_sessions, max_tokens=max_tokens)
