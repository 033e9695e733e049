"""The parts of one server, made from its configuration, each given those that it works with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from cloud.engine.step_turns import StepTurns
from cloud.parallel.free_memory import free_bytes
from cloud.parallel.parallel_engine import ParallelEngine
from cloud.server.bundles import shown_bundles
from cloud.server.byte_budget import ByteBudget, ByteLimits
from cloud.server.config import ServerConfig
from cloud.server.conversations import MAX_UNOPENED, Conversations, ModelBackend
from cloud.server.description import ServerDescription
from cloud.server.kv_shares import kv_shares
from cloud.server.metrics import Metrics
from cloud.server.model_parts import LoadedModel, ModelParts, model_parts
from cloud.server.offered_files import OfferedFiles
from cloud.server.pulls import Pulls
from cloud.server.service import InferenceService
from cloud.server.stream import StreamLimits
from cloud.sessions.admission import Admission
from cloud.sessions.lifecycle import Lifecycle, SessionState
from cloud.sessions.moved_sessions import MovedSessions
from cloud.sessions.resumable_sessions import ResumableSessions
from cloud.sessions.served_models import ServedModels
from cloud.sessions.session_limits import SessionLimits
from cloud.sessions.siblings import Siblings
from cloud.sessions.tenants import Tenants
from protos.messages import ServedBundle

# Without --kv-memory: this share of what is free once the weights are loaded.
DEFAULT_KV_SHARE: Final = 0.5
# For the first messages of streams that have not been opened; but for so many streams at least.
MAX_UNOPENED_BYTES: Final = 256 << 20
MIN_UNOPENED: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParts:
    """What a server consists of, beside the gRPC server itself. models: the first is the default
    of clients that know one."""

    models: tuple[ModelParts, ...]
    budget: ByteBudget
    admission: Admission
    lifecycle: Lifecycle
    resumable: ResumableSessions
    conversations: Conversations
    service: InferenceService
    pulls: Pulls
    metrics: Metrics
    tenants: Tenants


def assemble(
    config: ServerConfig,
    loaded: Sequence[LoadedModel],
    siblings: Siblings | None = None,
) -> ServerParts:
    """The parts of a server for loaded models; nothing runs yet. siblings: None: it is alone.

    Raises StartError for a KV cache, a token file or a draft head that cannot be had, and
    TablesError.
    """
    metrics = Metrics()
    parts = _models(config, loaded, metrics)
    models = ServedModels([one.sessions for one in parts])
    shown = shown_bundles((one.bundles for one in loaded), config.bundles)
    lifecycle = Lifecycle()
    resumable = ResumableSessions(lifecycle)
    admission = Admission(
        models,
        lifecycle=lifecycle,
        resumable=resumable,
        limits=SessionLimits(
            max_sessions=config.max_sessions,
            max_waiting=config.max_waiting,
            max_wait_s=config.max_wait_s,
        ),
        siblings=siblings,
    )
    tenants = config.access.tenants()
    stream_limits = StreamLimits(idle_ttl_s=config.idle_ttl_s, max_stall_s=config.max_stall_s)
    budget = ByteBudget(ByteLimits.of(config.frame_memory_bytes), has_tenants=len(tenants) > 0)
    _watch(metrics, lifecycle, parts, budget)
    conversations = Conversations(
        admission,
        [_backend(one, admission) for one in parts],
        lifecycle=lifecycle,
        resumable=resumable,
        max_frames_in_flight=stream_limits.max_frames_in_flight,
        max_resume_s=config.max_resume_s,
        siblings=siblings,
        max_unopened=_max_unopened(models),
    )
    pulls = _pulls(config, loaded, shown, budget)
    service = InferenceService(
        ServerDescription(models, lifecycle, shown),
        conversations,
        metrics=metrics,
        tenants=tenants,
        stream_limits=stream_limits,
        budget=budget,
        pulls=pulls,
        siblings=siblings,
        replica=config.replica,
    )
    return ServerParts(
        models=parts,
        budget=budget,
        admission=admission,
        lifecycle=lifecycle,
        resumable=resumable,
        conversations=conversations,
        service=service,
        pulls=pulls,
        metrics=metrics,
        tenants=tenants,
    )


def _models(
    config: ServerConfig, loaded: Sequence[LoadedModel], metrics: Metrics
) -> tuple[ModelParts, ...]:
    """The parts of each model, with its share of the KV memory."""
    shares = kv_shares(_kv_bytes(config, loaded), [one.token_bytes for one in loaded])
    turns = StepTurns() if len(loaded) > 1 else None
    return tuple(
        model_parts(
            config,
            one,
            kv_bytes=share,
            metrics=metrics.of_model(one.bundles.name),
            turns=turns,
        )
        for one, share in zip(loaded, shares, strict=True)
    )


def _kv_bytes(config: ServerConfig, loaded: Sequence[LoadedModel]) -> int:
    """Bytes of all KV caches: as asked for, else of what is free now that all weights are there."""
    if config.kv_memory_bytes is not None:
        return config.kv_memory_bytes
    engine = loaded[0].engine
    if isinstance(engine, ParallelEngine):
        return int(engine.free_bytes * DEFAULT_KV_SHARE)
    return int(free_bytes(engine.model.device) * DEFAULT_KV_SHARE)


def _backend(parts: ModelParts, admission: Admission) -> ModelBackend:
    hidden_size = parts.loaded.engine.hidden_size
    pool, thread = parts.sessions.pool, parts.engine_loop
    moves = None  # without the prompt's queries a moved session could not select keys
    if parts.sessions.squeezing is None:
        moves = MovedSessions(admission, pool, thread, hidden_size=hidden_size)
    return ModelBackend(
        sessions=parts.sessions,
        thread=thread,
        metrics=parts.metrics,
        moves=moves,
    )


def _pulls(
    config: ServerConfig,
    loaded: Sequence[LoadedModel],
    shown: Sequence[ServedBundle],
    budget: ByteBudget,
) -> Pulls:
    by_root = {bundle.root: bundle for one in loaded for bundle in one.bundles.bundles}
    offered = [
        OfferedFiles.of(by_root[folder], one)
        for folder, one in zip(config.bundles, shown, strict=True)
    ]
    return Pulls(
        offered if config.offers_files else (),
        budget=budget,
        bytes_per_s=config.pull_bytes_per_s,
        clock=time.monotonic,
    )


def _watch(
    metrics: Metrics, lifecycle: Lifecycle, models: Sequence[ModelParts], budget: ByteBudget
) -> None:
    """Gauges of what is there now. Resumable sessions keep the name that dashboards know."""

    def sessions(name: str, text: str, *states: SessionState) -> None:
        counts: dict[str, Callable[[], float]] = {
            one.name: partial(lifecycle.num_of_model, one.name, *states) for one in models
        }
        metrics.model_gauge(name, text, counts)

    sessions("sessions", "Sessions with KV")
    sessions("sessions_waiting", "Opens in the queue", SessionState.WAITING)
    sessions("sessions_parked", "Sessions without a stream", SessionState.RESUMABLE)
    pools = {one.name: one.sessions.pool for one in models}
    for name, text, attribute in (
        ("kv_blocks", "KV blocks in all", "num_blocks"),
        ("kv_blocks_used", "KV blocks that sessions hold", "used_blocks"),
        ("kv_blocks_cached", "KV blocks kept for reuse", "cached_blocks"),
    ):
        values: dict[str, Callable[[], float]] = {
            model: partial(getattr, pool, attribute) for model, pool in pools.items()
        }
        metrics.model_gauge(name, text, values)
    squeezing = {
        one.name: one.sessions.squeezing for one in models if one.sessions.squeezing is not None
    }
    for name, text, attribute in (
        ("squeezed_keys_read", "Keys read, as a share of those of fixed contexts", "read_share"),
        ("squeezed_index_bytes", "Bytes of the indexes of prompts' keys", "num_bytes"),
    ):
        if squeezing:
            metrics.model_gauge(
                name,
                text,
                {model: partial(getattr, one, attribute) for model, one in squeezing.items()},
            )
    metrics.gauge("frame_bytes", "Bytes of frames not run yet", lambda: budget.used_bytes)


def _max_unopened(models: ServedModels) -> int:
    """Streams that may be waited for at once: each of them can send one message, however large."""
    fitting = MAX_UNOPENED_BYTES // models.max_message_bytes
    return min(MAX_UNOPENED, max(MIN_UNOPENED, fitting))
