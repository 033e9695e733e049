"""The parts of one server, made from its configuration, each given those that it works with."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Final

import torch

from cloud.drafting.eagle_drafter import EagleDrafter
from cloud.drafting.head_loading import load_head
from cloud.engine.engines import scheduler_for
from cloud.engine.frame_decoding import FrameDecoding, default_decode_threads
from cloud.engine.loop import EngineLoop
from cloud.engine.measured_engine import MeasuredEngine
from cloud.kv.pool import KvPool
from cloud.kv.prefix_cache import PrefixCache
from cloud.parallel.free_memory import free_bytes
from cloud.parallel.parallel_engine import ParallelEngine
from cloud.server.byte_budget import ByteBudget, ByteLimits
from cloud.server.config import ServerConfig
from cloud.server.conversations import MAX_UNOPENED, Conversations
from cloud.server.loading import ServedEngine
from cloud.server.metrics import Metrics
from cloud.server.offered_files import OfferedFiles
from cloud.server.pulls import Pulls
from cloud.server.service import InferenceService
from cloud.server.serving_log import ServingLog
from cloud.server.stream import StreamLimits
from cloud.sessions.admission import Admission
from cloud.sessions.grammars import TOKENIZER_NAME, Grammars
from cloud.sessions.lifecycle import Lifecycle
from cloud.sessions.moved_sessions import MovedSessions
from cloud.sessions.resumable_sessions import ResumableSessions
from cloud.sessions.served_model import ServedModel, load_ladders
from cloud.sessions.session_limits import SessionLimits
from cloud.sessions.siblings import Siblings
from cloud.sessions.tenants import Tenants
from codec.slow_path import warn_without_kernel
from optimizer.artifacts.bundle import DRAFT_HEAD_FOLDER, Bundle
from optimizer.measured.log import MeasurementLog
from optimizer.measured.this_machine import this_machine

logger = logging.getLogger(__name__)

# Without --kv-memory: this share of what is free once the weights are loaded.
DEFAULT_KV_SHARE: Final = 0.5
# For the first messages of streams that have not been opened; but for so many streams at least.
MAX_UNOPENED_BYTES: Final = 256 << 20
MIN_UNOPENED: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParts:
    """What a server consists of, beside the gRPC server itself."""

    served: ServedModel
    budget: ByteBudget
    pool: KvPool
    admission: Admission
    engine_loop: EngineLoop
    lifecycle: Lifecycle
    resumable: ResumableSessions
    conversations: Conversations
    service: InferenceService
    pulls: Pulls
    metrics: Metrics
    serving_log: ServingLog | None
    tenants: Tenants
    head: EagleDrafter | None


def assemble(
    config: ServerConfig,
    bundle: Bundle,
    engine: ServedEngine,
    siblings: Siblings | None = None,
) -> ServerParts:
    """The parts of a server for a loaded engine; nothing runs yet. siblings: None: it is alone.

    Raises StartError for a KV cache, a token file or a draft head that cannot be had, and
    TablesError.
    """
    served = _served(bundle, engine)
    prefixes = PrefixCache()
    pool = _pool(config, engine, prefixes)
    head = _head(config, bundle, engine, pool)
    lifecycle = Lifecycle()
    resumable = ResumableSessions(lifecycle)
    admission = Admission(
        served,
        pool,
        prefixes=prefixes,
        lifecycle=lifecycle,
        resumable=resumable,
        limits=SessionLimits(
            max_sessions=config.max_sessions,
            max_waiting=config.max_waiting,
            max_wait_s=config.max_wait_s,
        ),
        grammars=_grammars(bundle, engine),
        head=head,
        siblings=siblings,
    )
    metrics = Metrics()
    serving_log = _serving_log(config, bundle, served, engine, metrics)
    engine_loop = _engine_loop(config, engine, serving_log or metrics, head)
    tenants = config.access.tenants()
    stream_limits = StreamLimits(idle_ttl_s=config.idle_ttl_s, max_stall_s=config.max_stall_s)
    budget = ByteBudget(ByteLimits.of(config.frame_memory_bytes), has_tenants=len(tenants) > 0)
    _watch(metrics, lifecycle, pool, budget)
    conversations = Conversations(
        admission,
        engine_loop,
        lifecycle=lifecycle,
        resumable=resumable,
        metrics=metrics,
        max_frames_in_flight=stream_limits.max_frames_in_flight,
        max_resume_s=config.max_resume_s,
        moves=MovedSessions(admission, pool, engine_loop, hidden_size=engine.hidden_size),
        siblings=siblings,
        max_unopened=_max_unopened(served),
    )
    pulls = _pulls(config, bundle, budget)
    service = InferenceService(
        served,
        admission,
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
        served=served,
        budget=budget,
        pool=pool,
        admission=admission,
        engine_loop=engine_loop,
        lifecycle=lifecycle,
        resumable=resumable,
        conversations=conversations,
        service=service,
        pulls=pulls,
        metrics=metrics,
        serving_log=serving_log,
        tenants=tenants,
        head=head,
    )


def _served(bundle: Bundle, engine: ServedEngine) -> ServedModel:
    ladders = load_ladders(bundle)
    ladder = ladders.get(bundle.plan.partition.split)
    if ladder is not None and bundle.plan.level in ladder.names:
        warn_without_kernel(ladder, bundle.plan.level, decodes=True)
    return ServedModel(
        bundle.plan,
        layers=range(engine.first_layer, engine.num_layers),
        hidden_size=engine.hidden_size,
        max_tokens=min(bundle.plan.max_tokens, engine.max_positions),
        ladders=ladders,
        max_positions=engine.max_positions,
        embedding=None if engine.model.embedding is None else engine.model.embedding.rows,
    )


def _pool(config: ServerConfig, engine: ServedEngine, prefixes: PrefixCache) -> KvPool:
    num_bytes = config.kv_memory_bytes
    if isinstance(engine, ParallelEngine):
        if num_bytes is None:
            num_bytes = int(engine.free_bytes * DEFAULT_KV_SHARE)
        return engine.make_pool(num_bytes, prefixes.drop_oldest)
    if num_bytes is None:
        num_bytes = int(free_bytes(engine.model.device) * DEFAULT_KV_SHARE)
    return KvPool(
        engine.kv_shape,
        limit_bytes=num_bytes,
        device=engine.model.device,
        reclaim=prefixes.drop_oldest,
    )


def _head(
    config: ServerConfig, bundle: Bundle, engine: ServedEngine, pool: KvPool
) -> EagleDrafter | None:
    """The draft head that was asked for, or the bundle's own where it can run here."""
    folder = config.draft_head
    is_plain = not isinstance(engine, ParallelEngine) and engine.model.device.type == "cpu"
    if folder is None and bundle.has(f"{DRAFT_HEAD_FOLDER}/config.json") and not is_plain:
        logger.warning("the bundle's draft head is not used: heads run on a CPU server alone")
    if isinstance(engine, ParallelEngine):
        return None  # with several ranks the option was refused
    if folder is None:
        if not is_plain or not bundle.has(f"{DRAFT_HEAD_FOLDER}/config.json"):
            return None
        folder = bundle.path(f"{DRAFT_HEAD_FOLDER}/config.json").parent
    return load_head(folder, engine, kv_bytes=pool.limit_bytes)


