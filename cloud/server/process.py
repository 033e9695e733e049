"""The server process: load the bundles, listen, serve, and drain when told to stop.

The door of this room: code that runs a server imports only this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud.engine.back_engine import BackEngine
from cloud.engine.engines import warm_up
from cloud.errors import ServerFailedError, StartError
from cloud.parallel.parallel_engine import ParallelEngine
from cloud.server.access import TokenInterceptor
from cloud.server.assembly import ServerParts, assemble
from cloud.server.bundles import ModelBundles, open_bundles
from cloud.server.call_guard import CallGuard
from cloud.server.config import ServerConfig
from cloud.server.forwarded_peers import ForwardedPeers
from cloud.server.loading import Progress, loaded_engine
from cloud.server.logs import event
from cloud.server.memory import Trimmer
from cloud.server.metrics_endpoint import MetricsEndpoint
from cloud.server.model_parts import LoadedModel, ModelParts
from cloud.server.status.page import StatusEndpoint
from cloud.server.status.serving import server_facts, serving_status, status_facts
from cloud.server.supervision import Check, Supervisor
from cloud.sessions.siblings import Siblings
from protos import wire
from protos.addresses import Address

__all__ = ["Server", "ServerConfig", "serve_until_stopped", "serving"]

logger = logging.getLogger(__name__)

_STOP_GRACE_S: Final = 1.0
_DRAIN_POLL_S: Final = 0.05
# After a part failed: how long its streams have to end before the process does.
_FAILED_DRAIN_S: Final = 2.0
_LONG_S: Final = 3600.0
# Streams of one connection beyond the sessions that there can be: describing, health, probes.
_OTHER_STREAMS: Final = 32
# The event loop's thread may hold the interpreter this long while the model thread needs it, many
# times in a step. Python's default is 5 ms.
SWITCH_INTERVAL_S: Final = 0.0005
_GRPC_OPTIONS: Final = (
    ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.max_allowed_incoming_connections", 4096),
    # A connection that says nothing, and one that has no stream, make room for others.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 900_000),
    # No connection lasts for ever, because streams that nobody reads last as long as it. Streams
    # have an hour to end; an edge whose stream is cut resumes its session on a new connection.
    ("grpc.max_connection_age_ms", 24 * 3_600_000),
    ("grpc.max_connection_age_grace_ms", 3_600_000),
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
        status: StatusEndpoint | None,
        facts: Mapping[str, Any],
    ) -> None:
        """port: where it listens. metrics_port: of GET /metrics and /health; None: nowhere.

        facts: what an operator reads when it is ready (`cloud.server.status.serving`).
        """
        self.facts = facts
        self.port = port
        self.metrics_port = metrics_port
        self.status = status
        self.failure: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.parts = parts
        self.admission = parts.admission
        self.pool = parts.models[0].sessions.pool  # of the first model
        self._service = parts.service
        self._grpc_server = grpc_server
        self._health = health_servicer

    async def fail(self, trouble: str) -> None:
        """A part has stopped for good: say NOT_SERVING, grant nothing, end every stream."""
        logger.critical("the server has failed: %s", trouble)
        error = ServerFailedError(f"this server has failed ({trouble}): go on elsewhere")
        self.admission.refuse_all(error)
        await self._health.enter_graceful_shutdown()
        self._service.end_all(error)
        if not self.failure.done():
            self.failure.set_result(trouble)

    async def drain(self, timeout_s: float, *, until: asyncio.Future[str] | None = None) -> None:
        """Take no sessions, let the running ones end, hand back the rest after `timeout_s`.

        until: once it is done, there is nothing to wait for.
        """
        if not self.admission.draining:
            self.admission.drain()
        await self._health.enter_graceful_shutdown()
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self.admission.num_sessions and asyncio.get_running_loop().time() < deadline_s:
            if until is not None and until.done():
                return
            await asyncio.sleep(_DRAIN_POLL_S)
        self._service.hand_back()
        await self._grpc_server.stop(_STOP_GRACE_S)


@contextlib.asynccontextmanager
async def serving(
    config: ServerConfig,
    *,
    progress: Progress = lambda share, what: None,
    siblings: Siblings | None = None,
) -> AsyncIterator[Server]:
    """Load, listen and serve; everything is stopped and freed on exit.

    progress is called while it loads. siblings: the other servers behind its address.
    Raises StartError (also WeightsError), BundleError and TablesError, one clear line each.
    """
    config.access.check(config.host)
    groups = open_bundles(config)
    async with contextlib.AsyncExitStack() as stack:
        loaded = [
            stack.enter_context(_loaded(config, groups, index, progress))
            for index in range(len(groups))
        ]
        parts = assemble(config, loaded, siblings)
        for model in parts.models:
            _warm_up(model, config)
        trimmer = Trimmer(parts.budget)
        trimmer.trim()  # loading packed the weights, and freed them as they were read
        grpc_server, health_servicer = _grpc_server(parts, config)
        port = _bind(grpc_server, config)
        facts = status_facts(config, parts)
        endpoint = stack.enter_context(_serving_metrics(parts, config))
        page = await stack.enter_async_context(serving_status(parts, config, facts))
        loops = [model.engine_loop for model in parts.models]
        for loop in loops:
            loop.start()
        try:
            await grpc_server.start()
            for name in (health.OVERALL_HEALTH, wire.SERVICE_NAME):
                await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
            server = Server(
                grpc_server,
                health_servicer,
                parts,
                port=port,
                metrics_port=None if endpoint is None else endpoint.port,
                status=page,
                facts={**server_facts(config, parts), **facts},
            )
            facts_shown = {key: server.facts[key] for key in server.facts if key != "models"}
            event(logger, "serving", port=port, **facts_shown)
            checks: list[Check] = [partial(one.trouble, config.max_step_s) for one in loops]
            checks += [one.trouble for one in (endpoint, page) if one is not None]
            checks += [
                one.engine.trouble for one in loaded if isinstance(one.engine, ParallelEngine)
            ]
            async with _supervised(server, grpc_server, checks, trimmer):
                yield server
        finally:
            await grpc_server.stop(0)
            for model in parts.models:
                if model.engine_loop.trouble(config.max_step_s) is None:
                    # Joining blocks for the batch that runs: off the event loop.
                    await asyncio.get_running_loop().run_in_executor(None, model.engine_loop.stop)
                    if model.serving_log is not None:
                        model.serving_log.close()


@contextlib.contextmanager
def _loaded(
    config: ServerConfig, groups: Sequence[ModelBundles], index: int, progress: Progress
) -> Iterator[LoadedModel]:
    """The model of one group while the context lasts. progress: of all groups together."""
    group = groups[index]
    of_group = f" of {group.name}" if len(groups) > 1 else ""

    def told(share: float, what: str) -> None:
        progress((index + share) / len(groups), f"{what}{of_group}")

    with loaded_engine(config, group.loaded, told) as (engine, weights_bytes):
        event(
            logger,
            "model_loaded",
            model=group.name,
            bundles=group.names,
            shared=len(group.bundles) if len(group.bundles) > 1 else None,
        )
        yield LoadedModel(bundles=group, engine=engine, weights_bytes=weights_bytes)


def _warm_up(model: ModelParts, config: ServerConfig) -> None:
    engine, sessions = model.loaded.engine, model.sessions
    if isinstance(engine, BackEngine):
        warm_up(
            engine,
            sessions.pool,
            split=model.loaded.bundles.bundles[0].plan.partition.split,
            max_sessions=config.max_sessions,
            max_tokens=sessions.served.max_tokens,
        )


async def serve_until_stopped(
    config: ServerConfig,
    *,
    ready: Callable[[Server], None],
    progress: Progress = lambda share, what: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `ready` gets the server once it listens.

    progress: see `serving`. While it loads, SIGTERM and SIGINT end the process at once. Raises
    ServerFailedError once a part of the server has stopped for good and its streams have ended.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = asyncio.Event()
    # Loading blocks the event loop, so asyncio's own handler would wait for its end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    async with serving(config, progress=progress) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        # What is loaded stays: the collector need not look at a million objects between steps.
        gc.collect()
        gc.freeze()
        ready(server)
        stopped = asyncio.create_task(stop.wait())
        ends: set[asyncio.Future[Any]] = {stopped, server.failure}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not server.failure.done():
            event(logger, "draining", sessions=server.admission.num_sessions)
            await server.drain(config.drain_s, until=server.failure)
        if server.failure.done():
            stopped.cancel()
            await server.drain(_FAILED_DRAIN_S)
            raise ServerFailedError(server.failure.result())


@contextlib.asynccontextmanager
async def _supervised(
    server: Server, grpc_server: grpc.aio.Server, checks: Sequence[Check], trimmer: Trimmer
) -> AsyncIterator[None]:
    """Watch the server's parts while the context lasts."""

    async def grpc_ends() -> None:
        while await grpc_server.wait_for_termination(_LONG_S):
            pass  # with a time limit, because without one gRPC does not take a cancellation
        if not server.admission.draining:
            await server.fail("gRPC's server ended")

    tasks = [
        asyncio.create_task(Supervisor(checks, fail=server.fail, trimmer=trimmer).run()),
        asyncio.create_task(grpc_ends()),
    ]

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None and not server.failure.done():
            logger.critical("a supervising task died", exc_info=task.exception())
            server.failure.set_result(f"a supervising task died ({task.exception()})")

    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def _grpc_server(parts: ServerParts, config: ServerConfig) -> tuple[grpc.aio.Server, Any]:
    """A server with the service, health and reflection, and its health servicer."""
    token_check = [TokenInterceptor(parts.tenants)] if parts.tenants else []
    peers = [ForwardedPeers()] if config.replica or config.behind_proxy else []
    most_streams = config.max_sessions + config.max_waiting + _OTHER_STREAMS
    server = grpc.aio.server(
        interceptors=[*peers, *token_check, CallGuard()],
        options=(
            *_GRPC_OPTIONS,
            ("grpc.max_receive_message_length", parts.admission.models.max_message_bytes),
            ("grpc.max_concurrent_streams", most_streams),
        ),
    )
    server.add_generic_rpc_handlers((parts.service.handler(),))
    health_servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection(
        (wire.SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    return server, health_servicer


@contextlib.contextmanager
def _serving_metrics(parts: ServerParts, config: ServerConfig) -> Iterator[MetricsEndpoint | None]:
    """Answer GET /metrics and /health while the context lasts, if the server is to."""
    if config.metrics_port is None:
        yield None
        return
    endpoint = MetricsEndpoint(
        parts.metrics,
        config.metrics_host,
        config.metrics_port,
        is_serving=lambda: not parts.admission.draining,
    )
    try:
        yield endpoint
    finally:
        endpoint.stop()


def _bind(server: grpc.aio.Server, config: ServerConfig) -> int:
    address = str(Address(config.host.strip("[]"), config.port))
    credentials = config.access.credentials()
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise StartError(f"cannot listen on {address} ({error})") from error
