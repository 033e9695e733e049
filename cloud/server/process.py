"""The server process: load the bundle, listen, serve, and drain when told to stop.

The door of this room: code that runs a server imports only this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud.engine.back_engine import BackEngine
from cloud.engine.threads import use_threads
from cloud.errors import StartError
from cloud.server.access import TokenInterceptor
from cloud.server.assembly import ServerParts, assemble
from cloud.server.config import ServerConfig, choose_device
from cloud.server.logs import event
from cloud.server.metrics import Metrics, serve_metrics
from optimizer.artifacts.bundle import open_bundle
from protos import wire
from protos.addresses import Address

__all__ = ["Server", "ServerConfig", "serve_until_stopped", "serving"]

logger = logging.getLogger(__name__)

_STOP_GRACE_S: Final = 1.0
_DRAIN_POLL_S: Final = 0.05
_GRPC_OPTIONS: Final = (
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    # Clients ping every 10 s to notice a dead server; and a dead client is noticed here.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class Server:
    """A listening server. `serving` is the way to get one."""

    def __init__(
        self,
        grpc_server: grpc.aio.Server,
        health_servicer: Any,
        parts: ServerParts,
        *,
        port: int,
        metrics_port: int | None,
    ) -> None:
        """port: where it listens. metrics_port: where GET /metrics is answered; None: nowhere."""
        self.port = port
        self.metrics_port = metrics_port
        self.admission = parts.admission
        self.pool = parts.pool
        self._service = parts.service
        self._grpc_server = grpc_server
        self._health = health_servicer

    async def drain(self, timeout_s: float) -> None:
        """Take no new sessions, let the running ones end, hand back the rest after `timeout_s`."""
        self.admission.drain()
        await self._health.enter_graceful_shutdown()
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self.admission.num_sessions and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(_DRAIN_POLL_S)
        self._service.hand_back()
        await self._grpc_server.stop(_STOP_GRACE_S)


@contextlib.asynccontextmanager
async def serving(config: ServerConfig) -> AsyncIterator[Server]:
    """Load, listen and serve; everything is stopped and freed on exit.

    Raises StartError (also WeightsError), BundleError and TablesError, one clear line each.
    """
    config.access.check(config.host)
    bundle = open_bundle(config.bundle, role="cloud")
    use_threads(config.threads)
    engine = BackEngine.load(
        bundle.path("cloud/config.json").parent,
        first_layer=bundle.plan.back_start,
        device=choose_device(config.device),
        weight_files=bundle.paths("cloud", ".safetensors"),
    )
    parts = assemble(config, bundle, engine)
    grpc_server, health_servicer = _grpc_server(parts)
    port = _bind(grpc_server, config)
    with _serving_metrics(parts.metrics, config) as metrics_port:
        parts.engine_loop.start()
        try:
            await grpc_server.start()
            for name in (health.OVERALL_HEALTH, wire.SERVICE_NAME):
                await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
            event(logger, "serving", model=bundle.plan.model.id, port=port, native=engine.is_native)
            yield Server(grpc_server, health_servicer, parts, port=port, metrics_port=metrics_port)
        finally:
            await grpc_server.stop(0)
            # Joining blocks for the batch that runs: off the loop.
            await asyncio.get_running_loop().run_in_executor(None, parts.engine_loop.stop)


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


def _grpc_server(parts: ServerParts) -> tuple[grpc.aio.Server, Any]:
    """A server with the service, health and reflection, and its health servicer."""
    server = grpc.aio.server(
        interceptors=[TokenInterceptor(parts.tenants)] if parts.tenants else [],
        options=_GRPC_OPTIONS,
    )
    server.add_generic_rpc_handlers((parts.service.handler(),))
    health_servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection(
        (wire.SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    return server, health_servicer


@contextlib.contextmanager
def _serving_metrics(metrics: Metrics, config: ServerConfig) -> Iterator[int | None]:
    """Answer GET /metrics while the context lasts, if the server is to; yields the port."""
    if config.metrics_port is None:
        yield None
        return
    port, stop = serve_metrics(metrics, config.metrics_host, config.metrics_port)
    try:
        yield port
    finally:
        stop()


def _bind(server: grpc.aio.Server, config: ServerConfig) -> int:
    address = str(Address(config.host.strip("[]"), config.port))
    credentials = config.access.credentials()
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise StartError(f"cannot listen on {address} ({error})") from error