def _pulls(config: ServerConfig, bundle: Bundle, budget: ByteBudget) -> Pulls:
    return Pulls(
        OfferedFiles.of(bundle) if config.offers_files else None,
        budget=budget,
        bytes_per_s=config.pull_bytes_per_s,
        clock=time.monotonic,
    )


def _engine_loop(
    config: ServerConfig,
    engine: ServedEngine,
    observer: Metrics | ServingLog,
    head: EagleDrafter | None,
) -> EngineLoop:
    return EngineLoop(
        MeasuredEngine(engine, observer.batch_ran) if isinstance(observer, ServingLog) else engine,
        config.scheduler or scheduler_for(engine.model.device),
        observer=observer,
        decoding=_decoding(config),
        drafter=head,
    )


def _serving_log(
    config: ServerConfig,
    bundle: Bundle,
    served: ServedModel,
    engine: ServedEngine,
    metrics: Metrics,
) -> ServingLog | None:
    """Raises MeasurementError for a file that cannot be written."""
    if config.measure is None:
        return None
    on_cpu = engine.model.device.type == "cpu"
    return ServingLog(
        MeasurementLog(config.measure),
        plan=bundle.plan,
        machine=this_machine(
            "torch-cpu" if on_cpu else "torch-cuda", num_threads=torch.get_num_threads()
        ),
        ladder=served.ladder_at(bundle.plan.partition.split),
        beside=metrics,
    )


def _decoding(config: ServerConfig) -> FrameDecoding:
    num_threads = config.decode_threads
    return FrameDecoding(
        default_decode_threads() if num_threads is None else num_threads,
        short_frames=config.decode_short_frames,
    )


def _grammars(bundle: Bundle, engine: ServedEngine) -> Grammars:
    eos = engine.model.config.eos_token_id
    first = next(iter(eos), None) if isinstance(eos, (list, tuple)) else eos
    return Grammars(
        bundle.path(TOKENIZER_NAME) if bundle.has(TOKENIZER_NAME) else None,
        vocab_size=bundle.plan.model.geometry.vocab_size,
        eos_token_id=first if isinstance(first, int) else None,
    )


def _watch(metrics: Metrics, lifecycle: Lifecycle, pool: KvPool, budget: ByteBudget) -> None:
    """Gauges of what is there now. Resumable sessions keep the name that dashboards know."""
    metrics.gauge("sessions", "Sessions with KV", lambda: lifecycle.num_with_blocks)
    metrics.gauge("sessions_waiting", "Opens in the queue", lambda: lifecycle.num_waiting)
    metrics.gauge("sessions_parked", "Sessions without a stream", lambda: lifecycle.num_resumable)
    metrics.gauge("kv_blocks", "KV blocks in all", lambda: pool.num_blocks)
    metrics.gauge("kv_blocks_used", "KV blocks that sessions hold", lambda: pool.used_blocks)
    metrics.gauge("kv_blocks_cached", "KV blocks kept for reuse", lambda: pool.cached_blocks)
    metrics.gauge("frame_bytes", "Bytes of frames not run yet", lambda: budget.used_bytes)


def _max_unopened(served: ServedModel) -> int:
    """Streams that may be waited for at once: each of them can send one message, however large."""
    fitting = MAX_UNOPENED_BYTES // served.max_message_bytes
    return min(MAX_UNOPENED, max(MIN_UNOPENED, fitting))
