"""The server process: load the bundle, listen, serve, and drain when told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import psutil
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud.engine.back_engine import BackEngine
from cloud.engine.loop import EngineLoop
from cloud.errors import StartError
from cloud.kv.pool import KvPool
from cloud.server.access import Access, TokenInterceptor
from cloud.server.logs import event
from cloud.server.metrics import Metrics, serve_metrics
from cloud.server.service import InferenceService
from cloud.sessions.admission import Admission, Limits, load_ladders
from optimizer.artifacts.bundle import Bundle, open_bundle
from optimizer.policy.batching import Scheduler
from protos import wire
from protos.addresses import Address

logger = logging.getLogger(__name__)

# Without --kv-memory: this share of what is free once the weights are loaded.
DEFAULT_KV_SHARE: Final = 0.5
_STOP_GRACE_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How to serve one bundle. Sizes in bytes, None: chosen from the machine.

    drain_s: how long running sessions may go on after SIGTERM; then they are handed back.
    idle_ttl_s: how long a client may be silent before its session is evicted. max_resume_s: how
    long the session of a broken stream is kept at most. max_waiting, max_wait_s: the line for a
    place. metrics_port: where GET /metrics is answered (None: nowhere).
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 50051
    max_sessions: int = 64
    kv_memory_bytes: int | None = None
    device: str = "auto"
    threads: int | None = None
    access: Access = field(default_factory=Access)
    scheduler: Scheduler = field(default_factory=Scheduler)
    idle_ttl_s: float = 300.0
    max_resume_s: float = 60.0
    max_waiting: int = 16
    max_wait_s: float = 2.0
    drain_s: float = 30.0
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None


class Server:
    """A listening server. `serving` is the way to get one; `port` is where it listens."""

    def __init__(
        self,
        grpc_server: grpc.aio.Server,
        health_servicer: Any,
        admission: Admission,
        pool: KvPool,
        service: InferenceService,
        *,
        port: int,
        metrics_port: int | None,
    ) -> None:
        self._service = service
        self.metrics_port = metrics_port
        self._grpc_server = grpc_server
        self._health = health_servicer
        self.admission = admission
        self.pool = pool
        self.port = port

    async def drain(self, timeout_s: float) -> None:
        """Take no new sessions, let the running ones end, hand back the rest after `timeout_s`."""
        self.admission.draining = True
        self.admission.close_line()
        await self._health.enter_graceful_shutdown()
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self.admission.num_sessions and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(0.05)
        self._service.hand_back()
        await self._grpc_server.stop(_STOP_GRACE_S)


@contextlib.asynccontextmanager
async def serving(config: ServerConfig) -> AsyncIterator[Server]:
    """Load, listen and serve; everything is stopped and freed on exit.

    Raises StartError (also WeightsError), BundleError and TablesError, one clear line each.
    """
    config.access.check(config.host)
    bundle = open_bundle(config.bundle, role="cloud")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    engine = BackEngine.load(
        bundle.cloud_dir,
        first_layer=bundle.plan.back_start,
        device=choose_device(config.device),
    )
    async with serving_engine(config, bundle, engine) as server:
        yield server


@contextlib.asynccontextmanager
async def serving_engine(
    config: ServerConfig, bundle: Bundle, engine: BackEngine
) -> AsyncIterator[Server]:
    """`serving` with an engine that is loaded already."""
    kv_bytes = config.kv_memory_bytes
    if kv_bytes is None:
        kv_bytes = int(_free_bytes(engine.model.device) * DEFAULT_KV_SHARE)
    pool = KvPool(engine.kv_shape, limit_bytes=kv_bytes, device=engine.model.device)
    admission = Admission(
        bundle.plan,
        engine,
        pool,
        limits=Limits(
            max_sessions=config.max_sessions,
            max_tokens=min(bundle.plan.max_tokens, engine.max_positions),
            max_waiting=config.max_waiting,
            max_wait_s=config.max_wait_s,
        ),
        ladders=load_ladders(bundle),
    )
    metrics = Metrics()
    _watch(metrics, admission, pool)
    engine_loop = EngineLoop(engine, config.scheduler, metrics=metrics)
    tenants = config.access.tenants()
    service = InferenceService(
        admission,
        engine_loop,
        metrics=metrics,
        tenants=tenants,
        idle_ttl_s=config.idle_ttl_s,
        max_resume_s=config.max_resume_s,
    )
    grpc_server = grpc.aio.server(
        interceptors=[TokenInterceptor(tenants)] if tenants else [],
        options=[
            ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
            # Clients ping every 10 s to notice a dead server; and a dead client is noticed here.
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
    )
    grpc_server.add_generic_rpc_handlers((service.handler(),))
    health_servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, grpc_server)
    reflection.enable_server_reflection(
        (wire.SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), grpc_server
    )
    port = _bind(grpc_server, config)
    metrics_port: int | None = None
    stop_metrics: Callable[[], None] = lambda: None  # noqa: E731
    if config.metrics_port is not None:
        metrics_port, stop_metrics = serve_metrics(
            metrics, config.metrics_host, config.metrics_port
        )
    engine_loop.start()
    try:
        await grpc_server.start()
        for name in (health.OVERALL_HEALTH, wire.SERVICE_NAME):
            await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        event(logger, "serving", model=bundle.plan.model.id, port=port, native=engine.is_native)
        yield Server(
            grpc_server,
            health_servicer,
            admission,
            pool,
            service,
            port=port,
            metrics_port=metrics_port,
        )
    finally:
        await grpc_server.stop(0)
        stop_metrics()
        # Joining blocks for the batch that runs: off the loop.
        await asyncio.get_running_loop().run_in_executor(None, engine_loop.stop)


async def serve_until_stopped(config: ServerConfig, *, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `ready` is told the port once it listens."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(config) as server:
        # What is loaded stays: the collector need not look at a million objects between steps.
        gc.collect()
        gc.freeze()
        ready(server.port)
        await stop.wait()
        event(logger, "draining", sessions=server.admission.num_sessions)
        await server.drain(config.drain_s)


def choose_device(wanted: str) -> str:
    """`auto` takes CUDA when torch has it. Raises StartError for a device that is not there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise StartError("--device cuda: torch finds no CUDA device here")
    if wanted not in ("cpu", "cuda"):
        raise StartError(f"--device {wanted}: choose auto, cpu or cuda")
    return wanted


def _watch(metrics: Metrics, admission: Admission, pool: KvPool) -> None:
    """Gauges of what is there now."""
    metrics.gauge("sessions", "Sessions with KV", lambda: admission.num_sessions)
    metrics.gauge("sessions_waiting", "Opens in line", lambda: admission.num_waiting)
    metrics.gauge("kv_blocks", "KV blocks in all", lambda: pool.num_blocks)
    metrics.gauge("kv_blocks_used", "KV blocks that sessions hold", lambda: pool.used_blocks)
    metrics.gauge("kv_blocks_cached", "KV blocks kept for reuse", lambda: pool.cached_blocks)


def _bind(server: grpc.aio.Server, config: ServerConfig) -> int:
    address = str(Address(config.host.strip("[]"), config.port))
    credentials = config.access.credentials()
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise StartError(f"cannot listen on {address} ({error})") from error


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
